"""Repositories and running tritonservers that the end-to-end tests share: a built detector, and known answers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from demo.shapes import CLASS_NAMES as SHAPES
from serving.contract import DETECTOR
from serving.launch import TritonServer, running_server
from tests.tiny_engine import CLASS_NAMES, write_tiny_repository

# Engines of known answers in one repository: input size, how its scores fall, its class names.
ENGINES = {
    "codetr": ((64, 96), 0.9, CLASS_NAMES),
    "small": ((40, 48), 0.8, (*SHAPES, "a", "b", "c", "d")),
}


@contextmanager
def killed_server(repository: Path, extra: Sequence[str] = ()) -> Iterator[TritonServer]:
    """Run a server as `running_server` does, and kill it after the block.

    Triton takes three seconds to end as it should, of which tests of its end ask: those of `codetr serve` in
    test_server.py and test_faults.py.
    """
    with running_server(repository, extra) as server:
        try:
            yield server
        finally:
            server.tell_to_end(signal.SIGKILL)


def computed(server: TritonServer) -> int:
    """Return how many requests of one image the engine `codetr` has computed; each of several changes it otherwise.

    Triton 2.51 counts a request after its answer, but before the step gets the next. So the step is sent one more,
    which it refuses. Whether that is counted by now is chance: it has two images, and drops out.
    """
    height, width = ENGINES["codetr"][0]
    inputs: dict[str, np.ndarray] = {
        "images": np.zeros((2, height, width, 3), np.uint8),
        "image_sizes": np.zeros((2, 2), np.int32),
    }
    tensors = []
    for name, array in inputs.items():
        tensors.append(tritonclient.grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:

        def count() -> int:
            (found,) = client.get_inference_statistics(DETECTOR).model_stats
            return int(2 * found.inference_stats.success.count - found.inference_count)

        with pytest.raises(InferenceServerException, match=r"image_sizes: .*got 0 and 0"):
            client.infer(DETECTOR, tensors)
        found = count()
        while found != (found := count()):  # it was counted between the two numbers
            pass
    return found


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    """A real tritonserver with that repository on free loopback ports; tests leave it running."""
    with killed_server(repository) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine `codetr` of `ENGINES` alone; tests must not change it."""
    return write_tiny_repository(tmp_path_factory.mktemp("tiny") / "repository")


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real tritonserver with all `ENGINES` in one repository; tests leave it running."""
    folder = tmp_path_factory.mktemp("both")
    for name, ((height, width), decay, class_names) in ENGINES.items():
        write_tiny_repository(
            folder / "repository", height=height, width=width, decay=decay, class_names=class_names, name=name
        )
    # Of `small` also a half JPEG is accepted.
    config = folder / "repository" / "small_preprocess" / "config.pbtxt"
    text = config.read_text()
    setting = 'key: "damaged_jpeg"\n  value {\n    string_value: "%s"'
    assert text.count(setting % "refuse") == 1
    config.write_text(text.replace(setting % "refuse", setting % "accept"))
    with killed_server(folder / "repository") as running:
        yield running
