"""The plain kernel that the operator is compared with, built when a benchmark first asks for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

from builder.cache import cache_folder
from builder.operators.cuda import SOURCE_FOLDER, architecture, compile_library, find_nvcc, fingerprint

SOURCE = Path(__file__).with_name("plain.cu")


@cache
def load_plain_kernel() -> Callable[..., int]:
    """Return the plain kernel as a C function: see `codetrMsDeformAttnPlain` in plain.cu.

    Raises:
        CudaOperatorError: there is no nvcc, or it failed.
    """
    library = cache_folder() / f"libcodetr_plain_sm{architecture()}_{fingerprint(SOURCE)}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        compile_library(library, lambda unfinished: build_command(find_nvcc(), unfinished, architecture()))
    function = ctypes.CDLL(str(library)).codetrMsDeformAttnPlain
    function.restype = ctypes.c_int
    return cast("Callable[..., int]", function)


def build_command(nvcc: Path, library: Path, number: str) -> list[str]:
    """Return the command that compiles the kernel for one architecture, such as 90."""
    return [
        str(nvcc), "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden",
        f"-gencode=arch=compute_{number},code=sm_{number}", f"-I{SOURCE_FOLDER}",
        *(f"-L{folder}" for folder in (nvcc.resolve().parents[1] / "lib64", nvcc.resolve().parents[1] / "lib")
          if folder.is_dir()),
        "-o", str(library), str(SOURCE),
    ]  # fmt: skip  # one flag a line would hide the command's shape
