"""Where a run's figures go, written so that a cut leaves the last whole file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codetr_client.outputs import check_folder, make_folder, refuse_overwriting, write_whole
from serving.errors import CodetrError

RESULTS_NAME = "results.json"
REPORT_NAMES = ("report.html", "report.md")  # beside it
DRAWN = ("*.svg", "*.csv", "csv", "inputs")  # and beside these, in runs that draw curves
MARK = "begun"  # of a record that only says whose the folder is: nothing is measured yet


def check_output(
    output: Path,
    record: str = RESULTS_NAME,
    reports: Sequence[str] = REPORT_NAMES,
    sources: Iterable[Path | None] = (),
    key: str = "kind",
    others: Sequence[str] = (),
    kind: str | None = None,
) -> None:
    """Check that a run can write `record`, its `reports` and `others`, by patterns, to the folder `output`.

    Files of earlier runs are replaced, and nothing else: a record is known by its `key`, and by its `kind` where
    commands share a name of records; reports by their record.

    Raises:
        CodetrError: `output` is a file, or a source or a file of somebody else would be replaced.
    """
    check_folder(output)
    refuse_overwriting((output / name for name in (record, *reports)), sources)
    foreign = [name for name in (record, *reports) if os.path.lexists(output / name)]
    foreign += sorted(path.name for pattern in others for path in output.glob(pattern))
    if foreign and not _is_own(output / record, key, kind):
        raise CodetrError(
            f"{output} has {', '.join(foreign)}, but not from an earlier run of this kind; move them away, or name "
            "another output"
        )


def _is_own(record: Path, key: str, kind: str | None) -> bool:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content and kind in (None, content[key])


def write_record(record: Mapping[str, Any], output: Path, name: str = RESULTS_NAME) -> None:
    """Write a record as the JSON file `name`, whole or not at all, in the folder `output`, made if it is not there.

    A figure that is no number, such as the p99 of nothing, is null: JSON has no NaN, and most readers refuse it.
    """
    make_folder(output)
    write_whole(output / name, (json.dumps(_numbers(record), indent=1, allow_nan=False) + "\n").encode())


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def begin(output: Path, kind: str) -> None:
    """Put a mark in the place of the record of an earlier run, and remove its reports.

    By the mark a run of this kind knows its folder again, whatever lies there when this one fails.
    """
    for name in REPORT_NAMES:
        (output / name).unlink(missing_ok=True)
    write_record({"kind": kind, MARK: True}, output)


def measured(output: Path) -> dict[str, Any] | None:
    """Return the record that a run has left in `output` since it began, or None; a mark that marks nothing goes."""
    path = output / RESULTS_NAME
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if MARK not in record:
        return record
    if list(output.iterdir()) == [path]:
        path.unlink()
    return None


@contextmanager
def reporting(output: Path, kind: str, report: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Hand the record that the `with` block leaves in `output` to `report`, also if the block ends with an error.

    An earlier run's record and reports are removed first, so that a report is of this run or there is none.
    """
    begin(output, kind)
    try:
        yield
    finally:
        if (record := measured(output)) is not None:
            report(record)
