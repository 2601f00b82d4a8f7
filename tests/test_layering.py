"""Which folder may import which: the directions of the design, read from every import statement."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "builder", "clients", "codetr", "codetr_client", "demo", "examples", "model_repository", "perf", "plugin_src",
    "serving", "tests",
)  # fmt: skip  # a set of words; codetr_client lies in clients, whose own name is for old programs

# Everyone reports faults with the same exceptions.
ERRORS = {"serving.errors"}
ALLOWED: dict[str, set[str]] = {
    "serving": {"serving", "codetr_client.contract", "codetr_client.errors"},
    # serving.manifest: what the builder writes and the launcher checks
    # serving.postprocess: the AP of an engine is that of what the server answers
    # codetr_client: what a server answers, and how boxes are drawn, are the client's; verification shows the same
    "builder": {
        "builder",
        "codetr_client.detections",
        "codetr_client.drawing",
        "serving.contract",
        "serving.preprocess",
        "serving.postprocess",
        "serving.manifest",
        "serving.rules",
        "demo.shapes",
        "model_repository",  # the templates it fills in, and the runner that verification shares with the server
        "plugin_src",
    }
    | ERRORS,
    "demo": {"demo", "builder", "serving.preprocess"} | ERRORS,
    "clients": {"codetr_client"},
    # serving: perf measures its steps and starts servers
    "perf": {"perf", "builder", "codetr_client", "demo.shapes", "model_repository", "serving"},
    "plugin_src": {"plugin_src"},
    "model_repository": {"serving", "torch_runner"},
    "codetr": {"codetr", "builder", "codetr_client", "demo", "perf", "serving"},
    "examples": {"codetr_client"},
}


def imports(source: str) -> set[str]:
    """Modules of ours that a file names in an import, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            if node.module in FOLDERS:  # `from serving import triton` names a module, not an attribute
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
                names.discard(node.module)
    return {name for name in names if name.split(".")[0] in FOLDERS}


def violations(folder: str, source: str) -> set[str]:
    allowed = ALLOWED[folder]
    return {name for name in imports(source) if not any(name == ok or name.startswith(f"{ok}.") for ok in allowed)}


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_follow_the_design(folder: str) -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in (ROOT / folder).rglob("*.py")
        if (names := violations(folder, path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        pytest.param("serving", "from builder.pipeline.manifest import describe", id="serving stands alone"),
        pytest.param("builder", "def f():\n    import serving.triton", id="inside a function"),
        pytest.param("builder", "from serving import triton", id="a module named as an attribute"),
        pytest.param("clients", "from serving.errors import CodetrError", id="the client stands alone"),
        pytest.param("serving", "import codetr_client.client", id="serving knows the contract, not the client"),
        pytest.param("perf", "from clients.client import CoDetrClient", id="an old name"),
        pytest.param("builder", "import perf.engine.run", id="only codetr imports perf"),
        pytest.param("codetr", "import tests.tiny_engine", id="nobody imports tests"),
    ],
)
def test_a_wrong_direction_is_found(folder: str, source: str) -> None:
    assert violations(folder, source)


def options_in_errors(source: str) -> list[str]:
    """Texts of errors that name an option of the command line, which only `codetr` knows."""
    texts = [
        node.value
        for error in ast.walk(ast.parse(source))
        if isinstance(error, ast.Raise)
        for node in ast.walk(error)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text)]


@pytest.mark.parametrize("folder", ["builder", "clients", "perf", "serving"])
def test_errors_of_libraries_name_arguments(folder: str) -> None:
    found = [text for path in (ROOT / folder).rglob("*.py") for text in options_in_errors(path.read_text("utf-8"))]
    assert not found
    assert options_in_errors('raise E(f"{x} is there; name another --output") from error')


@pytest.mark.parametrize("path", sorted((ROOT / "model_repository").glob("*/1/*.py")), ids=lambda path: path.parts[-3])
def test_model_code_is_thin(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_serving_needs_neither_torch_nor_tritonclient() -> None:
    modules = [f"serving.{path.stem}" for path in (ROOT / "serving").glob("*.py") if path.stem != "__init__"]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'tritonclient', 'onnxruntime', 'grpc'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
