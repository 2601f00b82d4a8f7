"""The pictures of a COCO annotation file: found in their folder, and their sizes compared with what the file states.

The service answers in pixels of the upright picture, EXIF orientation applied. A file may have been annotated on the
pixels as they are stored, and then its boxes are turned; or on a copy of another size, and then it is refused.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from builder.pipeline.coco import CocoFile
from builder.pipeline.coco_entries import Annotation, Box, CocoImage, in_words
from codetr_client import containers, jpeg
from codetr_client.exif import read_orientation
from codetr_client.inputs import read_file
from serving.errors import CodetrError

_PIXEL = 1.0  # a box may reach beyond its picture by so much, as rounding has it
_FAR = 0.1  # of a side: more is no rounding
_CLEARLY = 10  # times as many boxes fit one way as the other; a few reach beyond their picture in any data set

Size = tuple[int, int]  # width, height in pixels


class Header(NamedTuple):
    """What a picture's file says of its size."""

    stored: Size
    orientation: int  # of EXIF 2.3 section 4.6.4: from 5 on the sides change places

    @property
    def upright(self) -> Size:
        """The size of the picture as it is shown and as the service answers for it."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    @property
    def is_mirrored(self) -> bool:
        """Whether the picture is shown otherwise than it is stored, though no side tells so."""
        return self.orientation != 1 and self.stored == self.upright


def spellings(file_name: str) -> list[PurePosixPath]:
    """Return the paths that a file name may mean: as it is, of Windows, URL-encoded, accents composed or not."""
    found = [file_name, file_name.replace("\\", "/")]
    found += [unquote(name) for name in found]
    found += [unicodedata.normalize(form, name) for name in found for form in ("NFC", "NFD")]
    return [PurePosixPath(name) for name in dict.fromkeys(found)]


def find_pictures(folder: Path, images: Sequence[CocoImage]) -> dict[int, Path]:
    """Return the files of images by their numbers, for those that are there.

    File names are relative to `folder`, which may be any of the folders that they begin with. Then the same number of
    leading folders is left out of every name.

    Raises:
        CodetrError: two images of the file are one picture.
    """
    depth = max(len(path.parts) for image in images for path in spellings(image.file_name))
    for dropped in range(depth):
        found = {
            image.number: path for image in images if (path := _find(folder, image.file_name, dropped)) is not None
        }
        if found:
            _refuse_shared(found, images)
            return found
    return {}


def _find(folder: Path, file_name: str, dropped: int) -> Path | None:
    for name in spellings(file_name):
        path = Path(folder, *name.parts[dropped:])
        if len(name.parts) > dropped and os.path.isfile(path):
            return path
    return None


def _refuse_shared(found: Mapping[int, Path], images: Sequence[CocoImage]) -> None:
    if len(set(found.values())) == len(found):
        return
    first: dict[Path, CocoImage] = {}
    for image in images:
        path = found.get(image.number)
        if path is not None and first.setdefault(path, image) is not image:
            raise CodetrError(
                f"images {first[path].id!r} and {image.id!r} are both {in_words([path])}; expected one entry a "
                "picture, with all its annotations"
            )


def read_header(path: Path) -> Header:
    """Return what a picture's file says of its size.

    Raises:
        CodetrError: it is no picture that the service decodes; the message is the reason alone.
    """
    try:
        data = read_file(path)
        name = containers.image_format(data)
        if name is None:
            raise CodetrError("expected JPEG, PNG, WEBP or BMP")
        found = jpeg.read_jpeg(data) if name == "JPEG" else containers.READERS[name](data)
    except OSError as error:
        raise CodetrError(str(error.strerror)) from error
    return Header((found.width, found.height), read_orientation(found.exif))


def compare_with_pictures(coco: CocoFile, paths: Mapping[int, Path]) -> CocoFile:
    """Return the file in pixels of the upright pictures, with their sizes.

    A size that the file states is that of the upright picture, or that of the stored one: then all such boxes decide.
    They are turned where clearly more of them reach beyond the upright pictures than beyond the stored ones; they are
    upright where it is the other way round.

    Args:
        coco: the file.
        paths: of its pictures by their numbers; what has no path is left as it is.

    Raises:
        CodetrError: pictures cannot be read or have other sizes than the file states, or it cannot be told whether
            their boxes are turned, or most boxes reach far beyond their picture; says how many.
    """
    images = [image for image in coco.images if image.number in paths]
    headers = _headers(images, paths)
    _refuse_other_sizes(coco.path, images, headers)
    boxes: dict[int, list[Box]] = {image.number: [] for image in images}
    for each in coco.annotations:
        if each.image in boxes:
            boxes[each.image].append(each.box)
    turned, notes = _turned(coco.path, images, headers, boxes)
    annotations = tuple(
        each._replace(box=turn(each.box, headers[each.image])) if each.image in turned else each
        for each in coco.annotations
    )
    sized = [
        replace(image, width=headers[image.number].upright[0], height=headers[image.number].upright[1])
        if image.number in headers
        else image
        for image in coco.images
    ]
    notes += _beyond(coco.path, annotations, headers)
    return replace(coco, images=tuple(sized), annotations=annotations, notes=(*coco.notes, *notes))


def _headers(images: Sequence[CocoImage], paths: Mapping[int, Path]) -> dict[int, Header]:
    headers: dict[int, Header] = {}
    faults = []
    for image in images:
        try:
            headers[image.number] = read_header(paths[image.number])
        except CodetrError as error:
            faults.append(f"{paths[image.number]} ({error})")
    if faults:
        raise CodetrError(f"{len(faults)} of {len(images)} images cannot be read: {in_words(faults)}; take them out")
    return headers


def _stated(image: CocoImage) -> Size | None:
    return None if image.width is None or image.height is None else (image.width, image.height)


def _refuse_other_sizes(path: Path, images: Sequence[CocoImage], headers: Mapping[int, Header]) -> None:
    others = []
    for image in images:
        stated, header = _stated(image), headers[image.number]
        if stated is not None and stated not in (header.stored, header.upright):
            upright = header.upright
            others.append(f"{image.file_name}: {_times(stated)} in the file, {_times(upright)} in the picture")
    if others:
        raise CodetrError(
            f"{path}: {len(others)} of {len(images)} pictures have another size than the file states "
            f"({in_words(others)}); give the pictures that were annotated, or the annotations of these"
        )


def _times(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _turned(
    path: Path, images: Sequence[CocoImage], headers: Mapping[int, Header], boxes: Mapping[int, Sequence[Box]]
) -> tuple[set[int], list[str]]:
    """Return the images whose boxes are of stored pixels, and notes."""
    rotated = [image for image in images if headers[image.number].stored != headers[image.number].upright]
    unclear = [image for image in rotated if _stated(image) in (None, headers[image.number].stored)]
    doubtful = [image for image in unclear if boxes[image.number]]
    mirrored = [image for image in images if headers[image.number].is_mirrored]
    if not doubtful:
        told = len(unclear) < len(rotated)  # upright sizes, so whatever wrote them knew of the orientation
        return set(), _note_mirrored(path, [] if told else [image for image in mirrored if boxes[image.number]])
    pairs = [(box, headers[image.number]) for image in doubtful for box in boxes[image.number]]
    beyond_stored = sum(_reaches(box, header.stored) > _PIXEL for box, header in pairs)
    beyond_upright = sum(_reaches(box, header.upright) > _PIXEL for box, header in pairs)
    which = f"{path}: {len(doubtful)} of {len(images)} pictures are stored turned (EXIF orientation)"
    if beyond_upright > _CLEARLY * beyond_stored:
        # A program that leaves the orientation out leaves it out of mirrored pictures too, whose sides tell nothing.
        others = mirrored if len(unclear) == len(rotated) else []
        return {image.number for image in (*doubtful, *others)}, [
            f"{which}, and their boxes are of the stored pixels; they are turned upright, as the service answers"
        ]
    unstated = all(_stated(image) is None for image in doubtful)
    if beyond_stored > _CLEARLY * beyond_upright or (unstated and not beyond_stored and not beyond_upright):
        return set(), [f"{which}; their boxes are taken to be of the upright pictures"]
    name, header = doubtful[0].file_name, headers[doubtful[0].number]
    raise CodetrError(
        f"{which}, and whether their boxes are of the stored or of the upright pixels cannot be told "
        f"({in_words([name])}: {_times(header.stored)} stored, {_times(header.upright)} upright); state width and "
        "height of the upright pictures with boxes of those, or take the orientation out of the pictures' metadata"
    )


def _note_mirrored(path: Path, images: Sequence[CocoImage]) -> list[str]:
    if not images:
        return []
    return [
        f"{path}: {len(images)} pictures are stored turned (EXIF orientation) in a way that no size tells, upside down "
        f"or mirrored; their boxes are taken to be of the upright pictures "
        f"({in_words([image.file_name for image in images])})"
    ]


def _reaches(box: Box, size: Size) -> float:
    """Return by how many pixels a box reaches beyond a picture."""
    x, y, width, height = box
    return max(-x, -y, x + width - size[0], y + height - size[1], 0.0)


def turn(box: Box, header: Header) -> Box:
    """Return a box of stored pixels in those of the upright picture."""
    w, h = header.stored
    corner: Callable[[float, float], tuple[float, float]] = {
        1: lambda x, y: (x, y),
        2: lambda x, y: (w - x, y),
        3: lambda x, y: (w - x, h - y),
        4: lambda x, y: (x, h - y),
        5: lambda x, y: (y, x),
        6: lambda x, y: (h - y, x),
        7: lambda x, y: (h - y, w - x),
        8: lambda x, y: (y, w - x),
    }[header.orientation]
    x, y, width, height = box
    (x1, y1), (x2, y2) = corner(x, y), corner(x + width, y + height)
    return min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)


def _beyond(path: Path, annotations: Sequence[Annotation], headers: Mapping[int, Header]) -> list[str]:
    """Return a note on boxes that reach beyond their picture; refuse a file most of whose boxes do by far."""
    known = [(each.box, headers[each.image].upright) for each in annotations if each.image in headers]
    beyond = [(box, size) for box, size in known if _reaches(box, size) > _PIXEL]
    far = [(box, size) for box, size in beyond if _reaches(box, size) > _FAR * max(size)]
    if 2 * len(far) > len(known):
        (box, size) = far[0]
        raise CodetrError(
            f"{path}: {len(far)} of {len(known)} boxes reach far beyond their picture, such as {list(box)} in one of "
            f"{_times(size)}; expected [x, y, width, height] in its pixels, not the corners"
        )
    if not beyond:
        return []
    return [f"{path}: {len(beyond)} of {len(known)} boxes reach beyond their picture"]
