from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from serving.decode import ImageLimits, decode_image
from serving.errors import CodetrError, InvalidImageError
from tests.pictures import RGB, RGBA, SMOOTH, chunk, encode, png, png_parts, riff, riff_chunk, smooth_image


def opencv(data: bytes) -> np.ndarray:
    """What mmdetection's loader (`cv2.imdecode`, colour) makes of the bytes, as RGB."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1]


def interlaced_png() -> bytes:
    """OpenCV cannot write Adam7 and Pillow neither: the seven passes by hand."""
    image, rows = smooth_image(8, 8), b""
    for y, x, step_y, step_x in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in image[y::step_y, x::step_x])
    data = bytearray(png(8, 8, 8, 2, rows))
    data[28] = 1  # the interlace method in IHDR
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def gray16_png() -> bytes:
    values = (np.arange(20, dtype=np.uint32) * 3449 % 65536).astype(">u2").reshape(4, 5)
    return png(5, 4, 16, 0, b"".join(b"\0" + row.tobytes() for row in values))


def rgb16_png() -> bytes:
    values = (np.arange(60, dtype=np.uint32) * 4099 % 65536).astype(">u2").reshape(4, 15)
    return png(5, 4, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))


LIKE_OPENCV: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(RGB, "JPEG", quality=80),
    "jpeg without chroma subsampling": lambda: encode(RGB, "JPEG", subsampling=0),
    "jpeg progressive": lambda: encode(RGB, "JPEG", progressive=True),
    "jpeg grayscale": lambda: encode(RGB.convert("L"), "JPEG"),
    "png": lambda: encode(RGB, "PNG"),
    "png grayscale": lambda: encode(RGB.convert("L"), "PNG"),
    "png 1 bit": lambda: encode(RGB.convert("1"), "PNG"),
    "png palette": lambda: encode(RGB.quantize(16), "PNG"),
    "png palette with transparency": lambda: encode(RGB.quantize(16), "PNG", transparency=bytes([0, 128, 255])),
    "png alpha": lambda: encode(RGBA, "PNG"),
    "png gray and alpha": lambda: encode(RGBA.convert("LA"), "PNG"),
    "png 16-bit grayscale": gray16_png,
    "png 16-bit colour": rgb16_png,
    "png interlaced": interlaced_png,
    "webp lossless": lambda: encode(RGB, "WEBP", lossless=True),
    "webp lossy": lambda: encode(RGB, "WEBP"),
    "webp lossy with alpha": lambda: encode(RGBA, "WEBP"),
    "webp lossless with alpha": lambda: encode(RGBA, "WEBP", lossless=True),
    "bmp": lambda: encode(RGB, "BMP"),
    "bmp 16 bits": lambda: bmp16(40, (0xF800, 0x7E0, 0x1F)),
    "bmp palette": lambda: encode(RGB.quantize(16), "BMP"),
    "bmp grayscale": lambda: encode(RGB.convert("L"), "BMP"),
}


@pytest.mark.parametrize("kind", LIKE_OPENCV)
def test_pixels_are_those_of_mmdetections_loader(kind: str) -> None:
    data = LIKE_OPENCV[kind]()
    np.testing.assert_array_equal(decode_image(data), opencv(data))


def test_cmyk_jpeg_is_read_as_adobe_writes_it() -> None:
    data = encode(RGB.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert np.abs(decode_image(data).astype(int) - SMOOTH).max() <= 12  # JPEG's own loss


def test_webp_alpha_is_dropped() -> None:
    data = encode(RGBA, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode_image(data), SMOOTH)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animation_gives_its_first_frame(form: str) -> None:
    second = Image.fromarray(255 - SMOOTH)
    data = encode(RGB, form, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(decode_image(data), SMOOTH)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    # EXIF 2.3 section 4.6.4: where the stored row 0 and column 0 belong in the upright image.
    upright = {
        1: SMOOTH,
        2: SMOOTH[:, ::-1],
        3: SMOOTH[::-1, ::-1],
        4: SMOOTH[::-1],
        5: SMOOTH.swapaxes(0, 1),
        6: np.rot90(SMOOTH, -1),
        7: np.rot90(SMOOTH, 2).swapaxes(0, 1),
        8: np.rot90(SMOOTH, 1),
    }[orientation]
    decoded = decode_image(encode(RGB, form, exif=exif, **options))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= (8 if form == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"not a TIFF header", id="no TIFF"),
        # One entry of the first directory: tag 0x0112 as a text (type 2) of two bytes, "x".
        pytest.param(b"II*\0\x08\0\0\0" + struct.pack("<HHHI4sI", 1, 0x0112, 2, 2, b"x", 0), id="text"),
    ],
)
def test_unreadable_orientation_is_ignored(exif: bytes) -> None:
    data = encode(RGB, "JPEG", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode_image(data), opencv(data))


# What a program can have written into a PNG beside its pixels: large, malformed, or both.
INFLATING = zlib.compress(bytes(20_000_000))
CHUNKS: dict[str, tuple[bytes, bytes]] = {
    "text that inflates to 20 MB": (b"zTXt", b"key\0\0" + INFLATING),
    "international text that does": (b"iTXt", b"key\0\1\0\0\0" + INFLATING),
    "a profile that does": (b"iCCP", b"name\0\0" + INFLATING),
    "3 MB of text": (b"tEXt", b"key\0" + b"x" * 3_000_000),
    "compressed text that is none": (b"zTXt", b"key\0\0nonsense"),
    "an empty profile": (b"iCCP", b""),
    "a short size": (b"pHYs", b"\0"),
    "a short gamma": (b"gAMA", b""),
    "too much transparency": (b"tRNS", bytes(100)),
    "a palette beside true colours": (b"PLTE", b"xx"),
    "broken EXIF": (b"eXIf", b"II*\0\xff"),
    "an animation of no frames": (b"acTL", bytes(8)),
    "an unknown chunk": (b"abCd", b"x"),
}


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("crc_error", [0, 1], ids=["checksum right", "checksum wrong"])
@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_metadata_of_a_png_do_not_cost_its_pixels(kind: str, crc_error: int, place: str) -> None:
    before, pixels, end = png_parts(encode(RGB, "PNG"))
    metadata = chunk(*CHUNKS[kind], crc_error)
    data = before + metadata + pixels + end if place == "before the pixels" else before + pixels + metadata + end
    np.testing.assert_array_equal(decode_image(data), SMOOTH)


def test_a_png_is_decoded_by_its_pixels_alone() -> None:
    before, pixels, end = png_parts(encode(RGB, "PNG"))
    np.testing.assert_array_equal(decode_image(before + pixels), SMOOTH, err_msg="without its end")
    compressed = pixels[8:-4]
    np.testing.assert_array_equal(decode_image(before + chunk(b"IDAT", compressed, 1) + end), SMOOTH)
    split = b"".join(chunk(b"IDAT", compressed[start : start + 1]) for start in range(len(compressed)))
    np.testing.assert_array_equal(decode_image(before + split + end), SMOOTH)


@pytest.mark.parametrize("kind", [b"ICCP", b"EXIF", b"XMP ", b"abcd"])
@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_metadata_of_a_webp_do_not_cost_its_pixels(kind: bytes, place: str) -> None:
    pixels = encode(RGB, "WEBP", lossless=True)[12:]
    header = riff_chunk(b"VP8X", b"\x2c\0\0\0" + struct.pack("<I", 52)[:3] + struct.pack("<I", 36)[:3])
    metadata = riff_chunk(kind, b"odd")
    body = header + metadata + pixels if place == "before the pixels" else header + pixels + metadata
    np.testing.assert_array_equal(decode_image(riff(body)), SMOOTH)
    np.testing.assert_array_equal(decode_image(riff(pixels + metadata)), SMOOTH, err_msg="without VP8X")


ORIENTED = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)


@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_only_exif_turns_a_png(place: str) -> None:
    before, pixels, end = png_parts(encode(RGB, "PNG"))

    def decoded(metadata: bytes) -> np.ndarray:
        first = place == "before the pixels"
        return decode_image(before + (metadata + pixels if first else pixels + metadata) + end)

    np.testing.assert_array_equal(decoded(chunk(b"eXIf", ORIENTED)), np.rot90(SMOOTH, -1))
    np.testing.assert_array_equal(decoded(chunk(b"eXIf", ORIENTED, crc_error=1)), SMOOTH)
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    np.testing.assert_array_equal(decoded(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)), SMOOTH)
    raw = b"Raw profile type exif\0\nexif\n" + str(len(ORIENTED)).encode() + b"\n" + ORIENTED.hex().encode()
    np.testing.assert_array_equal(decoded(chunk(b"tEXt", raw)), SMOOTH)


def bmp16(header: int, masks: tuple[int, ...]) -> bytes:
    """A BMP with 16 bits a pixel: 4x2, its colours by masks."""
    fields = struct.pack("<IiiHHIIiiII", header, 4, 2, 1, 16, 3, 16, 0, 0, 0, 0) + struct.pack("<3I", *masks)
    fields = fields.ljust(header, b"\0")
    size = 14 + len(fields)
    return b"BM" + struct.pack("<IHHI", size + 16, 0, 0, size) + fields + bytes(range(16))


def test_what_opencv_does_not_decode_is_left_to_pillow() -> None:
    data = bmp16(108, (0xF800, 0x7E0, 0x1F))
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None
    assert decode_image(data).shape == (2, 4, 3)


def test_a_size_that_the_pixels_do_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.decode._decode_with_opencv", lambda data: np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(InvalidImageError, match="its header claims 53x37 pixels, it has 9x9"):
        decode_image(encode(RGB, "PNG"))


def test_jpeg_with_a_thumbnail_and_bytes_behind_its_end() -> None:
    thumbnail = encode(RGB.resize((8, 8)), "JPEG")
    exif = b"Exif\0\0" + thumbnail  # holds an end marker ahead of the real one
    data = encode(RGB, "JPEG", exif=exif)
    np.testing.assert_array_equal(decode_image(data + b"trailer"), opencv(data))
    with pytest.raises(InvalidImageError, match="cut short, its end marker is missing"):
        decode_image(data[:-60])


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_truncated_jpeg_is_told_before_opencv_could_fill_it_with_gray(options: dict[str, bool]) -> None:
    data = encode(RGB, "JPEG", **options)
    for end in (-2, len(data) - len(data) // 4):
        with pytest.raises(InvalidImageError, match="cut short, its end marker is missing"):
            decode_image(data[:end])


@pytest.mark.parametrize("kind", [kind for kind in LIKE_OPENCV if "interlaced" not in kind])
def test_every_truncated_file_is_an_error(kind: str) -> None:
    data = LIKE_OPENCV[kind]()
    for end in (len(data) // 3, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(InvalidImageError):
            decode_image(data[:end])


@pytest.mark.parametrize("kind", LIKE_OPENCV)
def test_damaged_bytes_never_raise_anything_else(kind: str) -> None:
    data = LIKE_OPENCV[kind]()
    random = np.random.default_rng(7)
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = random.integers(2, len(data), 4)
        damaged[places] = random.integers(0, 256, 4)
        try:
            pixels = decode_image(damaged.tobytes(), ImageLimits(max_pixels=10**6))
        except InvalidImageError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", r"empty \(0 bytes\)", id="nothing"),
        pytest.param(b"hello, I am text", "expected a JPEG, PNG, WEBP, BMP image, got bytes that begin", id="text"),
        pytest.param(png(60000, 60000, 8, 2, b""), "60000x60000 pixels, more than the limit of 64000000", id="bomb"),
        pytest.param(png(65536, 1, 8, 2, b""), "65536x1 pixels, but no side may be longer than 65535", id="long"),
        pytest.param(png(1, 64000000, 16, 6, b""), "1x64000000 pixels, but no side may be longer", id="high"),
        pytest.param(encode(RGB, "GIF"), "begin with b'GIF8", id="a format that is not served"),
        pytest.param(b"RIFF\x20\0\0\0WAVEfmt ", "begin with b'RIFF", id="sound"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "damaged PNG header", id="PNG signature only"),
        pytest.param(png(0, 7, 8, 2, b""), "damaged PNG|0x7", id="no pixels"),
    ],
)
def test_refusals_name_the_fault(data: bytes, message: str) -> None:
    with pytest.raises(InvalidImageError, match=message):
        decode_image(data)


def test_a_second_header_is_no_way_around_the_limit_of_pixels() -> None:
    whole, huge = png(8, 8, 8, 2, bytes(25 * 8)), png(30000, 30000, 8, 2, b"")
    data = whole[:33] + huge[8:33] + whole[33:]  # both IHDR, before the pixels
    with pytest.raises(InvalidImageError, match="damaged PNG image: its header claims 8x8 pixels, it has 30000x30000"):
        decode_image(data)


def test_limits_are_inclusive_and_named() -> None:
    data = encode(RGB, "PNG")
    pixels = SMOOTH.shape[0] * SMOOTH.shape[1]
    assert decode_image(data, ImageLimits(max_bytes=len(data), max_pixels=pixels)).shape == SMOOTH.shape
    with pytest.raises(InvalidImageError, match=f"{len(data)} bytes, more than the limit of {len(data) - 1}"):
        decode_image(data, ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(InvalidImageError, match=f"53x37 pixels, more than the limit of {pixels - 1}"):
        decode_image(data, ImageLimits(max_pixels=pixels - 1))
    with pytest.raises(InvalidImageError, match="expected a JPEG image, got PNG"):
        decode_image(data, ImageLimits(formats=("JPEG",)))


def test_more_bytes_than_any_image_should_have_are_refused() -> None:
    with pytest.raises(InvalidImageError, match="67108865 bytes, more than the limit of 67108864"):
        decode_image(bytes(64 * 1024 * 1024 + 1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
def test_a_side_of_one_pixel_is_an_image(height: int, width: int) -> None:
    image = smooth_image(height, width)
    limits = ImageLimits(max_pixels=height * width)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(image), "PNG"), limits), image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"max_bytes": 0}, "max_bytes: expected at least 1, got 0", id="bytes"),
        pytest.param({"max_pixels": -3}, "max_pixels: expected at least 1, got -3", id="pixels"),
        pytest.param(
            {"damaged_jpeg": "warn"}, "damaged_jpeg: expected refuse or accept, got 'warn'", id="damaged JPEGs"
        ),
        pytest.param({"formats": ("GIF",)}, "formats: expected some of JPEG, PNG, WEBP, BMP, got 'GIF'", id="formats"),
    ],
)
def test_impossible_limits_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        ImageLimits(**settings)
