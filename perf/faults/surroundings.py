"""The record of what a server does in bad company: large images, a slow engine, small disks, damage, its own end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perf.faults.before import ends, fairness, slow_floods
from perf.faults.damage import damages
from perf.faults.places import places
from perf.machine import header
from perf.records import write_record

RECORD_NAME = "surroundings.json"
PARTS = ("fairness", "floods", "ends", "places", "damages")


def run(
    repository: Path, output: Path, parts: Sequence[str], seconds: float, on_case: Callable[[Any], object]
) -> dict[str, Any]:
    """Try the parts, one server after the other, and write the record.

    Args:
        repository: what is served, of one `onnx` engine called `codetr`.
        output: folder of the record.
        parts: which.
        seconds: for each number of clients of `fairness`.
        on_case: called with each result.

    Raises:
        CodetrError: a server cannot be started.
    """
    cases: dict[str, Callable[[], Iterable[Any]]] = {
        "fairness": lambda: fairness(repository, seconds),
        "floods": slow_floods,
        "ends": lambda: ends(repository),
        "places": lambda: places(repository),
        "damages": lambda: damages(repository),
    }
    record: dict[str, Any] = {**header("surroundings"), "load_average": [os.getloadavg()[0]]}
    for part in parts:
        record[part] = []
        for case in cases[part]():
            record[part].append(asdict(case))
            on_case(case)
        record["load_average"].append(os.getloadavg()[0])
        write_record(record, output, RECORD_NAME)
    return record
