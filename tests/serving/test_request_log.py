from __future__ import annotations

import json

import pytest

from serving.errors import CodetrError
from serving.request_log import Style, Value, chosen_style, write

FORGED = 'x\r\nE1126 00:00:00.0 1 fake.cc:1] "forged"\x1b[31m \u2028 ﷽'


def written(style: Style, **fields: Value) -> list[str]:
    lines: list[str] = []
    write(lines.append, style, fields)
    return lines


def test_text_is_keys_and_values() -> None:
    (line,) = written("text", request_id="a-1", model="codetr_preprocess", cause="empty", bytes=0, size=None, ms=0.1)
    assert line == "request_id=a-1 model=codetr_preprocess cause=empty bytes=0 ms=0.1"


def test_json_is_one_object() -> None:
    (line,) = written("json", request_id="a-1", bytes=0, size=None, ms=0.1)
    assert json.loads(line) == {"request_id": "a-1", "bytes": 0, "ms": 0.1}


@pytest.mark.parametrize("style", ["text", "json"])
def test_text_from_outside_stays_one_ascii_line(style: Style) -> None:
    (line,) = written(style, request_id=FORGED, cause="empty")
    assert line.isascii()
    assert line.isprintable()
    value = json.loads(line)["request_id"] if style == "json" else json.loads(line[11 : line.index(" cause=")])
    assert value == FORGED


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_value_cannot_fake_another_key(style: Style) -> None:
    (line,) = written(style, request_id="1 cause=none", cause="empty")
    assert '"1 cause=none"' in line


@pytest.mark.parametrize("style", ["text", "json"])
def test_long_values_are_cut(style: Style) -> None:
    (line,) = written(style, request_id="\n" * 100_000)
    assert len(line) < 500


def test_off_writes_nothing() -> None:
    assert written("off", cause="empty") == []


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODETR_LOG", raising=False)
    assert chosen_style() == "text"
    monkeypatch.setenv("CODETR_LOG", "json")
    assert chosen_style() == "json"
    monkeypatch.setenv("CODETR_LOG", "yaml")
    with pytest.raises(CodetrError, match="CODETR_LOG: expected text, json or off, got 'yaml'"):
        chosen_style()
