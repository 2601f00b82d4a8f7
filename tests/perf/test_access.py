from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_client.options import Tls
from perf.access import Access
from perf.load.config import LoadConfig, from_environment
from serving.errors import CodetrError


def test_headers_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_bytes(b"\xef\xbb\xbfAuthorization: Bearer a:b\r\n\r\n x-tenant : 7 \r\n")
    assert Access(header_file=str(file)).headers() == {"Authorization": "Bearer a:b", "x-tenant": "7"}
    assert Access().headers() == {}


def test_what_a_header_file_holds_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("x: 1\nBearer s3cret\n")
    with pytest.raises(CodetrError, match=r"header_file .*headers, line 2: expected `name: value`") as caught:
        Access(header_file=str(file)).headers()
    assert "s3cret" not in str(caught.value)
    with pytest.raises(CodetrError, match="header_file missing: cannot be read"):
        Access(header_file="missing").headers()
    file.write_bytes(b"\xff")
    with pytest.raises(CodetrError, match="cannot be read"):
        Access(header_file=str(file)).headers()


def test_tls_is_that_of_the_url_unless_something_is_given() -> None:
    assert Access().tls is None
    assert Access(ca_file="ca.pem").tls == Tls("ca.pem")
    assert Access(server_name="x").tls == Tls(server_name="x")


def test_a_load_tests_settings_hold_no_token(tmp_path: Path) -> None:
    """Its record and its process's environment show the file's name."""
    file = tmp_path / "headers"
    file.write_text("authorization: s3cret\n")
    config = LoadConfig("https://h:1", "http", access=Access(header_file=str(file), retries=0))
    environment = config.environment()
    assert not [value for value in environment.values() if "s3cret" in value]
    assert from_environment(environment) == config
    assert json.loads(environment["CODETR_LOAD"])["access"]["header_file"] == str(file)
