"""Reference data shared by the tests; tests/data/README.md says where it comes from."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"

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
