"""One built detector and one running tritonserver for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.launch import TritonServer, running_server

# Small enough to build and run in seconds on two cores, neither square nor a multiple of the Swin window.
HEIGHT, WIDTH = 96, 136
# Room for a request of five images, and for neighbours in a dynamic batch.
MAX_BATCH = 8


@pytest.fixture(scope="session")
def checkpoint(golden_weights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Swin Co-DINO of the reference data as a checkpoint file."""
    import torch

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save({"state_dict": golden_weights}, path)
    return path


@pytest.fixture(scope="session")
def repository(golden_config: dict[str, Any], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `codetr build` writes for the tiny detector with the ONNX engine; tests must not change it."""
    from builder.pipeline.build import BuildOptions, build_repository
    from builder.pipeline.export import InputSpec
    from builder.variants import from_mmdet_config

    path = tmp_path_factory.mktemp("repository") / "repository"
    options = BuildOptions(from_mmdet_config(golden_config), InputSpec(HEIGHT, WIDTH, MAX_BATCH), checkpoint)
    build_repository(options, path)
    return path


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    """A real tritonserver with that repository on free loopback ports; tests leave it running."""
    with running_server(repository) as running:
        yield running
