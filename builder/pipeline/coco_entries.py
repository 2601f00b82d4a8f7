"""The entries of a COCO annotation file: images, categories and annotations, each checked and numbered."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from codetr_client.text import printable
from serving.errors import CodetrError

Id = int | float | str  # as a file has it
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True)
class CocoImage:
    """One image of a file."""

    number: int  # ours, from 1; ascending as the ids do
    id: Id  # the file's own
    file_name: str
    width: int | None = None  # in pixels, where the file states it
    height: int | None = None


@dataclass(frozen=True)
class CocoCategory:
    """One category of a file."""

    number: int  # ours, from 1; ascending as the ids do
    id: Id  # the file's own
    name: str


class Annotation(NamedTuple):
    """One object; image and category by our numbers."""

    image: int
    category: int
    box: Box
    area: float  # in square pixels
    is_crowd: bool


def read_images(entries: Sequence[Mapping[str, Any]], notes: list[str]) -> dict[str, CocoImage]:
    """Return the images by the text of their ids, in the file's order; what was left out is added to `notes`.

    Their numbers ascend as their ids do: COCO's evaluators rank equal scores by the ids of their images.

    Raises:
        CodetrError: an entry has no id or file name, an impossible size, or shares its id or file with another.
    """
    found: dict[str, CocoImage] = {}
    files: dict[str, str] = {}
    repeated = 0
    for index, entry in enumerate(entries):
        place = f"images[{index}]"
        key = _required_id(entry, "id", place)
        name = _file_name(entry, place)
        image = CocoImage(0, entry["id"], name, _size(entry, "width", place), _size(entry, "height", place))
        first = found.setdefault(key, image)
        if first is not image:
            if (first.file_name, first.width, first.height) != (name, image.width, image.height):
                raise CodetrError(
                    f"{place}.id: {_shown(entry['id'])} is the id of {first.file_name!r} already, got {name!r}; "
                    "expected one image an id"
                )
            repeated += 1
        elif files.setdefault(name, key) != key:
            raise CodetrError(
                f"{place}.file_name: {name!r} is the file of image {_shown(found[files[name]].id)} already; expected "
                "one entry a picture, with all its annotations"
            )
    if any("not_exhaustive_category_ids" in entry for entry in entries):
        notes.append(
            "as in LVIS, not all objects are annotated; COCO's AP, which is measured here, counts others as wrong"
        )
    if repeated:
        notes.append(f"{repeated} images are listed again with the same content; each counts once")
    numbers = {key: number for number, key in enumerate(_ascending(list(found)), 1)}
    return {key: replace(image, number=numbers[key]) for key, image in found.items()}


def _file_name(entry: Mapping[str, Any], place: str) -> str:
    """Return the file of an image; LVIS states only where on the web COCO's picture is."""
    url = entry.get("coco_url")
    path = urlsplit(url).path.lstrip("/") if isinstance(url, str) and entry.get("file_name") is None else ""
    return path or _required_text(entry, "file_name", place)


def read_categories(
    entries: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], notes: list[str]
) -> tuple[list[CocoCategory], dict[str, int]]:
    """Return the categories in their order, and their numbers by the text of their ids.

    Args:
        entries: of the file.
        annotations: of the file; they say which categories are in use.
        notes: are added to.

    Raises:
        CodetrError: an entry has no id or name, or two that are in use share one.
    """
    used = {key for key in (_id_text(each.get("category_id")) for each in annotations) if key is not None}
    by_key: dict[str, Mapping[str, Any]] = {}
    repeated = 0
    for index, entry in enumerate(entries):
        place = f"categories[{index}]"
        key, name = _required_id(entry, "id", place), _required_text(entry, "name", place)
        first = by_key.setdefault(key, entry)
        if first["name"] != name:
            raise CodetrError(
                f"{place}.id: {_shown(entry['id'])} is the id of {first['name']!r} already, got {name!r}; "
                "expected one category an id"
            )
        repeated += first is not entry
    if repeated:
        notes.append(f"{repeated} categories are listed again with the same name; each counts once")
    kept = _without_roots(by_key, used, notes)
    kept = _without_namesakes(kept, used, notes)
    order = _ascending(list(kept))
    categories = [CocoCategory(number, kept[key]["id"], kept[key]["name"]) for number, key in enumerate(order, 1)]
    return categories, {key: number for number, key in enumerate(order, 1)}


