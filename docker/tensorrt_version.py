"""Print the version of this machine's libnvinfer as major.minor.patch, or compare it and the Python package's.

`--expect VERSION` ends with status 1 and one line where libnvinfer or the Python package `tensorrt` has another.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys


def library_version() -> str:
    """Return the version that libnvinfer gives: 110100 stands for 11.1.0."""
    name = ctypes.util.find_library("nvinfer") or "libnvinfer.so.11"
    number = ctypes.CDLL(name).getInferLibVersion()
    return decode(number)


def decode(number: int) -> str:
    """Return TensorRT's version number as text."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def fault(expected: str, versions: dict[str, str]) -> str | None:
    """Return what differs from the version that the plugin was built against, or None."""
    wrong = [f"{name} is {version}" for name, version in versions.items() if version != expected]
    return f"the plugin was built against TensorRT {expected}, but {' and '.join(wrong)}" if wrong else None


def main() -> None:
    """Print or compare."""
    if sys.argv[1:2] != ["--expect"]:
        print(library_version())
        return
    from importlib import metadata

    package = ".".join(metadata.version("tensorrt").split(".")[:3])
    problem = fault(sys.argv[2], {"libnvinfer": library_version(), "the Python package": package})
    if problem:
        sys.exit(f"error: {problem}; choose NVIDIA_RELEASE and TORCH_RELEASE that belong together")


if __name__ == "__main__":
    main()
