from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codetr_client.errors import InvalidImageError
from codetr_client.images import encode, encode_all, open_upright
from serving.decode import decode_image
from tests.pictures import chunk, png_parts, smooth_image

EXIF_ORIENTATION = 0x0112


def decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def rotated(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[EXIF_ORIENTATION] = 6
    return image


def test_files_and_bytes_travel_unchanged(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"anything")
    assert encode(tmp_path / "a.jpg") == encode(str(tmp_path / "a.jpg")) == encode(b"anything") == b"anything"


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(slice(None), id="as it is"),
        pytest.param((slice(None), slice(None), slice(None, None, -1)), id="a BGR view, not contiguous"),
    ],
)
def test_arrays_travel_without_loss(pixels: np.ndarray, view) -> None:
    assert np.array_equal(np.asarray(decoded(encode(pixels[view]))), pixels[view])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pillow_modes_that_png_knows_travel_unchanged(pixels: np.ndarray, mode: str) -> None:
    image = Image.fromarray(pixels).convert(mode)
    received = decoded(encode(image))
    assert received.mode == mode
    assert np.array_equal(np.asarray(received), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_pillow_modes_travel_as_rgb(pixels: np.ndarray, mode: str) -> None:
    image = Image.fromarray(pixels).convert(mode)
    assert np.array_equal(np.asarray(decoded(encode(image))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "base"), [("RGBa", "RGBA"), ("La", "LA")])
def test_colours_multiplied_with_alpha_are_divided_by_it(pixels: np.ndarray, mode: str, base: str) -> None:
    image = Image.fromarray(pixels).convert(base)
    image.putalpha(128)
    received = decoded(encode(image.convert(mode)))
    assert received.mode == base
    assert np.abs(np.asarray(received).astype(int) - np.asarray(image)).max() <= 1


def test_a_palette_with_alpha_travels_as_its_colours(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels).quantize(8)
    palette = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 8)
    for mode in ("P", "PA"):
        paletted = palette.convert(mode) if mode == "PA" else palette.copy()
        paletted.putpalette(bytes(range(24)), "RGB")
        expected = np.arange(24, dtype=np.uint8).reshape(8, 3)[np.asarray(palette)]
        assert np.array_equal(np.asarray(decoded(encode(paletted)).convert("RGB")), expected), mode
    image.info["transparency"] = bytes([0, 9])
    assert "transparency" not in decoded(encode(image)).info


SIXTEEN_BITS = np.array([[0, 255, 256], [0x8000, 0x80FF, 0xFFFF]], np.uint16)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_of_sixteen_bits_the_upper_eight_travel_as_the_server_has_it(mode: str) -> None:
    image = Image.fromarray(SIXTEEN_BITS)
    assert image.mode == "I;16"
    if mode == "I":
        image = Image.fromarray(SIXTEEN_BITS.astype(np.int32))
    elif mode != "I;16":
        stored = SIXTEEN_BITS.astype(">u2" if mode == "I;16B" else "<u2")
        image = Image.frombytes(mode, (3, 2), stored.tobytes())
    buffer = io.BytesIO()
    Image.fromarray(SIXTEEN_BITS).save(buffer, "PNG")
    assert np.array_equal(decode_image(encode(image)), decode_image(buffer.getvalue()))
    assert decode_image(encode(image))[..., 0].tolist() == [[0, 0, 1], [128, 128, 255]]
    assert np.asarray(open_upright(image))[..., 0].tolist() == [[0, 0, 1], [128, 128, 255]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_file_of_sixteen_bits_is_the_same_opened_and_as_it_is(tmp_path: Path, form: str) -> None:
    Image.fromarray(SIXTEEN_BITS).save(tmp_path / "deep", form)
    with Image.open(tmp_path / "deep") as image:
        assert decode_image(encode(image))[..., 0].tolist() == [[0, 0, 1], [128, 128, 255]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(Image.new("F", (3, 2), 0.5), "mode F has no defined range: scale it", id="floats"),
        pytest.param(Image.new("I", (3, 2), -1), r"must hold 16 bits, 0..65535, not -1..-1", id="negative"),
        pytest.param(Image.new("I", (3, 2), 70_000), r"not 70000..70000", id="more than 16 bits"),
        pytest.param(Image.new("I", (3, 2), 255), "no value is above 255: convert it to L", id="8 bits as I"),
        pytest.param(Image.new("RGB", (0, 2)), "must have pixels, not 0x2", id="no columns"),
    ],
)
def test_pillow_images_without_defined_colours_are_refused(image: Image.Image, message: str) -> None:
    for use in (encode, open_upright):
        with pytest.raises(InvalidImageError, match=message):
            use(image)


