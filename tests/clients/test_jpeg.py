from __future__ import annotations

import base64
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from codetr_client.errors import InvalidImageError
from codetr_client.jpeg import END, fault, reaches_the_end, read_jpeg, without_metadata
from serving.decode import ImageLimits, decode_image
from tests.pictures import encode, photograph, segment

PHOTOGRAPH = Image.fromarray(photograph())
GRAY = Image.new("RGB", (130, 90), (128, 128, 128))  # the colour that libjpeg gives to what is missing
ACCEPT = ImageLimits(damaged_jpeg="accept")

# 20x12 pixels with arithmetic coding (cjpeg -arithmetic), which Pillow cannot write.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAUDBAQEAwUEBAQFBQUGBwwIBwcHBw8LCwkMEQ8SEhEPERETFhwXExQaFRERGCEYGh0dHx8fExciJCIe"
    "JBweHx7/2wBDAQUFBQcGBw4ICA4eFBEUHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh7/yQARCAAMABQD"
    "ASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANHdWfxDxEtwe8c30tTjr1xVyuwk9Snk2/chPSnxQUMV753Wl6ve0VZ90eLt0yop"
    "7EBCZb9M0o5SFjRHr4btgsd4o3pw/9k="
)
ARITHMETIC_PROGRESSIVE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAUDBAQEAwUEBAQFBQUGBwwIBwcHBw8LCwkMEQ8SEhEPERETFhwXExQaFRERGCEYGh0dHx8fExciJCIe"
    "JBweHx7/2wBDAQUFBQcGBw4ICA4eFBEUHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh7/ygARCAAMABQD"
    "ASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8Ao4AAhThfpeiijKEYK9D/zAAEEAX/2gAIAQEAAQUCE4/v7frilB4ZVmVz8lvr/8wABBEF"
    "/9oACAEDAQE/ARYo9sxpUXZA/8wABBEF/9oACAECAQE/ARVNjcqA/8wABBAF/9oACAEBAAY/Al4T8v/MAAQQBf/aAAgBAQABPyHXbsjt+//aAAwD"
    "AQACAAMAAAAQ3aD/zAAEEQX/2gAIAQMBAT8Q1RaUIP/MAAQRBf/aAAgBAgEBPxAjwP/MAAQQBf/aAAgBAQABPxCl4wnbLBHOURD/2Q=="
)

FORMS: dict[str, bytes] = {
    "baseline": encode(PHOTOGRAPH, "JPEG"),
    "chroma as fine as luma": encode(PHOTOGRAPH, "JPEG", subsampling=0, quality=95),
    "grayscale": encode(PHOTOGRAPH.convert("L"), "JPEG"),
    "RGB components": encode(PHOTOGRAPH, "JPEG", keep_rgb=True),
    "optimised tables": encode(PHOTOGRAPH, "JPEG", optimize=True),
    "restart markers": encode(PHOTOGRAPH, "JPEG", restart_marker_blocks=3),
    "a restart marker a row": encode(PHOTOGRAPH, "JPEG", restart_marker_rows=1),
    "progressive": encode(PHOTOGRAPH, "JPEG", progressive=True),
    "progressive grayscale": encode(PHOTOGRAPH.convert("L"), "JPEG", progressive=True),
    "progressive with restart markers": encode(PHOTOGRAPH, "JPEG", progressive=True, restart_marker_blocks=3),
    "CMYK": encode(PHOTOGRAPH.convert("CMYK"), "JPEG"),
    "progressive CMYK": encode(PHOTOGRAPH.convert("CMYK"), "JPEG", progressive=True),
    "gray as what is missing": encode(GRAY, "JPEG"),
    "gray with optimised tables": encode(GRAY, "JPEG", optimize=True, subsampling=0),
    "gray with restart markers": encode(GRAY, "JPEG", restart_marker_blocks=2),
    "gray and progressive": encode(GRAY, "JPEG", progressive=True),
}
BASELINE = FORMS["baseline"]


def opencv(data: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1]


def without(data: bytes, marker: int) -> bytes:
    """The file without the segments of a marker ahead of its pixels."""
    kept, start = data[:2], 2
    while data[start + 1] != 0xDA:
        end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        kept += b"" if data[start + 1] == marker else data[start:end]
        start = end
    return kept + data[start:]


