"""Which TensorRT builds a plan, and through which frontend."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

from builder.engines import EngineError
from builder.engines.tensorrt.child import TensorRTPython
from builder.engines.tensorrt.settings import Frontend, TensorRTSettings

PYTHON_VARIABLE = "CODETR_TENSORRT_PYTHON"  # environment: the interpreter that has TensorRT, where this one has none


def frontend_of(settings: TensorRTSettings) -> Frontend:
    """Return the frontend that is asked for, or else the one that is installed.

    Another interpreter that is asked for is one for the onnx frontend, and only that marks outputs.

    Raises:
        EngineError: torch-tensorrt is to run in another interpreter, or to mark outputs.
    """
    if settings.frontend == "torch-tensorrt" and settings.python is not None:
        raise EngineError(
            f"frontend torch-tensorrt runs in this Python, not in {settings.python}; use the onnx frontend for another"
        )
    if settings.frontend == "torch-tensorrt" and settings.marked_modules:
        raise EngineError("frontend torch-tensorrt marks no outputs of modules; use the onnx frontend")
    if settings.frontend is not None:
        return settings.frontend
    for_onnx = settings.python is not None or settings.marked_modules
    return "torch-tensorrt" if not for_onnx and _is_here("torch_tensorrt") else "onnx"


def python_of(settings: TensorRTSettings) -> TensorRTPython:
    """Return the interpreter that has TensorRT: the settings', the environment's, or this one."""
    return TensorRTPython(settings.python or Path(os.environ.get(PYTHON_VARIABLE) or sys.executable))


def is_this(python: TensorRTPython) -> bool:
    """Return whether an interpreter is the one that runs this."""
    return python.executable.absolute() == Path(sys.executable).absolute()


def version_of(python: TensorRTPython) -> str:
    """Return the version of an interpreter's TensorRT, such as 8.5.3.1.

    Raises:
        EngineError: it has none, or cannot be run; says what to do.
    """
    if is_this(python) and not _is_here("tensorrt"):
        raise EngineError(
            "the tensorrt engine needs torch_tensorrt or tensorrt, and this Python has neither; install one, name a "
            f"Python that has tensorrt in {PYTHON_VARIABLE}, or use the onnx engine"
        )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        try:
            version: str = python.ask({"task": "version"}, log)["tensorrt"]
        except EngineError as error:
            raise EngineError(str(error).removesuffix(f"; log: {log}")) from error
    return version


def is_8(version: str) -> bool:
    """Return whether a release is one of TensorRT 8."""
    return version.split(".")[0] == "8"


def _is_here(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return False
    return True