def test_a_mode_that_pillow_cannot_convert_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError("conversion not supported")

    image = Image.new("CMYK", (3, 2))
    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(InvalidImageError, match="mode CMYK cannot be sent: convert it to RGB"):
        encode(image)


def test_a_black_picture_is_a_picture() -> None:
    assert not decode_image(encode(Image.new("I", (3, 2)))).any()


def test_a_pillow_image_is_turned_upright_once(pixels: np.ndarray) -> None:
    received = decoded(encode(rotated(pixels)))
    assert received.size == (5, 7)
    assert received.getexif().get(EXIF_ORIENTATION, 1) == 1, "else the server would turn it again"


@pytest.mark.parametrize("as_bytes", [False, True], ids=["Pillow image", "encoded"])
def test_open_upright_applies_the_orientation(pixels: np.ndarray, as_bytes: bool) -> None:
    image = rotated(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=image.getexif())
    upright = open_upright(buffer.getvalue() if as_bytes else image)
    assert np.array_equal(np.asarray(upright), np.rot90(pixels, -1))


def test_open_upright_scales_sixteen_bits_instead_of_clipping_them() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)).save(buffer, "PNG")
    assert np.asarray(open_upright(buffer.getvalue()))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        pytest.param(np.zeros((4, 4), np.uint8), r"np\.repeat", id="gray"),
        pytest.param(np.zeros((4, 4, 4), np.uint8), r"drop its alpha", id="four channels"),
        pytest.param(np.zeros((3, 4, 5), np.uint8), r"channels last", id="channels first"),
        pytest.param(np.zeros((4, 4, 3), np.uint16), r"upper 8 bits", id="16 bits"),
        pytest.param(np.zeros((4, 4, 3), np.float32), r"scale it to 0\.\.255", id="floats"),
        pytest.param(np.zeros((4, 4, 3), bool), r"scale it", id="booleans"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]$", id="no rows"),
        pytest.param(np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]$", id="a batch"),
    ],
)
def test_other_arrays_are_refused_with_advice(array: np.ndarray, advice: str) -> None:
    with pytest.raises(InvalidImageError, match=rf"must be RGB uint8 \[H, W, 3\], not {array.dtype} .*{advice}"):
        encode(array)


def test_a_read_only_array_travels(pixels: np.ndarray) -> None:
    pixels.flags.writeable = False
    assert np.array_equal(np.asarray(decoded(encode(pixels))), pixels)


@pytest.mark.parametrize("kind", [bytearray, memoryview, io.BytesIO], ids=["bytearray", "memoryview", "open file"])
def test_bytes_of_every_kind_travel_unchanged(pixels: np.ndarray, kind: Callable[[bytes], Any]) -> None:
    content = encode(pixels)
    assert encode(kind(content)) == content
    assert np.array_equal(np.asarray(open_upright(kind(content))), pixels)


