"""Odd files and image objects against a real server: what counts is what their pixels show."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codetr_client.client import CoDetrClient
from codetr_client.errors import InvalidImageError, RequestRefusedError
from codetr_client.jpeg import END, read_jpeg
from serving.launch import TritonServer
from tests.pictures import chunk, encode, photograph, png_parts, segment

pytestmark = pytest.mark.server

PICTURE = Image.fromarray(photograph())
PNG = encode(PICTURE, "PNG")
JPEG = encode(PICTURE, "JPEG")
GRAY16 = (np.asarray(PICTURE.convert("L")).astype(np.uint16) << 8) + 77


@pytest.fixture(scope="module")
def client(both: TritonServer) -> Iterator[CoDetrClient]:
    with CoDetrClient(both.grpc_url) as connected:
        yield connected


def with_chunk(kind: bytes, body: bytes, crc_error: int = 0) -> bytes:
    before, pixels, end = png_parts(PNG)
    return before + chunk(kind, body, crc_error) + pixels + end


def cut(data: bytes) -> bytes:
    start = read_jpeg(data).scans[0].start
    return data[: (start + len(data)) // 2] + END


SAME_PICTURE: dict[str, tuple[Callable[[], Any], bytes]] = {
    "text that inflates to 20 MB": (lambda: with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000))), PNG),
    "a profile that does": (lambda: with_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(20_000_000))), PNG),
    "a wrong checksum of text": (lambda: with_chunk(b"tEXt", b"k\0v", crc_error=1), PNG),
    "broken metadata of a JPEG": (
        lambda: JPEG[:2] + segment(0xE1, b"Exif\0\0MM") + segment(0xEE, b"A") + JPEG[2:],
        JPEG,
    ),
    "bytearray": (lambda: bytearray(PNG), PNG),
    "memoryview": (lambda: memoryview(JPEG), JPEG),
    "open file": (lambda: io.BytesIO(PNG), PNG),
    "Pillow with a large profile": (
        lambda: Image.open(io.BytesIO(encode(PICTURE, "PNG", icc_profile=bytes(10**6)))),
        PNG,
    ),
    "16 bits": (lambda: Image.fromarray(GRAY16), encode(PICTURE.convert("L"), "PNG")),
    "16 bits as Pillow's mode I": (
        lambda: Image.fromarray(GRAY16.astype(np.int32)),
        encode(PICTURE.convert("L"), "PNG"),
    ),
}


@pytest.mark.parametrize("kind", SAME_PICTURE)
def test_the_pixels_decide(client: CoDetrClient, kind: str) -> None:
    make, plain = SAME_PICTURE[kind]
    expected = client.detect(plain)
    assert len(expected) > 0
    assert client.detect(make()).to_json() == expected.to_json()


def test_a_half_jpeg_is_refused_or_accepted_by_setting(both: TritonServer, client: CoDetrClient) -> None:
    with pytest.raises(RequestRefusedError, match="damaged JPEG image: its data end before its last row"):
        client.detect(cut(JPEG))
    with CoDetrClient(both.grpc_url, model="small") as accepting:
        assert len(accepting.detect(cut(JPEG))) > 0


def test_a_picture_that_cannot_be_loaded_is_not_sent(client: CoDetrClient) -> None:
    with pytest.raises(InvalidImageError, match="cannot decode the picture"):
        client.detect(Image.open(io.BytesIO(PNG[: len(PNG) // 2])))
