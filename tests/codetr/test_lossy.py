from __future__ import annotations

import os
import sys

import pytest

from codetr.lossy import LossyStderr


def test_what_a_full_disk_does_not_take_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert LossyStderr().write("a line\n") == 7
        LossyStderr().flush()


def test_the_rest_is_standard_error(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        LossyStderr().write("für alle\n")
        assert not LossyStderr().isatty()
    assert capfd.readouterr().err == "für alle\n"
