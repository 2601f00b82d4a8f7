from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import CodetrError
from serving.tls import TlsFiles
from tests.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_files_that_belong_together_pass(authority: Authority) -> None:
    cert, key = authority.issue("server")
    TlsFiles(cert, key).check()
    TlsFiles(cert, key, authority.cert).check()


def test_files_that_cannot_work_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("one")
    _, other_key = authority.issue("other")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    with pytest.raises(CodetrError, match=r"missing.pem cannot be read \(No such file or directory\); expected .* PEM"):
        TlsFiles(tmp_path / "missing.pem", key).check()
    with pytest.raises(CodetrError, match=r"one.pem and .*other.key are no certificate and its private key .*mismatch"):
        TlsFiles(cert, other_key).check()
    with pytest.raises(CodetrError, match=r"text.pem and .*one.key are no certificate and its private key"):
        TlsFiles(text, key).check()
    with pytest.raises(CodetrError, match=r"text.pem holds no certificate in PEM"):
        TlsFiles(cert, key, text).check()
    with pytest.raises(CodetrError, match=r"/dev/zero cannot be read \(it is a device, not a file\); expected .* PEM"):
        TlsFiles(Path("/dev/zero"), key).check()


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(authority: Authority) -> None:
    """As a service, nobody sits at the terminal."""
    cert, key = authority.issue("shut", password="secret")
    with pytest.raises(CodetrError, match=r"shut.key are no certificate and its private key in PEM without a password"):
        TlsFiles(cert, key).check()