def cut(data: bytes, share: float) -> bytes:
    """The file with a share of its pixels' bytes and an end marker, as a careless program repairs it."""
    start = read_jpeg(data).scans[0].start
    return data[: start + int((len(data) - start) * share)] + END


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_picture_is_found_whole(form: str) -> None:
    jpeg = read_jpeg(FORMS[form])
    assert (jpeg.width, jpeg.height) == (130, 90)
    assert fault(jpeg, FORMS[form]) is None
    assert reaches_the_end(jpeg, FORMS[form])


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (16, 16), (17, 33), (1, 40), (40, 1)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
def test_sizes_that_fill_no_block_are_whole(size: tuple[int, int], options: dict[str, int]) -> None:
    data = encode(GRAY.resize(size), "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data), opencv(data))


# What programs and cameras write, and every decoder shows.
REAL_LIFE: dict[str, bytes] = {
    "bytes behind the end": BASELINE + b"\0" * 999,
    "another picture behind the end": BASELINE + FORMS["progressive"],
    "two pictures in one (MPO)": encode(PHOTOGRAPH, "MPO", save_all=True, append_images=[GRAY]),
    "fill bytes before a marker": BASELINE[:2] + b"\xff" * 50 + BASELINE[2:],
    "fill bytes before the end": BASELINE[:-2] + b"\xff" * 9 + END,
    "zeros before the end": BASELINE[:-2] + b"\0" * 9 + END,
    "bytes between segments": BASELINE[:20] + b"abc\0" + BASELINE[20:],
    "a frame of a video, without Huffman tables": without(BASELINE, 0xC4),
    "no JFIF segment": without(BASELINE, 0xE0),
    "a restart marker too many": FORMS["a restart marker a row"][:-2] + b"\xff\xd5" + END,
    "arithmetic coding": ARITHMETIC,
    "arithmetic coding, progressive": ARITHMETIC_PROGRESSIVE,
}


@pytest.mark.parametrize("kind", REAL_LIFE)
def test_what_is_odd_and_whole_is_accepted(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(REAL_LIFE[kind]), opencv(REAL_LIFE[kind]))


# Of every program that writes into a file, something that a reader could stumble over.
METADATA = [
    (0xE0, b""),
    (0xE0, b"JFIF"),
    (0xE0, b"JFIF\0\1"),
    (0xE1, b""),
    (0xE1, b"Exif\0\0"),
    (0xE1, b"Exif\0\0MM\0*"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
    (0xE2, b"ICC_PROFILE\0"),
    (0xE2, b"ICC_PROFILE\0\1\2"),
    (0xE2, b"MPF\0"),
    (0xE2, b"MPF\0MM\0*"),
    (0xE2, b"FPXR\0"),
    (0xED, b"Photoshop 3.0\0"),
    (0xED, b"Photoshop 3.0\x008BIM\4\4"),
    (0xEE, b"Adobe"),
    (0xFE, b""),
]


@pytest.mark.parametrize("form", ["baseline", "progressive", "CMYK"])
@pytest.mark.parametrize(("marker", "body"), METADATA)
def test_broken_metadata_do_not_cost_the_pixels(form: str, marker: int, body: bytes) -> None:
    data = FORMS[form]
    broken = data[:2] + segment(marker, body) + data[2:]
    np.testing.assert_array_equal(decode_image(broken), decode_image(data))
    np.testing.assert_array_equal(decode_image(data[:2] + b"\xff\xe5\0\0" + data[2:]), decode_image(data))


def test_metadata_are_left_out_but_for_what_tells_the_colours() -> None:
    data = encode(PHOTOGRAPH.convert("CMYK"), "JPEG", comment=b"a remark", icc_profile=bytes(70_000))
    stripped = without_metadata(data, read_jpeg(data))
    assert b"a remark" not in stripped
    assert b"ICC_PROFILE" not in stripped
    assert b"Adobe" in stripped
    assert len(stripped) < len(data) - 70_000


def test_the_first_exif_segment_counts_wherever_it_stands() -> None:
    xmp, first, second = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"), b"Exif\0\0first", b"Exif\0\0second"
    data = BASELINE[:2] + xmp + segment(0xE1, first) + segment(0xE1, second) + BASELINE[2:]
    assert read_jpeg(data).exif == first


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("form", [form for form in FORMS if "progressive" not in form])
def test_a_cut_picture_with_an_end_marker_is_refused(form: str, share: float) -> None:
    data = cut(FORMS[form], share)
    with pytest.raises(InvalidImageError, match=r"its data end before its last row|restart markers are missing"):
        decode_image(data)
    accepted = decode_image(data, ACCEPT)
    assert accepted.shape == (90, 130, 3)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4])
