from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builder.pipeline.coco import CocoFile, read_coco
from builder.pipeline.coco_entries import CocoImage
from builder.pipeline.coco_pictures import Header, compare_with_pictures, find_pictures, read_header, turn
from serving.decode import decode_image
from serving.errors import CodetrError
from tests.builder.pipeline.coco_files import annotation, content, write

STORED = (64, 48)  # width, height
ALL = (1, 2, 3, 4, 5, 6, 7, 8)


def picture(path: Path, orientation: int | None = None, size: tuple[int, int] = STORED) -> Path:
    """Write a picture of noise, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, **({} if orientation is None else {"exif": exif}))
    return path


def images(*names: str) -> list[CocoImage]:
    return [CocoImage(number, number, name) for number, name in enumerate(names, 1)]


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        pytest.param("a.jpg", "a.jpg", id="as it is"),
        pytest.param("val/cats/a.jpg", "val/cats/a.jpg", id="in folders"),
        pytest.param("val\\cats\\a.jpg", "val/cats/a.jpg", id="of Windows"),
        pytest.param("C:\\data\\val\\a.jpg", "val/a.jpg", id="of a Windows disk"),
        pytest.param("a%20b%2Bc.jpg", "a b+c.jpg", id="URL-encoded"),
        pytest.param("100%.jpg", "100%.jpg", id="a per cent sign"),
        pytest.param("a%20b.jpg", "a%20b.jpg", id="what looks URL-encoded"),
        pytest.param("b\u00e4r.jpg", "ba\u0308r.jpg", id="accents decomposed on disk"),
        pytest.param("ba\u0308r.jpg", "b\u00e4r.jpg", id="accents composed on disk"),
        pytest.param("./a.jpg", "a.jpg", id="a dot"),
        pytest.param("/elsewhere/images/a.jpg", "a.jpg", id="an absolute path of another machine"),
        pytest.param("images/val/a.jpg", "a.jpg", id="folders that the folder includes"),
    ],
)
def test_a_picture_is_found_however_its_name_is_written(tmp_path: Path, written: str, on_disk: str) -> None:
    path = picture(tmp_path / on_disk)
    assert find_pictures(tmp_path, images(written)) == {1: path}


def test_an_absolute_path_is_that_file(tmp_path: Path) -> None:
    path = picture(tmp_path / "elsewhere" / "a.jpg")
    picture(tmp_path / "here" / "a.jpg")
    assert find_pictures(tmp_path / "here", images(str(path))) == {1: path}


def test_missing_pictures_have_no_path(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    names = ("none.jpg", "a.jpg", "folder.jpg", "x" * 5000, "sub/a.jpg")
    assert find_pictures(tmp_path, images(*names)) == {2: path}, "no folder is left out of one name alone"
    assert find_pictures(tmp_path, images("none.jpg")) == {}


def test_two_images_that_are_one_picture_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a b.jpg")
    with pytest.raises(CodetrError, match=r"images 1 and 2 are both .*a b\.jpg; expected one entry a picture"):
        find_pictures(tmp_path, images("a b.jpg", "a%20b.jpg"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", ALL)
def test_a_header_tells_the_size_that_the_service_decodes(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = picture(tmp_path / f"a.{suffix}", orientation)
    header = read_header(path)
    assert header == Header(STORED, orientation)
    assert header.upright == decode_image(path.read_bytes()).shape[1::-1]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_impossible_orientation_is_none(tmp_path: Path, value: int) -> None:
    assert read_header(picture(tmp_path / "a.jpg", value)) == Header(STORED, 1)


def test_metadata_never_keep_a_header_from_being_read(tmp_path: Path) -> None:
    for count, exif in enumerate(
        [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    ):
        path = tmp_path / f"{count}.jpg"
        Image.new("RGB", STORED).save(path, exif=exif)
        assert read_header(path) == Header(STORED, 1)


@pytest.mark.parametrize("orientation", ALL)
def test_large_metadata_do_not_keep_a_header_from_being_read(tmp_path: Path, orientation: int) -> None:
    path = picture(tmp_path / "a.png", orientation)
    whole = path.read_bytes()
    body = b"zTXtComment\0\0" + zlib.compress(bytes(2**21))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(whole[:33] + chunk + whole[33:])
    with pytest.raises(ValueError, match="Decompressed"):
        Image.open(path)
    header = read_header(path)
    assert header == Header(STORED, orientation)


def test_a_large_picture_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(path).stored == (10_000, 10_000)


@pytest.mark.parametrize("orientation", ALL)
def test_a_box_is_turned_as_the_service_turns_pixels(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((STORED[1], STORED[0], 3), np.uint8)
    pixels[5:15, 30:34] = 255
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    rows, columns = np.nonzero(decode_image(path.read_bytes())[..., 0])
    expected = (columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min())
    assert turn((30, 5, 4, 10), read_header(path)) == expected


def annotated(
    tmp_path: Path, boxes: dict[str, list[list[float]]], stated: dict[str, Any]
) -> tuple[CocoFile, dict[int, Path]]:
    """A file of pictures by name, each with boxes and, if it is in `stated`, a width and a height."""
    entries = [
        {"id": number, "file_name": name}
        | ({} if stated.get(name) is None else dict(zip(("width", "height"), stated[name], strict=True)))
        for number, name in enumerate(boxes, 1)
    ]
    objects = [annotation(image_id=number, bbox=box) for number, each in enumerate(boxes.values(), 1) for box in each]
    coco = read_coco(write(tmp_path / "a.json", content(images=entries, annotations=objects)))
    return coco, {number: tmp_path / name for number, name in enumerate(boxes, 1)}


def boxes_of(coco: CocoFile) -> list[list[float]]:
    return [list(each.box) for each in coco.annotations]


# Of 64x48 stored, 48x64 upright: each fits one of them alone, or both.
OF_STORED, OF_UPRIGHT, OF_BOTH = [50.0, 4, 12, 10], [4.0, 50, 10, 12], [4.0, 5, 10, 12]
# 6: what is at the left is at the top in the upright picture
TURNED = [48 - 4 - 10, 50, 10, 12]


def test_upright_sizes_are_taken_as_they_are(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 6)
    picture(tmp_path / "b.jpg")
    coco, paths = annotated(
        tmp_path, {"a.jpg": [OF_UPRIGHT], "b.jpg": [OF_STORED]}, {"a.jpg": (48, 64), "b.jpg": (64, 48)}
    )
    assert compare_with_pictures(coco, paths) == coco


def test_sizes_that_are_missing_are_those_of_the_upright_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 8)
    coco, paths = annotated(tmp_path, {"a.jpg": [OF_UPRIGHT]}, {})
    (image,) = compare_with_pictures(coco, paths).images
    assert (image.width, image.height) == (48, 64)


@pytest.mark.parametrize("stated", [STORED, None], ids=["stated", "no size"])
def test_boxes_of_stored_pixels_are_turned(tmp_path: Path, stated: tuple[int, int] | None) -> None:
    for name, orientation in (("a.jpg", 6), ("b.jpg", 6), ("c.jpg", 1), ("d.jpg", 3)):
        picture(tmp_path / name, orientation)
    boxes = {"a.jpg": [OF_STORED, OF_BOTH], "b.jpg": [OF_BOTH], "c.jpg": [OF_STORED], "d.jpg": [OF_STORED]}
    coco, paths = annotated(tmp_path, boxes, dict.fromkeys(boxes, stated))
    found = compare_with_pictures(coco, paths)
    both = [48 - 5 - 12, 4, 12, 10]
    assert boxes_of(found) == [TURNED, both, both, OF_STORED, [64 - 50 - 12, 48 - 4 - 10, 12, 10]]
    assert [(image.width, image.height) for image in found.images] == [(48, 64), (48, 64), STORED, STORED]
    (note,) = found.notes
    assert "a.json: 2 of 4 pictures are stored turned (EXIF orientation), and their boxes are of the stored" in note
    assert [each.area for each in found.annotations] == [each.area for each in coco.annotations]


def test_boxes_of_upright_pictures_beside_stored_sizes_are_left_alone(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 6)
    coco, paths = annotated(tmp_path, {"a.jpg": [OF_UPRIGHT, OF_BOTH]}, {"a.jpg": STORED})
    found = compare_with_pictures(coco, paths)
    assert boxes_of(found) == [OF_UPRIGHT, OF_BOTH]
    assert (found.images[0].width, found.images[0].height) == (48, 64)
    assert "their boxes are taken to be of the upright pictures" in found.notes[0]


@pytest.mark.parametrize(
    "boxes",
    [[OF_BOTH], [OF_STORED, OF_UPRIGHT], [OF_STORED] * 9 + [OF_UPRIGHT]],
    ids=["none tells", "both", "one of ten"],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, boxes: list[list[float]]) -> None:
    picture(tmp_path / "a.jpg", 6)
    coco, paths = annotated(tmp_path, {"a.jpg": boxes}, {"a.jpg": STORED})
    message = (
        r"a\.json: 1 of 1 pictures are stored turned .* cannot be told \(a\.jpg: 64x48 stored, 48x64 upright\); state "
    )
    with pytest.raises(CodetrError, match=message) as caught:
        compare_with_pictures(coco, paths)
    assert "\n" not in str(caught.value)


def test_a_box_among_many_that_reaches_beyond_its_picture_decides_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 6)
    coco, paths = annotated(tmp_path, {"a.jpg": [OF_STORED] * 11 + [OF_UPRIGHT]}, {"a.jpg": STORED})
    assert boxes_of(compare_with_pictures(coco, paths))[:11] == [TURNED] * 11


def test_turned_pictures_without_boxes_need_no_answer(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 6)
    picture(tmp_path / "b.jpg")
    coco, paths = annotated(tmp_path, {"a.jpg": [], "b.jpg": [OF_BOTH]}, {"a.jpg": STORED})
    assert compare_with_pictures(coco, paths).images[0].width == 48


def test_mirrored_pictures_are_noted_where_nothing_tells(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 3)
    coco, paths = annotated(tmp_path, {"a.jpg": [OF_BOTH]}, {"a.jpg": STORED})
    found = compare_with_pictures(coco, paths)
    assert boxes_of(found) == [OF_BOTH]
    assert "1 pictures are stored turned (EXIF orientation) in a way that no size tells" in found.notes[0]


def test_mirrored_pictures_are_upright_beside_upright_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 3)
    picture(tmp_path / "b.jpg", 6)
    coco, paths = annotated(
        tmp_path, {"a.jpg": [OF_BOTH], "b.jpg": [OF_UPRIGHT]}, {"a.jpg": STORED, "b.jpg": STORED[::-1]}
    )
    assert compare_with_pictures(coco, paths) == coco


@pytest.mark.parametrize(
    ("orientation", "stated"),
    [
        pytest.param(1, (32, 24), id="a smaller copy"),
        pytest.param(1, (48, 64), id="sides exchanged"),
        pytest.param(6, (24, 32), id="a smaller upright copy"),
        pytest.param(1, (64, 49), id="by a pixel"),
    ],
)
def test_annotations_of_pictures_of_another_size_are_refused_and_counted(
    tmp_path: Path, orientation: int, stated: tuple[int, int]
) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    for name in names:
        picture(tmp_path / name, orientation)
    coco, paths = annotated(tmp_path, {name: [OF_BOTH] for name in names}, dict.fromkeys(names[:4], stated))
    size = "48x64" if orientation == 6 else "64x48"
    message = (
        rf"4 of 5 pictures have another size than the file states \(a\.jpg: {stated[0]}x{stated[1]} in the file, "
        rf"{size} in the picture, b\.jpg: .*, c\.jpg: .*, \.\.\.\); give the pictures that were annotated"
    )
    with pytest.raises(CodetrError, match=message):
        compare_with_pictures(coco, paths)


def test_what_has_no_picture_is_left_as_it_is(tmp_path: Path) -> None:
    coco, _ = annotated(tmp_path, {"a.jpg": [OF_STORED]}, {"a.jpg": (1, 1)})
    assert compare_with_pictures(coco, {}) == coco


def test_pictures_that_cannot_be_read_are_named_and_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:12])
    Image.new("RGB", STORED).save(tmp_path / "d.tif")
    coco, paths = annotated(tmp_path, {name: [] for name in ("a.jpg", "b.jpg", "c.jpg", "d.tif")}, {})
    message = (
        r"3 of 4 images cannot be read: .*b\.jpg \(expected JPEG, .*c\.jpg \(damaged JPEG .*d\.tif \(expected JPEG"
    )
    with pytest.raises(CodetrError, match=message):
        compare_with_pictures(coco, paths)


def test_boxes_given_by_their_corners_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    corners = [[40.0, 30, 60, 45], [20.0, 20, 64, 48], [1.0, 1, 5, 5]]
    coco, paths = annotated(tmp_path, {"a.jpg": corners}, {})
    message = (
        r"a\.json: 2 of 3 boxes reach far beyond their picture, such as \[40.0, 30.0, 60.0, 45.0\] in one of 64x48"
    )
    with pytest.raises(CodetrError, match=message):
        compare_with_pictures(coco, paths)


def test_a_line_break_in_a_file_name_makes_no_second_line(tmp_path: Path) -> None:
    picture(tmp_path / "a\nb.jpg")
    coco, paths = annotated(tmp_path, {"a\nb.jpg": [OF_BOTH]}, {"a\nb.jpg": (1, 1)})
    with pytest.raises(CodetrError, match=r"\(a\\nb\.jpg: 1x1 in the file, 64x48 in the picture\)") as caught:
        compare_with_pictures(coco, paths)
    assert "\n" not in str(caught.value)


def test_some_boxes_that_reach_beyond_are_noted(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    coco, paths = annotated(tmp_path, {"a.jpg": [[40.0, 30, 60, 45], OF_BOTH, [0.0, 0, 64.9, 48.9], OF_STORED]}, {})
    found = compare_with_pictures(coco, paths)
    assert boxes_of(found) == boxes_of(coco)
    assert found.notes == (f"{tmp_path / 'a.json'}: 1 of 4 boxes reach beyond their picture",)
