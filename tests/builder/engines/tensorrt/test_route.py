"""Which frontend and which interpreter build a plan, with stand-ins of TensorRT."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from builder.engines import EngineError
from builder.engines.tensorrt import TensorRTSettings, check, check_quantised, route
from builder.engines.tensorrt.child import TensorRTPython

HERE = Path(sys.executable)


@pytest.fixture
def installed(monkeypatch):
    """Let this Python have these modules, and no other TensorRT."""

    def install(*names):
        for name in ("tensorrt", "torch_tensorrt"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name) if name in names else None)

    monkeypatch.delenv(route.PYTHON_VARIABLE, raising=False)
    return install


def python_with(folder, tensorrt):
    """Return a program that is this Python with a module tensorrt of this source."""
    (folder / "tensorrt.py").write_text(tensorrt)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("modules", "settings", "frontend"),
    [
        pytest.param(["tensorrt", "torch_tensorrt"], {}, "torch-tensorrt", id="both are installed"),
        pytest.param(["tensorrt"], {}, "onnx", id="tensorrt alone"),
        pytest.param([], {}, "onnx", id="neither, so another Python must have it"),
        pytest.param(["torch_tensorrt"], {"python": Path("/a/python")}, "onnx", id="another Python is named"),
        pytest.param(["torch_tensorrt"], {"marked_modules": ("a",)}, "onnx", id="outputs are to be marked"),
        pytest.param(["torch_tensorrt"], {"frontend": "onnx"}, "onnx", id="asked for"),
        pytest.param([], {"frontend": "torch-tensorrt"}, "torch-tensorrt", id="asked for, though missing"),
    ],
)
def test_the_frontend_is_what_is_asked_for_or_installed(installed, modules, settings, frontend):
    installed(*modules)
    assert route.frontend_of(TensorRTSettings(**settings)) == frontend


def test_torch_tensorrt_runs_in_this_python_alone():
    settings = TensorRTSettings(frontend="torch-tensorrt", python=Path("/a/python"))
    with pytest.raises(EngineError, match=r"runs in this Python, not in /a/python; use the onnx frontend"):
        route.frontend_of(settings)


def test_torch_tensorrt_marks_no_outputs():
    settings = TensorRTSettings(frontend="torch-tensorrt", marked_modules=("encoder.*",))
    with pytest.raises(EngineError, match=r"marks no outputs of modules; use the onnx frontend"):
        route.frontend_of(settings)


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (Path("/given"), "/named", Path("/given")),
        (None, "/named", Path("/named")),
        (None, "", HERE),
        (None, None, HERE),
    ],
)
def test_the_python_is_given_or_the_environments_or_this_one(monkeypatch, given, variable, expected):
    monkeypatch.delenv(route.PYTHON_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(route.PYTHON_VARIABLE, variable)
    python = route.python_of(TensorRTSettings(python=given))
    assert python.executable == expected
    assert route.is_this(python) == (expected == HERE)


def test_the_version_is_that_of_the_other_python(tmp_path, installed):
    installed()
    python = TensorRTPython(python_with(tmp_path, "__version__ = '8.5.3.1'"))
    assert route.version_of(python) == "8.5.3.1"


def test_nothing_installed_says_what_to_do(installed):
    installed()
    with pytest.raises(
        EngineError, match="has neither; install one, name a Python that has tensorrt in CODETR_TENSORR"
    ):
        check(uses_operator=False)


def test_a_python_without_tensorrt_is_named(tmp_path, installed):
    installed()
    python = python_with(tmp_path, "raise ImportError('libnvinfer.so.8 is missing')")
    with pytest.raises(EngineError, match=r"cannot import tensorrt: libnvinfer\.so\.8 is missing$"):
        check(uses_operator=False, settings=TensorRTSettings(python=python))


@pytest.mark.parametrize(
    ("version", "old"), [("8.5.3.1", True), ("8.6.1", True), ("10.16.1.11", False), ("11.4", False)]
)
def test_releases_are_told_apart(version, old):
    assert route.is_8(version) is old


@pytest.mark.parametrize(
    ("version", "precision", "words"),
    [
        pytest.param("8.5.3.1", "int8", None, id="INT8 in every release"),
        pytest.param("8.5.3.1", "fp8", "TensorRT 8.5.3.1 has no fp8; 10.6 and later do", id="FP8 in 8"),
        pytest.param("10.5.0", "fp8", "TensorRT 10.5.0 has no fp8", id="FP8 before 10.6"),
        pytest.param("10.6.0", "fp8", None, id="FP8 from 10.6 on"),
    ],
)
def test_a_quantised_precision_needs_a_release_that_has_it(tmp_path, version, precision, words):
    python = python_with(tmp_path, f"__version__ = '{version}'")
    settings = TensorRTSettings(frontend="onnx", python=python)
    if words is None:
        check_quantised(precision, settings)
        return
    with pytest.raises(EngineError, match=words):
        check_quantised(precision, settings)


def test_a_quantised_precision_needs_the_onnx_frontend():
    with pytest.raises(EngineError, match="int8 plans are built by the onnx frontend; ask for that one"):
        check_quantised("int8", TensorRTSettings(frontend="torch-tensorrt"))
