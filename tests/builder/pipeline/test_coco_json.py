from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pytest

from builder.pipeline.coco_json import read_json
from serving.errors import CodetrError

TEXT = json.dumps({"categories": [{"id": 1, "name": "Bär"}]}, ensure_ascii=False)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(TEXT.encode(), id="UTF-8"),
        pytest.param(TEXT.encode("utf-8-sig"), id="UTF-8 with a byte order mark"),
        pytest.param(TEXT.encode("utf-16"), id="UTF-16"),
        pytest.param(TEXT.encode("utf-16-le"), id="UTF-16 without a mark"),
        pytest.param(TEXT.encode("utf-32"), id="UTF-32"),
        pytest.param(gzip.compress(TEXT.encode()), id="gzip"),
        pytest.param(gzip.compress(TEXT.encode("utf-16")), id="UTF-16 in gzip"),
        pytest.param(TEXT.replace(" ", "\r\n").encode(), id="line ends of Windows"),
    ],
)
def test_one_content_however_it_is_written(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    assert read_json(path) == (json.loads(TEXT), hashlib.sha256(data).hexdigest())


def test_outlines_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"annotations": [{"id": 1, "segmentation": [[1, 2, 3]], "keypoints": [0], "bbox": [1, 2, 3, 4]}]}')
    assert read_json(path)[0] == {"annotations": [{"id": 1, "bbox": [1, 2, 3, 4]}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(b" \n", "it is empty", id="blank"),
        pytest.param(b"\xef\xbb\xbf", "it is empty", id="a byte order mark alone"),
        pytest.param(b"{", "it is no JSON at line 1, column 2: Expecting property name", id="cut short"),
        pytest.param(b'{"a": 1,\n "b": }', "it is no JSON at line 2, column 7: Expecting value", id="a typing error"),
        pytest.param(
            b'{"a": 1}\n{"a": 2}\n', r"it holds several JSON values, one a line perhaps \(JSONL\)", id="JSONL"
        ),
        pytest.param(b"{} x", "it is no JSON at line 1, column 4: Extra data", id="something behind"),
        pytest.param(b"<annotation><folder/></annotation>", "it is XML or HTML, which Pascal VOC", id="Pascal VOC"),
        pytest.param(b"\n<html>", "it is XML or HTML", id="a page behind a blank line"),
        pytest.param(b"PK\x03\x04....", "it is a zip archive; unpack it", id="zip"),
        pytest.param(b"\xff\xd8\xff\xe0..", "it is a JPEG picture", id="JPEG"),
        pytest.param(lzma.compress(b"{}"), "it is compressed by xz; unpack it", id="xz"),
        pytest.param(
            gzip.compress(b"{}")[:-4], "it is a gzip file that is damaged or cut short", id="half a gzip file"
        ),
        pytest.param(b"\x1f\x8bnothing", "it is a gzip file that is damaged", id="gzip's first bytes alone"),
        pytest.param(
            '{"name": "Bär"}'.encode("cp1252"), "it is not in UTF-8 at byte 11; save it as UTF-8", id="cp1252"
        ),
        pytest.param(b"[" * 100_000, "it is nested too deeply", id="nested"),
        pytest.param(b"1" * 5000, "a number in it has thousands of digits", id="a number of 5000 digits"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(CodetrError, match=rf"a\.json is no COCO annotation file: {message}") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"annotations .*none\.json: No such file or directory; name a COCO"):
        read_json(tmp_path / "none.json")
    with pytest.raises(CodetrError, match=r"annotations .*: Is a directory; name a COCO annotation file"):
        read_json(tmp_path)
