"""Markers that several test files share."""

from __future__ import annotations

import os
import platform
import shutil

import pytest

# `make setup` fetches it wherever it exists, so there its absence is a failure and not a skip.
needs_perf_analyzer = pytest.mark.skipif(
    shutil.which("perf_analyzer") is None and (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="the wheel of perf_analyzer is for x86-64 Linux, and there is none on PATH",
)

# Debian's package `prometheus`, which .ci/run installs: CI must not pass without.
needs_prometheus = pytest.mark.skipif(
    (shutil.which("prometheus") is None or shutil.which("promtool") is None) and os.environ.get("CI") != "true",
    reason="no prometheus and promtool on PATH; Debian's package prometheus has both",
)

# Debian's package `kubernetes-client`, or another with the same program; .ci/run installs it: CI must not pass without.
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None and os.environ.get("CI") != "true",
    reason="no kubectl on PATH; Debian's package kubernetes-client has it, from release 13 on new enough (1.22)",
)
