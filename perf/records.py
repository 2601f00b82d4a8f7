"""Where a run's figures go, written so that a cut leaves the last whole file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS_NAME = "results.json"


def write_record(record: Mapping[str, Any], output: Path) -> None:
    """Write a record as `output`/results.json; it is written beside and renamed."""
    partial = output / f"{RESULTS_NAME}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(output / RESULTS_NAME)


@contextmanager
def reporting(output: Path, report: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Hand the record that the `with` block leaves in `output` to `report`, also if the block ends with an error.

    An earlier run's record is removed first, so that a report is of this run or there is none.
    """
    path = output / RESULTS_NAME
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        if path.exists():
            report(json.loads(path.read_text(encoding="utf-8")))
