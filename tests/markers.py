"""Markers that several test files share."""

from __future__ import annotations

import platform
import shutil

import pytest

# `make setup` fetches it wherever it exists, so there its absence is a failure and not a skip.
needs_perf_analyzer = pytest.mark.skipif(
    shutil.which("perf_analyzer") is None and (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="the wheel of perf_analyzer is for x86-64 Linux, and there is none on PATH",
)
