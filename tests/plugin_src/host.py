"""Kernels for Hopper GPUs, compiled for the CPU on which tests run."""

import ctypes
import shutil
import subprocess

from tests.markers import missing

WARNINGS = "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"  # unroll is nvcc's
OPTIONS = "-std=c++17", "-O3", "-ffp-contract=off", *WARNINGS, "-shared", "-fPIC"


def compiled(folder, source):
    """Return the library of a source that includes plugin_src/test/fake_hopper.h."""
    if not shutil.which("g++"):
        missing("needs g++")
    path = folder / "libhost.so"
    done = subprocess.run(["g++", *OPTIONS, "-o", path, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path))
