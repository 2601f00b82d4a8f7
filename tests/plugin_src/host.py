"""C++ of `plugin_src`, compiled for the CPU on which tests run."""

import ctypes
import shutil
import subprocess

from tests.markers import missing

OPTIONS = "-std=c++17", "-Wall", "-Wextra", "-Werror"


def compiler(*arguments):
    """Return what the host compiler prints."""
    if not shutil.which("g++"):
        missing("needs g++")
    done = subprocess.run(["g++", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shared_library(path, *arguments):
    """Return the path of the library that is compiled there."""
    compiler(*OPTIONS, "-shared", "-fPIC", "-o", path, *arguments)
    return path


def compiled(folder, source):
    """Return the library of a source that includes plugin_src/test/fake_hopper.h."""
    options = "-O3", "-ffp-contract=off", "-Wno-unknown-pragmas"  # unroll is nvcc's
    return ctypes.CDLL(str(shared_library(folder / "libhost.so", *options, source)))