def _without_roots(
    by_key: Mapping[str, Mapping[str, Any]], used: set[str], notes: list[str]
) -> dict[str, Mapping[str, Any]]:
    """Leave out what only groups others, as the first category of Roboflow's files does."""
    grouped = Counter(
        entry["supercategory"]
        for entry in by_key.values()
        if isinstance(entry.get("supercategory"), str) and entry["supercategory"] != entry["name"]
    )
    # Its one class may bear the name of the group.
    roots = [key for key, entry in by_key.items() if key not in used and grouped[entry["name"]]]
    if roots and len(roots) < len(by_key):
        names = ", ".join(repr(by_key[key]["name"]) for key in roots[:5])
        notes.append(f"the supercategory {names} is left out: nothing is annotated with it")
        return {key: entry for key, entry in by_key.items() if key not in roots}
    return dict(by_key)


def _without_namesakes(
    by_key: Mapping[str, Mapping[str, Any]], used: set[str], notes: list[str]
) -> dict[str, Mapping[str, Any]]:
    """Leave out what shares its name with a category that is in use, and is not itself."""
    kept: dict[str, str] = {}  # keys by name
    for key, entry in by_key.items():
        other = kept.setdefault(entry["name"], key)
        if other == key:
            continue
        if {key, other} <= used:
            raise CodetrError(
                f"categories: {_shown(by_key[other]['id'])} and {_shown(entry['id'])} are both called "
                f"{entry['name']!r}, and both are in use; expected one category a name"
            )
        notes.append(f"of two categories called {entry['name']!r} the one that nothing is annotated with is left out")
        if key in used:
            kept[entry["name"]] = key
    return {key: by_key[key] for key in by_key if key in kept.values()}


def _ascending(keys: list[str]) -> list[str]:
    try:
        return sorted(keys, key=int)
    except ValueError:  # text has no order but the file's
        return keys


def read_annotations(
    entries: Sequence[Mapping[str, Any]],
    images: Mapping[str, CocoImage],
    categories: Mapping[str, int],
    notes: list[str],
) -> list[Annotation]:
    """Return the annotations that have a box, on images of the file.

    Args:
        entries: of the file.
        images: by the text of their ids.
        categories: their numbers by the text of their ids.
        notes: are added to.

    Raises:
        CodetrError: entries name no image or an unknown category, or their boxes cannot be; the first is shown and the
            number of such given. Or none of many is of an image or has a box.
    """
    faults = _Faults()
    counts: Counter[str] = Counter()
    found: list[Annotation] = []
    seen: set[tuple[int, int, Box]] = set()
    for index, entry in enumerate(entries):
        one = _annotation(f"annotations[{index}]", entry, images, categories, faults, counts)
        if one is not None:
            counts["repeated"] += (one.image, one.category, one.box) in seen
            seen.add((one.image, one.category, one.box))
            found.append(one)
    faults.check(len(entries))
    if entries and not found:
        _refuse_all(counts, len(entries))
    _refuse_relative(found)
    notes += [f"{counts[key]} of {len(entries)} annotations {text}" for key, text in _NOTES.items() if counts[key]]
    return found


_NOTES = {
    "elsewhere": "are of images that the file does not list; they are left out",
    "boxless": "have no box; they are left out",
    "empty": "have a box without width or height, which nothing can match; they are left out",
    "area": "have no area; it is taken from the box, which is larger than the outline that COCO's sizes go by",
    "repeated": "are another's image, category and box again; each counts",
}


