from __future__ import annotations

import struct

import pytest

from codetr_client.exif import read_orientation

SHORT, LONG, TEXT = 3, 4, 2


def tiff(value: int, order: str = "<", tag: int = 0x0112, kind: int = SHORT, count: int = 1) -> bytes:
    """A TIFF structure with one entry in its first directory."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    stored = struct.pack(f"{order}HH", value, 0) if kind != LONG else struct.pack(f"{order}I", value)
    return start + struct.pack(f"{order}IHHHI", 8, 1, tag, kind, count) + stored + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little endian", "big endian"])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_read(order: str, value: int) -> None:
    assert read_orientation(tiff(value, order)) == value
    assert read_orientation(b"Exif\0\0" + tiff(value, order)) == value


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"Exif\0\0", id="prefix alone"),
        pytest.param(b"not a TIFF header", id="no TIFF"),
        pytest.param(tiff(6)[:8], id="cut behind the header"),
        pytest.param(tiff(6)[:15], id="cut inside the entry"),
        pytest.param(b"II*\0\xff\xff\xff\xff", id="directory far outside"),
        pytest.param(b"II*\0\x08\0\0\0\xff\xff", id="more entries than bytes"),
        pytest.param(tiff(0), id="0"),
        pytest.param(tiff(9), id="9"),
        pytest.param(tiff(6, tag=0x0113), id="another tag"),
        pytest.param(tiff(ord("x"), kind=TEXT), id="text"),
    ],
)
def test_what_cannot_be_read_is_upright(exif: bytes) -> None:
    assert read_orientation(exif) == 1


def test_an_entry_of_another_type_counts_as_in_opencv() -> None:
    assert read_orientation(tiff(6, kind=LONG)) == 6
    assert read_orientation(tiff(6, count=3)) == 6
