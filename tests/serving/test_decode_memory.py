"""The largest picture that is accepted, in every format: what decoding it takes, in a process of its own."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pictures import chunk, encode

ROOT = Path(__file__).parents[2]
SIDE = 8000  # pixels: 64 million in all, the limit
DECODED_MIB = SIDE * SIDE * 3 / 2**20
# Beside the decoded picture and its file: a second picture while colours are reordered, or a decoder's own buffers.
MOST_MIB = {"CMYK JPEG": 5 * DECODED_MIB, "progressive JPEG": 4 * DECODED_MIB}
USUAL_MIB = 3 * DECODED_MIB

DECODE = """
import sys
from pathlib import Path
from serving.decode import decode_image

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

data = Path(sys.argv[1]).read_bytes()
before = peak()
print(*decode_image(data).shape, peak() - before)
"""


def image() -> Image.Image:
    tile = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return Image.fromarray(np.tile(tile, (SIDE // 400, SIDE // 400, 1)))


def zeros(bits: int, colours: int, channels: int) -> bytes:
    """A PNG of zeros: a few hundred KiB that inflate to all that the header claims."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + SIDE * bits * channels // 8)
    pixels = b"".join(compressor.compress(row) for _ in range(SIDE)) + compressor.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


KINDS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encode(image(), "JPEG"),
    "progressive JPEG": lambda: encode(image(), "JPEG", progressive=True, subsampling=0),
    "CMYK JPEG": lambda: encode(image().convert("CMYK"), "JPEG"),
    "PNG": lambda: zeros(8, 2, 3),
    "16-bit PNG with alpha": lambda: zeros(16, 6, 4),
    "16-bit gray PNG": lambda: zeros(16, 0, 1),
    "WebP": lambda: encode(image(), "WEBP", lossless=True, method=0, quality=0),
    "palette BMP": lambda: encode(image().quantize(16), "BMP"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_picture_takes_a_known_memory(kind: str, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(KINDS[kind]())
    done = subprocess.run(
        [sys.executable, "-c", DECODE, str(tmp_path / "picture")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'clients'}"},
    )
    *shape, mib = done.stdout.split()
    print(f"{kind}: {float(mib):.0f} MiB")
    assert shape == [str(SIDE), str(SIDE), "3"]
    assert float(mib) <= MOST_MIB.get(kind, USUAL_MIB)