def test_a_memoryview_with_gaps_is_its_bytes() -> None:
    assert encode(memoryview(b"a.b.c.")[::2]) == b"abc"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(None, "not NoneType", id="nothing"),
        pytest.param(7, "not int", id="number"),
        pytest.param([[0]], "not list", id="list"),
        pytest.param(io.StringIO("text"), "must be read as bytes, not str: open it with 'rb'", id="text file"),
        pytest.param("a\0b", "cannot read .*null", id="null byte in a path"),
        pytest.param("/", "cannot read /: Is a directory", id="folder"),
        pytest.param("", "cannot read", id="no path"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    for use in (encode, open_upright):
        with pytest.raises(InvalidImageError, match=message):
            use(image)


def test_an_open_file_that_was_read_before_is_not_sent_as_empty(pixels: np.ndarray) -> None:
    file = io.BytesIO(encode(pixels))
    assert encode(file)
    with pytest.raises(InvalidImageError, match=r"nothing left to read; .* seek\(0\)"):
        encode(file)
    file.seek(0)
    assert encode(file)


def test_a_closed_file_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    (tmp_path / "a.png").write_bytes(encode(pixels))
    with (tmp_path / "a.png").open("rb") as file:
        pass
    with pytest.raises(InvalidImageError, match=r"cannot read the open file: .*closed"):
        encode(file)
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(InvalidImageError, match="cannot decode the picture"):
        encode(image)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_lazy_image_of_a_cut_file_is_refused(form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, form)
    try:
        image = Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) // 2]))
    except OSError:
        return  # Pillow tells while it opens some, which is the caller's to handle
    for use in (encode, open_upright):
        with pytest.raises(InvalidImageError, match=r"cannot decode the picture|damaged JPEG image: it is cut short"):
            use(image)


JPEGS = [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}]


