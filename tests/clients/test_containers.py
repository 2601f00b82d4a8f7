from __future__ import annotations

import struct

import pytest

from codetr_client.containers import read_bmp, read_png, read_webp
from codetr_client.errors import InvalidImageError
from tests import pictures
from tests.pictures import chunk, encode, png_parts, riff, riff_chunk


def test_a_png_is_handed_on_without_its_metadata() -> None:
    before, pixels, end = png_parts(encode(pictures.RGB, "PNG"))
    text = chunk(b"tEXt", b"key\0value")
    container = read_png(before + text + pixels + text + chunk(b"eXIf", b"tiff") + end + b"trailer")
    assert container.pixels == before + pixels + end
    assert (container.width, container.height, container.exif) == (53, 37, b"tiff")


def test_exif_with_a_wrong_checksum_is_none() -> None:
    before, pixels, end = png_parts(encode(pictures.RGB, "PNG"))
    broken = chunk(b"eXIf", b"tiff", crc_error=1)
    assert read_png(before + broken + chunk(b"eXIf", b"sound") + pixels + end).exif == b"sound"


def test_a_palette_is_kept_where_it_makes_pixels() -> None:
    assert b"PLTE" in read_png(encode(pictures.RGB.quantize(4), "PNG")).pixels
    before, pixels, end = png_parts(encode(pictures.RGB, "PNG"))
    assert b"PLTE" not in read_png(before + chunk(b"PLTE", b"suggested") + pixels + end).pixels


def test_an_absent_end_is_added_and_a_cut_chunk_of_pixels_refused() -> None:
    before, pixels, end = png_parts(encode(pictures.RGB, "PNG"))
    assert read_png(before + pixels).pixels == before + pixels + end
    with pytest.raises(InvalidImageError, match="damaged PNG image: it is cut short"):
        read_png(before + pixels[:-1])


@pytest.mark.parametrize("form", ["lossy", "lossless", "with a profile"])
def test_the_size_of_a_webp_is_that_of_its_header(form: str) -> None:
    options = {"lossy": {}, "lossless": {"lossless": True}, "with a profile": {"icc_profile": bytes(99)}}[form]
    container = read_webp(encode(pictures.RGB, "WEBP", **options))
    assert (container.width, container.height) == (53, 37)


def test_a_webp_is_handed_on_without_its_metadata_and_without_their_flags() -> None:
    data = encode(pictures.RGB, "WEBP", exif=b"odd", xmp=b"<x>", icc_profile=bytes(99))
    container = read_webp(data)
    assert container.exif == b"odd"
    assert all(kind not in container.pixels for kind in (b"EXIF", b"XMP ", b"ICCP"))
    assert container.pixels[20] == 0, "the flags of VP8X"
    assert len(container.pixels) == 8 + struct.unpack_from("<I", container.pixels, 4)[0]


def test_of_an_animation_one_frame_is_handed_on() -> None:
    data = encode(pictures.RGB, "WEBP", save_all=True, append_images=[pictures.RGBA] * 3)
    assert data.count(b"ANMF") > 1
    assert read_webp(data).pixels.count(b"ANMF") == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(encode(pictures.RGB, "WEBP")[:-9], "damaged WEBP image: it is cut short", id="pixels"),
        pytest.param(riff(b"VP8L\x0a\0\0\0\x2f"), "damaged WEBP header: it is cut short", id="header"),
        pytest.param(riff(riff_chunk(b"EXIF", b"x")), "expected a chunk VP8X, VP8L or VP8", id="no pixels"),
    ],
)
def test_a_cut_webp_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidImageError, match=message):
        read_webp(data)


def test_a_webp_whose_metadata_are_cut_is_whole() -> None:
    data = encode(pictures.RGB, "WEBP", exif=b"x" * 50)
    assert read_webp(data[:-20]).pixels == read_webp(data).pixels


@pytest.mark.parametrize(
    ("header", "size"),
    [
        pytest.param(struct.pack("<IHHHH", 12, 53, 37, 1, 24), (53, 37), id="OS/2"),
        pytest.param(struct.pack("<IiiHHII", 40, 53, 37, 1, 24, 0, 0), (53, 37), id="Windows"),
        pytest.param(struct.pack("<IiiHHII", 40, 53, -37, 1, 24, 0, 0), (53, 37), id="top down"),
        pytest.param(struct.pack("<IiiHHII", 40, -53, 37, 1, 24, 0, 0), (-53, 37), id="refused later"),
    ],
)
def test_the_size_of_a_bmp_is_that_of_its_header(header: bytes, size: tuple[int, int]) -> None:
    container = read_bmp(b"BM" + bytes(12) + header)
    assert (container.width, container.height) == size
    with pytest.raises(InvalidImageError, match="damaged BMP header: it is cut short"):
        read_bmp(b"BM" + bytes(20))


@pytest.mark.parametrize(
    ("read", "data"),
    [
        pytest.param(read_png, pictures.png(1, 1, 8, 0, b"\0\0")[:33] + chunk(b"tEXt", b"") * 100_001, id="PNG"),
        pytest.param(read_webp, riff(riff_chunk(b"EXIF", b"") * 100_001), id="WebP"),
    ],
)
def test_parts_without_end_are_refused(read, data: bytes) -> None:
    with pytest.raises(InvalidImageError, match="more than 100000 chunks"):
        read(data)
