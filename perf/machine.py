"""What a result must say about the machine it comes from."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

# Packages whose version can change a figure.
PACKAGES = ("numpy", "opencv-python-headless", "pillow", "onnxruntime", "torch", "torch-tensorrt", "tritonclient")
GPU_QUERY = "name,driver_version,memory.total,clocks.max.sm"


def describe() -> dict[str, Any]:
    """Return processor, memory, GPUs (empty without `nvidia-smi`), system and package versions; JSON-ready."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def header(kind: str) -> dict[str, Any]:
    """Return what every result file starts with: its kind, when and by which command it was made, and where."""
    return {
        "kind": kind,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": describe(),
    }


def command_line() -> str:
    """Return the command that this process was started by, the program's name without its folder."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def summary(machine: dict[str, Any]) -> str:
    """Return one line that names a machine."""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return f"{machine['cpu']}, {machine['cores']} cores, {gpus}; Python {machine['python']}, {versions}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.splitlines() if done.returncode == 0 else []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
