"""What a test does that lacks a program."""

from __future__ import annotations

import pytest

from tests.markers import missing


@pytest.mark.parametrize(("ci", "outcome"), [("true", "Failed"), ("", "Skipped"), (None, "Skipped")])
def test_what_is_missing_fails_in_ci_alone(monkeypatch: pytest.MonkeyPatch, ci: str | None, outcome: str) -> None:
    monkeypatch.delenv("CI", raising=False) if ci is None else monkeypatch.setenv("CI", ci)
    with pytest.raises(BaseException, match="no such program") as caught:
        missing("no such program")
    assert type(caught.value).__name__ == outcome