@pytest.mark.parametrize("form", [form for form in FORMS if "progressive" in form])
def test_a_progressive_picture_that_lacks_scans_is_refused(form: str, share: float) -> None:
    data = cut(FORMS[form], share)
    with pytest.raises(InvalidImageError, match=r"it is cut short, (scans are|its end marker is) missing"):
        decode_image(data)
    if share == 0.02:  # amid data, not amid a header of a scan
        assert decode_image(data, ACCEPT).shape == (90, 130, 3)


def test_a_cut_in_the_last_scan_of_a_progressive_picture_is_not_seen_and_hardly_changes_it() -> None:
    whole, data = FORMS["progressive"], cut(FORMS["progressive"], 0.9)
    difference = np.abs(decode_image(data).astype(int) - decode_image(whole))
    assert 0 < difference.max() <= 32
    assert difference.mean() < 1


def test_a_picture_cut_inside_a_table_is_accepted_up_to_it() -> None:
    whole = FORMS["progressive"]
    table = read_jpeg(whole).scans[1].end
    for end in (table + 3, table + 10):
        data = whole[:end]
        with pytest.raises(InvalidImageError, match="its end marker is missing"):
            decode_image(data)
        np.testing.assert_array_equal(decode_image(data, ACCEPT), decode_image(whole[:table], ACCEPT))


def test_a_cut_picture_can_be_accepted_with_and_without_an_end_marker() -> None:
    data = cut(BASELINE, 0.5)
    accepted = decode_image(data, ACCEPT)
    np.testing.assert_array_equal(accepted, decode_image(data[:-2], ACCEPT))
    np.testing.assert_array_equal(accepted[:16], opencv(BASELINE)[:16])
    assert (accepted[-1] == 128).all(), "gray, as libjpeg fills it"


def test_a_cut_picture_is_not_taken_for_whole_because_of_another_behind_it() -> None:
    half = cut(BASELINE, 0.5)[:-2]
    for behind in (BASELINE, FORMS["progressive"]):
        with pytest.raises(InvalidImageError, match="its data end before its last row"):
            decode_image(half + behind)
        with pytest.raises(InvalidImageError, match="its end marker is missing"):
            decode_image(cut(FORMS["progressive"], 0.95)[:-2] + behind)


@pytest.mark.parametrize("marker", [0x30, 0xD3, 0xDA, 0xFE])
def test_a_marker_amid_the_data_is_damage(marker: int) -> None:
    middle = read_jpeg(BASELINE).scans[0].start + 400
    with pytest.raises(InvalidImageError, match="its data end before its last row"):
        decode_image(BASELINE[:middle] + bytes([0xFF, marker]) + BASELINE[middle:])


def test_an_interval_that_got_lost_is_damage() -> None:
    data = FORMS["a restart marker a row"]
    lost = data[: data.index(b"\xff\xd1")] + data[data.index(b"\xff\xd2") :]
    with pytest.raises(InvalidImageError, match="restart markers are missing"):
        decode_image(lost)


def test_restart_markers_are_counted_across_the_pieces_that_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FORMS["restart markers"]
    lost = whole[: whole.index(b"\xff\xd1")] + whole[whole.index(b"\xff\xd2") :]
    for size in (1, 7, 64):
        monkeypatch.setattr("codetr_client.jpeg._PIECE", size)
        assert fault(read_jpeg(whole), whole) is None
        assert fault(read_jpeg(lost), lost) == "restart markers are missing"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"\xff\xd8\xff", "it has no frame", id="start alone"),
        pytest.param(b"\xff\xd8" + END, "it has no frame", id="start and end"),
        pytest.param(BASELINE[:3], "it has no frame", id="no marker"),
        pytest.param(b"\xff\xd8" + segment(0xC0, b"\x08\0\1\0"), "a segment is cut short", id="frame"),
        pytest.param(without(BASELINE, 0xC0), "it has no frame", id="no frame"),
        pytest.param(
            b"\xff\xd8" + segment(0xC0, b"\x08\0\1\0\1\2" + bytes(6)), "1, 3 or 4 components, got 2", id="two colours"
        ),
        pytest.param(b"\xff\xd8" + segment(0xFE, b"") * 100_001, "more than 100000 segments", id="segments"),
        pytest.param(
            FORMS["progressive"][:-2] + segment(0xDA, b"\1\1\0\1\x3f\0") * 101 + END, "more than 100 scans", id="scans"
        ),
    ],
)
def test_headers_that_cannot_be_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidImageError, match=f"damaged JPEG header: .*{message}"):
        read_jpeg(data)
