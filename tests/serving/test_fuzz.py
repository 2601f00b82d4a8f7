"""Hostile files: those that were kept, and new ones. What is counted, and how: `perf/fuzz`."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from perf.fuzz.pieces import FORMATS
from perf.fuzz.sandbox import Kept, Limits, Made, Result, judged

# The largest picture that the limits let through takes about five times its decoded size, 192 MB, in a process.
MOST_MEMORY = 1.5e9


def check(results: list[Result], how: str) -> None:
    faults = [result for result in results if result.outcome.is_fault]
    assert not faults, f"{how}: {[(fault.file, fault.outcome) for fault in faults[:3]]}"
    assert max(result.peak for result in results) < MOST_MEMORY, how


def test_files_that_were_kept_are_accepted_or_refused(data_dir: Path) -> None:
    files = [Kept(path.name, path.read_bytes()) for path in sorted((data_dir / "fuzz").glob("*.bin"))]
    by_format = Counter(name for name, _ in groupby(files, lambda file: file.name.split("-")[0]))
    assert set(by_format) == set(FORMATS)
    check(list(judged(files, Limits())), "kept")


@pytest.mark.parametrize("count", [500, pytest.param(1000, marks=pytest.mark.slow)])
def test_new_files_are_accepted_or_refused(seed: int, count: int) -> None:
    how = f"codetr bench fuzz --requests 0 --files {count} --seed {seed}"
    results = list(judged([Made(form, seed, number) for form in FORMATS for number in range(count)], Limits()))
    check(results, how)
    kinds = Counter((result.file.form, result.outcome.kind) for result in results)
    assert min(kinds[form, kind] for form in FORMATS for kind in ("accepted", "refused")) >= 25, f"{how}: {kinds}"


def test_the_kept_files_are_few(data_dir: Path) -> None:
    assert sum(path.stat().st_size for path in (data_dir / "fuzz").iterdir()) < 300_000