def jpeg_of_noise(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("part", [0.4, 0.6])
def test_a_jpeg_cut_before_an_end_marker_is_refused_while_its_file_is_open(
    options: dict[str, Any], part: float
) -> None:
    whole = jpeg_of_noise(**options)
    cut = whole[: int(len(whole) * part)] + b"\xff\xd9"
    image = Image.open(io.BytesIO(cut))
    with pytest.raises(InvalidImageError, match=r"damaged JPEG image: .*; a server may accept it"):
        encode(image)
    image.load()  # Pillow says nothing; the pixels that are there now are the caller's
    assert encode(image).startswith(b"\x89PNG")


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_whole_jpeg_is_not_mistaken_for_a_cut_one(options: dict[str, Any]) -> None:
    for behind in (b"", b"\0 more"):
        image = Image.open(io.BytesIO(jpeg_of_noise(**options) + behind))
        assert encode(image).startswith(b"\x89PNG")


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def exif(*entries: bytes) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


ORIENTED = entry(EXIF_ORIENTATION, 3, 1, b"\6")
# The faults that make one or another release of Pillow raise.
BROKEN_EXIF = {
    "no TIFF": (b"Exif\0\0nonsense", False),
    "nothing": (b"Exif\0\0", False),
    "directory outside": (b"Exif\0\0II*\0\xff\xff\xff\x7f", False),
    "entries missing": (exif(ORIENTED)[:-2] + b"", True),
    "cut entry": (exif(ORIENTED)[:-12], False),
    "resolution of zero parts": (exif(entry(0x011A, 5, 1, struct.pack("<I", 14)), ORIENTED), True),
    "unit of a wrong type": (exif(entry(0x0128, 2, 2, b"x"), ORIENTED), True),
    "resolution as text": (exif(entry(0x011A, 2, 2, b"x"), ORIENTED), True),
    "values outside": (exif(entry(0x010E, 2, 99, struct.pack("<I", 9999)), ORIENTED), True),
    "a directory in itself": (exif(ORIENTED, entry(0x8769, 4, 1, struct.pack("<I", 8))), True),
    "an unknown type": (exif(entry(0x0100, 99, 1, b"x"), ORIENTED), True),
    "orientation as text": (exif(entry(EXIF_ORIENTATION, 2, 2, b"x")), False),
    "orientation 99": (exif(entry(EXIF_ORIENTATION, 3, 1, b"c")), False),
    "a count beyond all bytes": (exif(entry(0x0100, 3, 2**31, b"x"), ORIENTED), True),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fault", BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore")  # Pillow's own while it opens a file
def test_broken_exif_costs_neither_the_pixels_nor_the_answer(form: str, fault: str) -> None:
    metadata, is_turned = BROKEN_EXIF[fault]
    smooth = Image.fromarray(smooth_image())
    buffer = io.BytesIO()
    smooth.save(buffer, form, exif=metadata, **({"lossless": True} if form == "WEBP" else {}))
    data = buffer.getvalue()
    expected = decode_image(data)
    assert (expected.shape != smooth_image().shape) == is_turned
    try:
        image = Image.open(io.BytesIO(data))
    except (ZeroDivisionError, struct.error, TypeError, ValueError, SyntaxError):
        image = None  # some releases of Pillow open no such file
    if image is not None:
        assert np.array_equal(decode_image(encode(image)), expected)
    assert open_upright(data).size == (expected.shape[1], expected.shape[0])


def test_only_exif_turns_a_pillow_image(pixels: np.ndarray) -> None:
    before, idat, end = png_parts(encode(pixels))
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    data = before + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + idat + end
    for ask in (False, True):
        with Image.open(io.BytesIO(data)) as image:
            if ask:
                image.getexif()
            assert decoded(encode(image)).size == (7, 5)
    assert open_upright(data).size == (7, 5)


def test_an_orientation_that_was_set_to_upright_stays_so(pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    image = rotated(pixels)
    image.save(buffer, "PNG", exif=image.getexif())
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        assert decoded(encode(opened)).size == (5, 7)
        opened.getexif()[EXIF_ORIENTATION] = 1
        assert decoded(encode(opened)).size == (7, 5)


def test_a_png_is_made_without_metadata(pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", icc_profile=bytes(3_000_000), exif=exif(), comment=b"a remark")
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        content = encode(image)
        assert image.info["icc_profile"], "of the caller's image nothing is changed"
    assert content.count(b"IHDR") + content.count(b"IDAT") + content.count(b"IEND") == 3
    assert len(content) < 1000


@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_metadata_do_not_keep_a_picture_from_being_drawn(pixels: np.ndarray, place: str) -> None:
    before, idat, end = png_parts(encode(pixels))
    inflating = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000)))
    data = before + (inflating + idat if place == "before the pixels" else idat + inflating) + end
    assert np.array_equal(np.asarray(open_upright(data)), pixels)
    if place == "behind them":  # else Pillow does not open it
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(np.asarray(decoded(encode(image))), pixels)


def test_a_cut_jpeg_that_a_server_accepts_can_be_drawn(pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    assert open_upright(buffer.getvalue()[:-2]).size == (7, 5)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "PNG start"])
def test_open_upright_refuses_what_is_no_picture(content: bytes) -> None:
    with pytest.raises(InvalidImageError, match="cannot decode the picture"):
        open_upright(content)


def test_an_array_of_several_images_is_each_of_them(pixels: np.ndarray) -> None:
    assert encode_all(np.stack([pixels, pixels + 1])) == [encode(pixels), encode(pixels + 1)]
    assert encode_all(each for each in (b"a", b"b")) == [b"a", b"b"]


@pytest.mark.parametrize(
    "image",
    [
        pytest.param("ab", id="a path"),
        pytest.param(Path("ab"), id="a Path"),
        pytest.param(b"ab", id="bytes"),
        pytest.param(io.BytesIO(b"ab"), id="an open file"),
        pytest.param(Image.new("RGB", (2, 2)), id="a Pillow image"),
        pytest.param(np.zeros((2, 2, 3), np.uint8), id="pixels"),
        pytest.param(7, id="no image"),
    ],
)
def test_one_image_is_not_several(image: Any) -> None:
    with pytest.raises(InvalidImageError, match=f"not one {type(image).__name__}; detect takes one"):
        encode_all(image)