class _Faults:
    """Entries that cannot be: the first of each kind, and how many there are."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, message: str) -> None:
        self.first.setdefault(kind, message)
        self.counts[kind] += 1

    def check(self, entries: int) -> None:
        if self.first:
            message = next(iter(self.first.values()))
            raise CodetrError(f"{message}; {sum(self.counts.values())} of {entries} annotations cannot be used")


def _annotation(
    place: str,
    entry: Mapping[str, Any],
    images: Mapping[str, CocoImage],
    categories: Mapping[str, int],
    faults: _Faults,
    counts: Counter[str],
) -> Annotation | None:
    """Return one annotation; None if it is left out or at fault, which is counted."""
    image, category = _id_text(entry.get("image_id")), _id_text(entry.get("category_id"))
    if image is None:
        faults.add("image", f"{place}.image_id: expected the id of an image, got {_shown(entry.get('image_id'))}")
        return None
    if image not in images:
        counts["elsewhere"] += 1
        return None
    if category is None or category not in categories:
        known = ", ".join(list(categories)[:5])
        got = _shown(entry.get("category_id"))
        faults.add("category", f"{place}.category_id: expected the id of a category ({known}, ...), got {got}")
        return None
    box, is_crowd = entry.get("bbox"), entry.get("iscrowd")
    if box is None or box == []:
        counts["boxless"] += 1
        return None
    numbers = _numbers(box)
    if numbers is None or min(numbers[2:]) < 0:
        faults.add(
            "box",
            f"{place}.bbox: expected [x, y, width, height] in pixels, finite numbers and sizes of at least 0, got "
            f"{_shown(box)}",
        )
        return None
    if is_crowd not in (None, 0, 1):
        faults.add("crowd", f"{place}.iscrowd: expected 0 or 1, got {_shown(is_crowd)}")
        return None
    if min(numbers[2:]) == 0:
        counts["empty"] += 1
        return None
    area = _number(entry.get("area"))
    counts["area"] += area is None or area <= 0
    size = numbers[2] * numbers[3] if area is None or area <= 0 else area
    return Annotation(images[image].number, categories[category], numbers, size, bool(is_crowd))


def _refuse_all(counts: Counter[str], entries: int) -> None:
    if counts["elsewhere"] == entries:
        raise CodetrError(f"none of the {entries} annotations is of an image that the file lists; compare the ids")
    raise CodetrError(f"none of the {entries} annotations has a box: expected bbox, [x, y, width, height] in pixels")


def _refuse_relative(found: Sequence[Annotation]) -> None:
    inside = all(x + width <= 1 and y + height <= 1 for _, _, (x, y, width, height), _, _ in found)
    if found and inside and any(side % 1 for each in found for side in each.box):
        raise CodetrError(
            "annotations: all boxes lie in 0..1, so they are shares of the image; expected bbox in pixels, "
            f"[x, y, width, height], got {list(found[0].box)} at first"
        )


def _required_id(entry: Mapping[str, Any], key: str, place: str) -> str:
    text = _id_text(entry.get(key))
    if text is None:
        raise CodetrError(f"{place}.{key}: expected a whole number or text, got {_shown(entry.get(key))}")
    return text


def _id_text(value: Any) -> str | None:
    """Return an id as text, in which 1, 1.0 and "1" are one; None for what is no id."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _required_text(entry: Mapping[str, Any], key: str, place: str) -> str:
    value = entry.get(key)
    # half of a surrogate pair can be neither printed nor written
    if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_unicode(value):
        raise CodetrError(f"{place}.{key}: expected text, got {_shown(value)}")
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(entry: Mapping[str, Any], key: str, place: str) -> int | None:
    """Return a side in pixels; None where the file does not know it, for which some programs write 0 or -1."""
    value = entry.get(key)
    number = _number(int(value)) if isinstance(value, str) and value.isdecimal() else _number(value)
    if value is None or (number is not None and number <= 0):
        return None
    if number is None or number % 1:
        raise CodetrError(f"{place}.{key}: expected a whole number of pixels, got {_shown(value)}")
    return int(number)


def _numbers(box: Any) -> Box | None:
    if not isinstance(box, list) or len(box) != 4:
        return None
    x, y, width, height = map(_number, box)
    return None if x is None or y is None or width is None or height is None else (x, y, width, height)


def _number(value: Any) -> float | None:
    """Return a finite number; None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def in_words(names: Sequence[object], most: int = 3) -> str:
    """Return the first names as a list in one line."""
    return ", ".join(map(printable, names[:most])) + (", ..." if len(names) > most else "")


def _shown(value: Any) -> str:
    return "nothing" if value is None else reprlib.repr(value)
