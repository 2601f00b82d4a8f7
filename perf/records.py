"""Where a run's figures go, written so that a cut leaves the last whole file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS_NAME = "results.json"


def write_record(record: Mapping[str, Any], output: Path) -> None:
    """Write a record as `output`/results.json; it is written beside and renamed."""
    partial = output / f"{RESULTS_NAME}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(output / RESULTS_NAME)
