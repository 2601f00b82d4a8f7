"""Where a run's figures go, written so that a cut leaves the last whole file."""

from __future__ import annotations

import json
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


def check_output(
    output: Path,
    record: str = RESULTS_NAME,
    reports: Sequence[str] = REPORT_NAMES,
    sources: Iterable[Path | None] = (),
    key: str = "kind",
    others: Sequence[str] = (),
) -> None:
    """Check that a run can write `record`, its `reports` and `others`, by patterns, to the folder `output`.

    Files of earlier runs are replaced, and nothing else: a record is known by its `key`, reports by their record.

    Raises:
        CodetrError: `output` is a file, or a source or a file of somebody else would be replaced.
    """
    check_folder(output)
    refuse_overwriting((output / name for name in (record, *reports)), sources)
    foreign = [name for name in (record, *reports) if os.path.lexists(output / name)]
    foreign += sorted(path.name for pattern in others for path in output.glob(pattern))
    if foreign and not _is_own(output / record, key):
        raise CodetrError(
            f"{output} has {', '.join(foreign)}, but not from an earlier run of this kind; move them away, or name "
            "another output"
        )


def _is_own(record: Path, key: str) -> bool:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content


def write_record(record: Mapping[str, Any], output: Path, name: str = RESULTS_NAME) -> None:
    """Write a record as the JSON file `name`, whole or not at all, in the folder `output`, made if it is not there."""
    make_folder(output)
    write_whole(output / name, (json.dumps(record, indent=1) + "\n").encode())


def remove_earlier(output: Path) -> None:
    """Remove the record and the reports of an earlier run."""
    for name in (RESULTS_NAME, *REPORT_NAMES):
        (output / name).unlink(missing_ok=True)


@contextmanager
def reporting(output: Path, report: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Hand the record that the `with` block leaves in `output` to `report`, also if the block ends with an error.

    An earlier run's record and reports are removed first, so that a report is of this run or there is none.
    """
    path = output / RESULTS_NAME
    remove_earlier(output)
    try:
        yield
    finally:
        if path.exists():
            report(json.loads(path.read_text(encoding="utf-8")))
