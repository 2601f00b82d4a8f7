"""Which folder may import which: the directions of the design, read from every import statement."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
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
    # what an image file's metadata are must be the same to the server and to a client that encodes and draws
    "serving": {
        "serving",
        "codetr_client.containers",
        "codetr_client.contract",
        "codetr_client.errors",
        "codetr_client.exif",
        "codetr_client.inputs",
        "codetr_client.jpeg",
        "codetr_client.threshold",
    },
    # serving.manifest: what the builder writes and the launcher checks
    # serving.postprocess: the AP of an engine is that of what the server answers
    # codetr_client: what a server answers, and how boxes are drawn, are the client's; verification shows the same
    "builder": {
        "builder",
        "codetr_client.detections",
        "codetr_client.drawing",
        # a picture's size beside annotations is that which the server decodes
        "codetr_client.containers",
        "codetr_client.exif",
        "codetr_client.jpeg",
        "codetr_client.inputs",  # a file that never ends is refused alike
        "codetr_client.outputs",  # what may be replaced, and how a file is written whole
        "codetr_client.text",  # text from files is shown alike by everyone
        "serving.contract",
        "serving.decode",  # pictures that engines are compared and calibrated on are those that the server decodes
        "serving.integers",  # how ONNX Runtime multiplies integers, here as in the server
        "serving.preprocess",
        "serving.postprocess",
        "serving.manifest",
        "serving.rules",
        "serving.versions",  # what a version is called, and whether a server holds it
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
    "model_repository": {"plan_runner", "serving", "torch_runner"},
    "codetr": {"codetr", "builder", "codetr_client", "demo", "perf", "serving"},
    "examples": {"codetr_client"},
}


FAMILIES = tuple(sorted(path.parent.name for path in (ROOT / "builder").glob("*/family.py")))
# Within `builder` and `demo`, by module or folder: the longest name decides. `engines.kinds` is of the builder's own
# words, as is `pipeline.export`, the program and the input size that every kind of engine starts from.
LAYERS: dict[str, set[str]] = {
    "demo.shapes": {"demo.shapes"},
    "builder.reading": {"builder.reading", "codetr_client.text", "serving.manifest"} | ERRORS,
    # what readers of a family's configs share; the family is for its VariantError, as in parts
    "builder.reading.settings": {"builder.reading.config_values", "builder.family"} | ERRORS,
    "builder.precision": set(),
    "builder.operators": {"builder.operators", "builder.cache", "plugin_src", "serving.manifest"} | ERRORS,
    "builder.parts": {"builder.parts", "builder.operators", "builder.family"},
    "builder.detector": {"builder.family", "builder.operators.post_attention_layer"},  # what joined layers are asked by
    "builder.family": {"builder.detector", "serving.contract", "serving.rules"} | ERRORS,
    **{
        f"builder.{family}": {
            f"builder.{family}", "builder.parts", "builder.operators", "builder.family", "builder.detector",
            "builder.reading.settings", "demo.shapes", "serving.contract", "serving.rules",
        } | ERRORS
        for family in FAMILIES
    },
    "builder.families": {"builder.family", *(f"builder.{family}.family" for family in FAMILIES)},
    "builder.variants": {"builder.families", "builder.family", "builder.co_dino.config"},  # names that users import
    "builder.checkpoint": {
        "builder.reading", "builder.detector", "builder.family", "builder.families", "builder.variants",
        "builder.precision", "codetr_client.text",
    } | ERRORS,
    "builder.engines": {
        "builder.engines", "builder.detector", "builder.operators", "builder.pipeline.export", "builder.precision",
        "codetr_client.outputs", "model_repository", "plugin_src", "serving.contract", "serving.integers",
        "serving.manifest",
        # what stands in a program's graph, or takes the place of its layers
        "builder.quantise.calibration", "builder.quantise.integers", "builder.quantise.layers",
        "builder.quantise.operator",
    } | ERRORS,
    "builder.quantise.operator": {"builder.precision"},
    "builder.quantise.integers": {"builder.quantise.operator"},
    "builder.quantise.calibration": {"builder.detector", "builder.engines"},
    "builder.quantise.layers": {
        "builder.precision", "builder.quantise.calibration", "builder.quantise.operator",
        "builder.operators.linear_e4m3",  # how E4M3 is rounded
    },
    "builder.quantise.search": {"builder.engines"},
    "builder.pipeline.export": {
        "builder.engines",
        "builder.operators.linear_e4m3",
        "builder.operators.ms_deform_attn",
        "builder.operators.post_attention",
        "builder.operators.window_attention",
        "builder.parts.layers",
    }
    | ERRORS,
    "builder.pipeline.ap": ERRORS,
}  # fmt: skip  # sets of words
# Beyond `builder.family` and the lists made of it, only what trains or measures one network knows which it is.
KNOW_A_FAMILY = {"builder.families", "builder.variants", "demo.train", "perf.accuracy.canvas", "perf.cost", "codetr"}


def imports(source: str) -> set[str]:
    """Modules of ours that a file names in an import, at any depth; a relative one by its dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from serving import triton` names a module, not an attribute
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = members if node.module in FOLDERS else {name for name in members if is_module(name)}
            names |= modules or {node.module}
    return {name for name in names if name.split(".")[0] in ("", *FOLDERS)}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def beyond(allowed: set[str], names: set[str]) -> set[str]:
    return {name for name in names if not any(name == ok or name.startswith(f"{ok}.") for ok in allowed)}


def violations(folder: str, source: str) -> set[str]:
    return beyond(ALLOWED[folder], imports(source))


def within(name: str, folders: Iterable[str]) -> str | None:
    """The longest of the modules and folders that holds a module."""
    return max((each for each in folders if f"{name}.".startswith(f"{each}.")), key=len, default=None)


def layer_violations(module: str, source: str) -> set[str]:
    layer, names = within(module, LAYERS), imports(source)
    found = beyond(LAYERS[layer], names) if layer else set()
    families = {name for name in names if within(name, (f"builder.{family}" for family in FAMILIES))}
    if within(module, KNOW_A_FAMILY) or layer in {f"builder.{family}" for family in FAMILIES}:
        families = set()
    return found | families


def modules(*folders: str) -> dict[str, Path]:
    """Every module of these folders by its name."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return dict(zip((name.removesuffix(".__init__") for name in names), paths, strict=True))


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_follow_the_design(folder: str) -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in (ROOT / folder).rglob("*.py")
        if (names := violations(folder, path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize("folder", ["builder", "demo", "perf", "codetr"])
def test_imports_within_a_folder_follow_its_layers(folder: str) -> None:
    found = {
        name: wrong
        for name, path in modules(folder).items()
        if (wrong := layer_violations(name, path.read_text(encoding="utf-8")))
    }
    assert not found


def test_every_layer_is_there() -> None:
    """A folder that moved would leave its row without anything to test."""
    assert "co_dino" in FAMILIES
    assert not [layer for layer in (*LAYERS, *KNOW_A_FAMILY) if not is_module(layer)]


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
        pytest.param("serving", "from ..builder import checkpoint", id="a relative import hides its name"),
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


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("builder.parts.boxes", "from builder.co_dino.config import Variant", id="parts know no family"),
        pytest.param("builder.parts.boxes", "from builder.engines import EngineError", id="parts know no engine"),
        pytest.param("builder.operators.cuda", "import builder.pipeline.export", id="operators know no pipeline"),
        pytest.param("builder.reading.unpickle", "from builder import detector", id="reading stands alone"),
        pytest.param("builder.co_dino.model", "from builder.engines import torch", id="a family knows no engine"),
        pytest.param("builder.co_dino.model", "from builder import families", id="a family is not its list"),
        pytest.param("builder.engines.onnx", "from builder.co_dino.model import CoDINO", id="engines know no family"),
        pytest.param("builder.pipeline.build", "from builder.co_dino import model", id="the pipeline knows no family"),
        pytest.param("builder.a_new_module", "import builder.co_dino.model", id="nor does a module of no layer"),
        pytest.param("builder.families", "import builder.co_dino.model", id="the list knows a family by its value"),
        pytest.param("builder.pipeline.export", "import builder.pipeline.build", id="engines start from export alone"),
        pytest.param("demo.shapes.draw", "from serving.errors import CodetrError", id="drawing stands alone"),
        pytest.param("perf.engine.run", "from builder.co_dino.config import Variant", id="perf knows no family"),
    ],
)
def test_a_wrong_layer_is_found(module: str, source: str) -> None:
    assert layer_violations(module, source)


def test_families_do_not_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from builder.co_dino.model import CoDINO"
    assert not layer_violations("builder.co_dino.weights", source)
    monkeypatch.setitem(LAYERS, "builder.other", LAYERS["builder.co_dino"] - {"builder.co_dino"} | {"builder.other"})
    assert layer_violations("builder.other.model", source)


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
