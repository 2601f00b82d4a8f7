"""The CUDA implementation of our operators: loaded from their library, which is built on first use.

The library is written against PyTorch's stable ABI, so one build serves PyTorch 2.11 and later. It registers under the
CUDA key of the operators that `ms_deform_attn`, `window_attention`, `linear_e4m3` and `post_attention` beside this
module define; fake kernels and backwards are the ones defined there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

import builder.operators.linear_e4m3
import builder.operators.ms_deform_attn
import builder.operators.post_attention
import builder.operators.window_attention  # noqa: F401  # all define their schemas, before the library would
import plugin_src
from builder.cache import cache_folder
from builder.operators.interface import SCHEMA_VARIABLE
from serving.errors import CodetrError
from serving.manifest import sha256

SOURCE_FOLDER = plugin_src.SOURCES
SOURCES = (
    "ms_deform_attn.cu",
    "torch_op.cpp",
    "window_attn.cu",
    "torch_window_attn.cpp",
    "linear_e4m3.cpp",
    "torch_linear_e4m3.cpp",
    "post_attention.cu",
    "torch_post_attention.cpp",
)
HEADERS = (
    "ms_deform_attn.h",
    "call.h",
    "cublaslt.h",
    "interface.h",
    "elements.cuh",
    "fast.cuh",
    "general.cuh",
    "hopper.cuh",
    "linear_call.h",
    "linear_e4m3.h",
    "locate.h",
    "post_attention.cuh",
    "post_attention.h",
    "post_attention_pieces.cuh",
    "post_attention_rows.cuh",
    "post_attention_work.h",
    "query_tiles.h",
    "sampling.cuh",
    "schedule.h",
    "traits.h",
    "window_attn.h",
    "window_call.h",
    "window_index.h",
)
LIBRARY_PATTERN = "libcodetr_ms_deform_attn*.so"  # beside a package; model_repository/codetr_detector looks for it too
LIBRARY_VARIABLE = "CODETR_CUDA_OPERATOR"  # environment: the path of a library built before
ABI_TARGET = "0x020b000000000000ULL"  # PyTorch 2.11, the oldest supported
# With the instructions that only one architecture has: those of Hopper's tensor cores.
OF_ONE_ARCHITECTURE = {"90": "90a"}


class CudaOperatorError(CodetrError):
    """The CUDA operator could not be built or loaded."""


# Libraries of this process by their SHA-256: a copy would register the same kernel a second time.
_loaded: dict[str, Path] = {}


def load_cuda_operator(library: Path | None = None) -> Path:
    """Make our operators run on CUDA tensors as the library does them.

    The first call builds the library with nvcc, about a minute, and keeps it in `builder.cache.cache_folder()`;
    `$CODETR_CUDA_OPERATOR` names a library built elsewhere instead. Later calls do nothing.

    Args:
        library: the one to load instead, such as that of a repository.

    Returns:
        The path of the library, or of a copy of it that is loaded already.

    Raises:
        CudaOperatorError: there is no GPU, no nvcc, or the build or the loading failed.
    """
    return _load(library)


@cache
def _load(library: Path | None) -> Path:
    if not torch.cuda.is_available():
        raise CudaOperatorError(
            "the CUDA operator needs an NVIDIA GPU and a CUDA build of PyTorch; without them the operator runs on the "
            "CPU"
        )
    library = library or _prebuilt_library() or _cached_library()
    digest = sha256(library)
    if digest in _loaded:
        return _loaded[digest]
    os.environ[SCHEMA_VARIABLE] = "1"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise CudaOperatorError(f"cannot load the CUDA operator from {library}: {error}") from error
    finally:
        del os.environ[SCHEMA_VARIABLE]  # a server started from here must get the schema from the library
    return _loaded.setdefault(digest, library)


def check_cuda_operator() -> None:
    """Check that there is a library to load for the GPU at hand, or nvcc to build it.

    Raises:
        CudaOperatorError: there is neither.
    """
    if _prebuilt_library() is None and not _cache_path().is_file():
        find_nvcc()


def _prebuilt_library() -> Path | None:
    """Return the library that the environment names, if it names one."""
    name = os.environ.get(LIBRARY_VARIABLE)
    if name and not Path(name).is_file():
        raise CudaOperatorError(f"{LIBRARY_VARIABLE} names {name}, which is not a file")
    if name and not Path(name).match(LIBRARY_PATTERN):
        raise CudaOperatorError(
            f"{LIBRARY_VARIABLE} names {name}; the server looks for a file called {LIBRARY_PATTERN}"
        )
    return Path(name) if name else None


def _cached_library() -> Path:
    library = _cache_path()
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        build_cuda_operator(library, [architecture()])
    return library


def _cache_path() -> Path:
    return cache_folder() / f"libcodetr_ms_deform_attn_sm{architecture()}_{fingerprint()}.so"


def architecture() -> str:
    """Return the compute capability of the GPU at hand without the dot, such as 90."""
    return "{}{}".format(*torch.cuda.get_device_capability())


def fingerprint(*files: Path) -> str:
    """Return what tells builds of different sources apart: the operator's, and further files."""
    digest = hashlib.sha256(ABI_TARGET.encode())
    for path in (*(SOURCE_FOLDER / name for name in (*SOURCES, *HEADERS)), *files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_cuda_operator(library: Path, architectures: list[str]) -> None:
    """Compile the operator's library with nvcc.

    Args:
        library: the file to write; it appears whole or not at all.
        architectures: compute capabilities without the dot, for example ["80", "90"].

    Raises:
        CudaOperatorError: nvcc was not found or failed; its messages are on standard error.
    """
    compile_library(library, lambda unfinished: build_command(find_nvcc(), unfinished, architectures))


def compile_library(library: Path, command_for: Callable[[Path], list[str]]) -> None:
    """Run a compiler; `library` appears whole or not at all.

    Args:
        library: the file to write.
        command_for: returns the command that writes the file it is given.

    Raises:
        CudaOperatorError: nvcc was not found or failed; its messages are on standard error.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unfinished = Path(folder) / library.name
        command = command_for(unfinished)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            output = result.stdout + result.stderr
            print(shlex.join(command), output, sep="\n", file=sys.stderr)  # during a build into its log
            raise CudaOperatorError(f"nvcc failed: {_telling_line(output) or f'exit status {result.returncode}'}")
        unfinished.replace(library)


def _telling_line(output: str) -> str:
    """Return the first line of a compiler's messages that reports an error, or the last line of all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)), (lines or [""])[-1])


def build_command(nvcc: Path, library: Path, architectures: list[str]) -> list[str]:
    """Return the command that compiles the operator's library for PyTorch's present installation."""
    torch_folder = Path(torch.__file__).parent
    sources = [str(SOURCE_FOLDER / name) for name in SOURCES]
    numbers = [OF_ONE_ARCHITECTURE.get(number, number) for number in architectures]
    gencode = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    toolkit_libraries = [
        f"-L{folder}" for name in ("lib64", "lib") if (folder := nvcc.resolve().parents[1] / name).is_dir()
    ]
    return [
        str(nvcc), "-std=c++20", "-O3", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden", *gencode,
        f"-DTORCH_TARGET_VERSION={ABI_TARGET}", f"-isystem={torch_folder / 'include'}",
        f"-L{torch_folder / 'lib'}", "-Xlinker=--no-as-needed", "-ltorch_cpu", "-ltorch_cuda", *toolkit_libraries,
        "-o", str(library), *sources,
    ]  # fmt: skip  # one flag a line would hide the command's shape


def find_nvcc() -> Path:
    """Return the compiler: `$CUDA_HOME`, then PATH, /usr/local/cuda, and the pip toolchain of plugin_src/README.md.

    Raises:
        CudaOperatorError: there is none.
    """
    candidates = [Path(home) / "bin/nvcc" for home in [os.environ.get("CUDA_HOME")] if home]
    candidates += [Path(found) for found in [shutil.which("nvcc")] if found]
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    candidates.append(Path(torch.__file__).parents[1] / "nvidia/cu13/bin/nvcc")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CudaOperatorError(
        "nvcc was not found: install the CUDA toolkit, set CUDA_HOME, or install the pip toolchain that "
        "plugin_src/README.md names"
    )
