"""Plans that are built: what the repository gets, and how they run here, always by the server's own runner."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from builder.engines import Device, EngineError, EngineOutput, output_of
from builder.engines.kinds import KINDS, PLAN_IN_PYTHON, BuiltEngine
from builder.engines.tensorrt.child import TensorRTPython
from builder.engines.tensorrt.route import is_8
from builder.engines.tensorrt.settings import Frontend, TensorRTSettings
from builder.pipeline.export import OUTPUT_NAMES, InputSpec
from model_repository import TEMPLATES
from model_repository.plan_runner import PlanError, PlanRunner

# The server's Python step runs a plan with the same code as `load`: its source goes beside the plan.
RUNNER = TEMPLATES / "plan_runner.py"


def built(
    plan: Path,
    settings: TensorRTSettings,
    frontend: Frontend,
    version: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    libraries: tuple[Path, ...],
    plugin_layers: int | None = None,
) -> BuiltEngine:
    """Return a plan as the settings want it served; see `TensorRTSettings.backend`.

    Args:
        plan: the file.
        settings: it was built with.
        frontend: it was built by.
        version: of the TensorRT that built it.
        inputs: that it reads.
        outputs: its names of boxes, scores and labels.
        libraries: of its plugins.
        plugin_layers: that it has, if that is known.
    """
    backend = settings.backend or ("python" if is_8(version) else "tensorrt")
    versions = {"tensorrt": version}
    kind = KINDS["tensorrt"]
    if backend == "python":  # the runner gives the outputs the contract's names
        kind, outputs, libraries = PLAN_IN_PYTHON, OUTPUT_NAMES, (RUNNER, *libraries)
    return BuiltEngine(plan, kind, "cuda", inputs, outputs, libraries, versions, frontend, plugin_layers)


class PlanEngine:
    """An `Engine` of a plan in this process."""

    device: Device = "cuda"

    def __init__(self, runner: PlanRunner) -> None:
        self.runner = runner

    @classmethod
    def of(cls, plan: Path, plugin: Path | None, spec: InputSpec) -> PlanEngine:
        """Load a plan, with a CUDA graph for the smallest and the largest batch; raises EngineError."""
        batch_sizes = {1, spec.max_batch_size} if spec.is_dynamic else {spec.max_batch_size}
        with _as_engine_error():
            return cls(PlanRunner(plan, sorted(batch_sizes), plugin))

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        """Run the plan, as `builder.engines.Engine` says."""
        with _as_engine_error():
            return output_of(self.runner(images, image_sizes))

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> Callable[[], object]:
        """Return a call that repeats one inference, as `builder.engines.Engine` says."""
        if torch.cuda.is_available():
            self.runner.stream = torch.cuda.current_stream().cuda_stream
        with _as_engine_error():
            return self.runner.prepare(images, image_sizes)


class Timings(NamedTuple):
    """What a child measured of one inference that it repeated."""

    times_ms: list[float]  # of single calls on an idle GPU, from the first one on
    calls_per_s: float  # when all are queued at once
    memory: int  # bytes of the GPU for plan, buffers and graphs


class ChildPlan:
    """A `Runner` of a plan in another interpreter, one process a call."""

    device: Device = "cuda"

    def __init__(self, plan: Path, plugin: Path | None, python: TensorRTPython) -> None:
        self.plan, self.plugin, self.python = plan, plugin, python

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        """Run the plan, as `builder.engines.Engine` says."""
        return run_plan(self.plan, [(images, image_sizes)], plugin=self.plugin, python=self.python)[0]

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> Callable[[], object]:
        """Refuse: what a call from here takes is mostly the start of a process; raises EngineError."""
        raise EngineError(
            f"{self.plan} runs in {self.python.executable} only, where a call cannot be recorded; measure without the "
            "profile, or in a Python that has this project and that TensorRT"
        )

    def measure(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32], seconds: float, least: int) -> Timings:
        """Repeat the inference of one batch through a CUDA graph for `seconds`, and at least `least` times.

        Raises:
            EngineError: as `run_plan`.
        """
        request = {"task": "measure", "graphs": [len(images)], "seconds": seconds, "least": least}
        answer = _ask(self.plan, [(images, image_sizes)], request, self.plugin, self.python)[0]
        return Timings(answer["times_ms"], answer["calls_per_s"], answer["memory"])


def run_plan(
    plan: Path,
    batches: Sequence[tuple[NDArray[np.uint8], NDArray[np.int32]]],
    *,
    plugin: Path | None = None,
    python: TensorRTPython | None = None,
    graphs: Sequence[int] = (),
) -> list[EngineOutput]:
    """Return a plan's candidates for batches of images and sizes, computed by the server's runner in a child.

    Args:
        plan: what a frontend wrote.
        batches: uint8 [B, H, W, 3] and int32 [B, 2], valid (h, w).
        plugin: as for `onnx_frontend.build_plan`.
        python: as for `onnx_frontend.build_plan`.
        graphs: batch sizes to run as CUDA graphs.

    Raises:
        EngineError: as `TensorRTPython.ask`, and for batches that the plan does not take.
    """
    request = {"task": "run", "graphs": list(graphs)}
    outputs = _ask(plan, batches, request, plugin, python or TensorRTPython())[1]
    return [EngineOutput(*(outputs[f"{name}_{i}"] for name in EngineOutput._fields)) for i in range(len(batches))]


def read_plan(
    plan: Path,
    batches: Sequence[tuple[NDArray[np.uint8], NDArray[np.int32]]],
    *,
    plugin: Path | None = None,
    python: TensorRTPython | None = None,
) -> list[dict[str, NDArray[Any]]]:
    """Return all that a plan puts out for each batch, by name: the candidates, and outputs that it was built to keep.

    Args:
        plan: as for `run_plan`.
        batches: as for `run_plan`.
        plugin: as for `run_plan`.
        python: as for `run_plan`.

    Raises:
        EngineError: as `run_plan`.
    """
    outputs = _ask(plan, batches, {"task": "read", "graphs": []}, plugin, python or TensorRTPython())[1]
    return [
        {name[: -len(end)]: array for name, array in outputs.items() if name.endswith(end)}
        for end in (f"_{i}" for i in range(len(batches)))
    ]


def inspect_plan(
    plan: Path,
    images: NDArray[np.uint8],
    image_sizes: NDArray[np.int32],
    *,
    plugin: Path | None = None,
    python: TensorRTPython | None = None,
    runs: int = 20,
) -> dict[str, Any]:
    """Return what TensorRT tells of a plan: `information`, `times_ms` by layer, `activation_bytes` and `tensorrt`.

    Raises:
        EngineError: as `run_plan`.
    """
    request = {"task": "layers", "graphs": [], "least": runs}
    return _ask(plan, [(images, image_sizes)], request, plugin, python or TensorRTPython())[0]


def _ask(
    plan: Path,
    batches: Sequence[tuple[NDArray[np.uint8], NDArray[np.int32]]],
    request: Mapping[str, Any],
    plugin: Path | None,
    python: TensorRTPython,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Let a child do something with a plan and batches; return its answer, and the arrays that it wrote."""
    log = plan.with_name(plan.name + ".run.log")
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        arrays: dict[str, NDArray[Any]] = {}
        for i, (images, sizes) in enumerate(batches):
            arrays |= {f"images_{i}": images, f"image_sizes_{i}": sizes}
        np.savez(inputs, **arrays)
        files = {
            "plan": str(plan.resolve()),
            "runner": str(RUNNER),
            "inputs": str(inputs),
            "outputs": str(outputs),
            "batches": len(batches),
            "plugin": None if plugin is None else str(plugin.resolve()),
        }
        answer = python.ask({**request, **files}, log)
        if not outputs.is_file():
            return answer, {}
        with np.load(outputs) as results:
            return answer, dict(results)


@contextmanager
def _as_engine_error() -> Iterator[None]:
    try:
        yield
    except PlanError as error:
        raise EngineError(str(error)) from error
