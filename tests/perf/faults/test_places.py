from __future__ import annotations

from pathlib import Path

import pytest

from perf.faults.places import places
from tests.tiny_engine import write_tiny_repository


def test_a_machine_without_mounts_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare: not permitted' >&2\nexit 1\n")
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(places(tmp_path))
    assert {each.started for each in found} == {"not tried: unshare: not permitted"}
    assert [each.place for each in found][:2] == ["/dev/shm of 64 MiB", "/dev/shm of 24 MiB"]


@pytest.mark.server
@pytest.mark.slow
def test_small_disks_and_read_only_ones(tmp_path: Path) -> None:
    """What the machine does not let us try says so; as another user the interpreter itself may be out of reach."""
    found = {each.place: each for each in places(write_tiny_repository(tmp_path / "repository"))}
    assert all(each.is_unchanged for each in found.values())
    tried = {place: each for place, each in found.items() if not each.started.startswith("not tried")}
    for place, each in tried.items():
        if place in ("/dev/shm of 3 MiB", "/dev/shm of 1 MiB"):
            assert "need 6 to start" in each.started
        else:
            assert (each.started, each.afterwards, each.end) == ("yes", "answered", 0), place
            assert each.full in ("", "answered"), place
            assert each.large in ("", "answered") or "shared memory pool" in each.large, place
