"""Reference data shared by the tests; tests/data/README.md says where it comes from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
# `make test` installs mmengine here, apart from this environment: it asks for another OpenCV.
MMENGINE = Path(__file__).parent.parent / "build" / "mmengine"

# A shell ignores SIGINT in what it starts in the background, and programs that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
def mmengine_runs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what mmengine's runner saved in each case of `tests/mmengine_runner`; tests must not change it."""
    if not (MMENGINE / "mmengine").is_dir():
        reason = f"no mmengine in {MMENGINE}; `make test` installs it"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("mmengine")
    script = Path(__file__).parent / "mmengine_runner" / "train_with_runner.py"
    # mmengine 0.10.7 cannot read its own files with the default of PyTorch 2.6, which it must to publish them.
    environment = os.environ | {"PYTHONPATH": str(MMENGINE), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    command = [sys.executable, str(script), str(data_dir), str(folder)]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder
