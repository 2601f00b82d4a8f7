"""Reference data shared by the tests; tests/data/README.md says where it comes from."""

from __future__ import annotations

import copy
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tests.markers import missing

DATA = Path(__file__).parent / "data"
SERVERS = "tests/e2e/"
# `make test` installs mmengine here, apart from this environment: it asks for another OpenCV.
MMENGINE = Path(__file__).parent.parent / "build" / "mmengine"

# Small enough to build and run in seconds on two cores, neither square nor a multiple of the Swin window.
HEIGHT, WIDTH = 96, 136
SEED = 20261126
# Room for a request of five images, and for neighbours in a dynamic batch.
MAX_BATCH = 8

# A shell ignores SIGINT in what it starts in the background, and programs that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Else garbage is looked for again and again among thousands of collected tests and all of PyTorch, which is none.
gc.disable()


def pytest_collection_finish() -> None:
    """Let garbage be looked for from here on, among what tests make; an export makes millions of small objects."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before markers are selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what waits for an engine, by the fixture that builds them; begin with what starts servers: it waits most."""
    for item in items:
        if "built_once" in getattr(item, "fixturenames", ()):
            item.add_marker("engine")
    items.sort(key=lambda item: not item.nodeid.startswith(SERVERS))


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup() -> None:
    """Let each test draw the numbers that it draws alone; which ones its process ran before is chance."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one process have all tests that start servers, and the others whole files, which share what they build."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SERVERS if nodeid.startswith(SERVERS) else nodeid.split("::")[0]

    return Scheduling(config, log)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of what a test draws: always the same, so that it does not fail by chance; in the slow lane new."""
    return random.SystemRandom().randrange(10**6) if request.node.get_closest_marker("slow") else SEED


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return DATA


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "golden_swin_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_config(golden: dict[str, np.ndarray]) -> dict[str, Any]:
    return json.loads(bytes(golden["config_json"]).decode())


@pytest.fixture(scope="session")
def golden_weights(golden: dict[str, np.ndarray]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {key.removeprefix("sd/"): torch.from_numpy(golden[key]) for key in golden if key.startswith("sd/")}


@pytest.fixture(scope="session")
def shallow_config(golden_config: dict[str, Any]) -> dict[str, Any]:
    """The reference data's detector with one layer of each kind, one shifted window and three levels of two maps.

    It is exported in half the time.
    """
    config = copy.deepcopy(golden_config)
    config["backbone"] |= {"depths": [2, 1], "num_heads": [1, 2], "strides": (4, 2), "out_indices": [0, 1]}
    config["neck"] |= {"in_channels": [16, 32], "num_outs": 3}
    transformer = config["query_head"]["transformer"]
    transformer["num_feature_levels"] = 3
    for part in ("encoder", "decoder"):
        transformer[part]["num_layers"] = 1
        attention = transformer[part]["transformerlayers"]["attn_cfgs"]
        (attention if part == "encoder" else attention[1])["num_levels"] = 3
    return config


@pytest.fixture(scope="session")
def shallow_weights(data_dir: Path, golden_weights: dict[str, Any]) -> dict[str, Any]:
    """Its weights, and small ones by the names that only training has."""
    import torch

    deeper = re.compile(
        r"\.stages\.1\.(blocks\.1|downsample)\.|(stages\.|backbone\.norm|neck\.convs\.)[23]\.|coder\.layers\.1\.|_branches\.2\."
    )
    weights = {key: _of_three_levels(key, value) for key, value in golden_weights.items() if not deeper.search(key)}
    shapes = json.loads((data_dir / "keys_swin_l.json").read_text())["training_only"]
    return weights | {key: torch.ones([min(side, 4) for side in shape]) for key, shape in shapes.items()}


def _of_three_levels(key: str, weight: Any) -> Any:
    """Return the part of a weight of the reference data, which has five levels of four maps."""
    if key.endswith("level_embeds"):
        return weight[:3]
    if "sampling_offsets" in key or "attention_weights" in key:
        return weight.unflatten(0, (8, 5, -1))[:, :3].flatten(0, 2)  # by head and level
    return weight[:, :32] if "extra_convs" in key and weight.ndim == 4 else weight


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives the path that a function has written, or lets it write it: once for all processes of `make test`.

    Without a folder of that (CODETR_TEST_BUILDS) it is once for the processes of this pytest.
    """
    given, base = os.environ.get("CODETR_TEST_BUILDS"), tmp_path_factory.getbasetemp()
    workers = "PYTEST_XDIST_WORKER" in os.environ  # each has a folder of its own within the common one
    folder = Path(given).absolute() if given else (base.parent if workers else base) / "built"
    folder.mkdir(parents=True, exist_ok=True)

    def build(name: str, write: Callable[[Path], object]) -> Path:
        with FileLock(folder / f".{name}.lock"):
            if not (folder / name).exists():
                write(folder / name)
        return folder / name

    return build


@pytest.fixture(scope="session")
def checkpoint(shallow_weights: dict[str, Any], built_once: Callable[..., Path]) -> Path:
    """A Swin Co-DINO of the reference data as a checkpoint file, with what only training needs."""
    import torch

    return built_once("tiny.pth", lambda path: torch.save({"state_dict": shallow_weights}, path))


@pytest.fixture(scope="session")
def repository(shallow_config: dict[str, Any], checkpoint: Path, built_once: Callable[..., Path]) -> Path:
    """What `codetr build` writes for the tiny detector with the ONNX engine; tests must not change it."""
    from builder.pipeline.build import BuildOptions, build_repository
    from builder.pipeline.export import InputSpec
    from builder.variants import from_mmdet_config

    options = BuildOptions(from_mmdet_config(shallow_config), InputSpec(HEIGHT, WIDTH, MAX_BATCH), checkpoint)
    return built_once("repository", lambda path: build_repository(options, path))


@pytest.fixture(scope="session")
def mmengine_runs(shallow_weights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mmengine's runner saved in each case of `tests/mmengine_runner`, in a folder that tests must not change."""
    if not (MMENGINE / "mmengine").is_dir():
        reason = f"no mmengine in {MMENGINE}; `make test` installs it"
        missing(reason)
    folder = tmp_path_factory.mktemp("mmengine")
    np.savez(folder / "start.npz", **{key: value.numpy() for key, value in shallow_weights.items()})
    script = Path(__file__).parent / "mmengine_runner" / "train_with_runner.py"
    # mmengine 0.10.7 cannot read its own files with the default of PyTorch 2.6, which it must to publish them.
    environment = os.environ | {"PYTHONPATH": str(MMENGINE), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    command = [sys.executable, str(script), str(folder / "start.npz"), str(folder)]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder
