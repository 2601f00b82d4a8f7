from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from serving.decode import ImageLimits, decode_image
from serving.errors import InvalidImageError
from serving.refusals import Refusal, explain

LIMITS = ImageLimits(max_bytes=20_000, max_pixels=10_000, formats=("JPEG", "PNG", "BMP"))


def encoded(kind: str, image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


NOISE = Image.effect_noise((60, 40), 80).convert("RGB")
JPEG, PNG = encoded("JPEG", NOISE), encoded("PNG", NOISE)
LARGE = encoded("PNG", Image.new("RGB", (101, 100)))
CLAIMS_NOTHING = b"BM" + bytes(12) + (40).to_bytes(4, "little") + bytes(36)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", Refusal("empty", "unknown", 0, None), id="nothing"),
        pytest.param(JPEG + bytes(20_000), Refusal("too_many_bytes", "JPEG", len(JPEG) + 20_000, None), id="long"),
        pytest.param(bytes(20_001), Refusal("too_many_bytes", "unknown", 20_001, None), id="long, of no format"),
        pytest.param(b"<svg>", Refusal("wrong_format", "unknown", 5, None), id="no format of ours"),
        pytest.param(
            encoded("WEBP", NOISE)[:30], Refusal("wrong_format", "WEBP", 30, None), id="a format that is shut off"
        ),
        pytest.param(JPEG[:40], Refusal("bad_header", "JPEG", 40, None), id="cut within the header"),
        pytest.param(CLAIMS_NOTHING, Refusal("bad_header", "BMP", 54, None), id="a header of nothing"),
        pytest.param(LARGE, Refusal("too_many_pixels", "PNG", len(LARGE), (101, 100)), id="too large"),
        pytest.param(JPEG[:-2], Refusal("damaged", "JPEG", len(JPEG) - 2, (60, 40)), id="no end marker"),
        pytest.param(PNG[:-40], Refusal("damaged", "PNG", len(PNG) - 40, (60, 40)), id="cut within the pixels"),
    ],
)
def test_every_refusal_has_its_cause(data: bytes, expected: Refusal) -> None:
    with pytest.raises(InvalidImageError):
        decode_image(data, LIMITS)
    refusal = explain(data, LIMITS)
    if expected.cause == "bad_header":  # whether a broken header still tells a size is Pillow's affair
        assert refusal.size is None or min(refusal.size) < 1
        refusal = Refusal(refusal.cause, refusal.format, refusal.bytes, None)
    assert refusal == expected
