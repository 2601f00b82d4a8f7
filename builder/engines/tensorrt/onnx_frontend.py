"""ONNX to a plan through TensorRT's own parser, for every release from 8.5 to 11.

TensorRT runs in a child process, which may be another Python: `plan_child.py` needs tensorrt and NumPy only. Where
TensorRT aborts its process, this one says so and goes on. Not yet run on a GPU.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from torch.export import ExportedProgram

from builder.engines import EngineError, EngineOutput
from builder.engines.kinds import KINDS, BuiltEngine
from builder.engines.tensorrt import TensorRTSettings, plugin_library, plugin_onnx, profiles
from builder.engines.tensorrt.precision import check_precision, precision_of
from builder.pipeline.export import OUTPUT_NAMES, InputSpec, uses_operator
from builder.precision import Precision
from model_repository import TEMPLATES

CHILD = Path(__file__).with_name("plan_child.py")
RUNNER = TEMPLATES / "plan_runner.py"
_LAST_LINES = 3  # of a log, in the error of a child that ended without an answer


@dataclass(frozen=True)
class TensorRTPython:
    """The interpreter that has TensorRT, with what its libraries need in the environment."""

    executable: Path = Path(sys.executable)
    environment: Mapping[str, str] | None = None  # None: this process's

    def ask(self, request: Mapping[str, Any], log: Path) -> dict[str, Any]:
        """Let a child answer; its output, TensorRT's log among it, goes to the file `log`.

        Raises:
            EngineError: it refused, failed or ended without an answer; one line, which names the log.
        """
        with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as output:
            answer = Path(folder, "answer.json")
            question = Path(folder, "request.json")
            question.write_text(json.dumps({**request, "answer": str(answer)}), encoding="utf-8")
            command = [str(self.executable), str(CHILD), str(question)]
            try:
                code = subprocess.run(
                    command, stdout=output, stderr=output, env=self.environment, check=False
                ).returncode
            except OSError as error:
                raise EngineError(
                    f"cannot run {self.executable}: {error.strerror}; name a Python with tensorrt"
                ) from error
            if not answer.is_file():
                raise EngineError(f"{_ending(code)}, having said: {_last_lines(log)}; log: {log}")
            result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in result:
            raise EngineError(f"{result['error']}; log: {log}")
        return result


@dataclass(frozen=True)
class PlanReport:
    """What a build tells beside the plan."""

    tensorrt: str  # version
    layers: dict[str, Any] | None  # TensorRT's inspector's JSON, for `builder.engines.tensorrt.precision`
    log: Path


def build(
    program: ExportedProgram, path: Path, settings: TensorRTSettings | None = None, python: TensorRTPython | None = None
) -> BuiltEngine:
    """Write the program's plan to `path` by way of ONNX with plugin nodes, as `builder.engines.tensorrt.build` does.

    TensorRT 8 cannot read the opset of this ONNX.

    Raises:
        EngineError: as `build_plan`; the plugin is missing, or the plan's layers have other types than the program.
    """
    plugin = plugin_library() if uses_operator(program) else None
    with tempfile.TemporaryDirectory() as folder:
        onnx_file = Path(folder, plugin_onnx.FILE_NAME)
        plugin_onnx.build(program, onnx_file)
        precision = cast(Precision, precision_of(program))
        report = build_plan(onnx_file, path, _spec_of(program), precision, settings, plugin=plugin, python=python)
    check_precision(report.layers or {}, program)
    return BuiltEngine(path, KINDS["tensorrt"], "cuda", OUTPUT_NAMES, () if plugin is None else (plugin,))


def build_plan(
    onnx_file: Path,
    plan: Path,
    spec: InputSpec,
    precision: Precision,
    settings: TensorRTSettings | None = None,
    *,
    plugin: Path | None = None,
    float32_nodes: Sequence[str] = (),
    python: TensorRTPython | None = None,
    inspect: bool = True,
    verbose: bool = False,
) -> PlanReport:
    """Build a plan for this machine's GPU; the log stays beside it, as `<plan>.log`.

    From TensorRT 9 on the plan has the types of the ONNX file. Before, half types are a permission: a file with half
    types is followed layer by layer, and in a float32 file only `float32_nodes` are kept in float32.

    Args:
        onnx_file: with opset 17 at most for TensorRT 8.5.
        plan: the file to write.
        spec: its batch is the profile, if the file's is open.
        precision: of the matrix products.
        settings: as for every TensorRT engine; what a release lacks is refused by name.
        plugin: its library, built with headers of that TensorRT, for a file with plugin nodes.
        float32_nodes: names of ONNX nodes, or beginnings of names that end in a slash; TensorRT 8 only.
        python: the interpreter that has TensorRT.
        inspect: whether to load the plan and report its layers.
        verbose: whether the log has more than warnings and errors.

    Raises:
        EngineError: TensorRT is missing, refused a setting, a node or the network, or ended; one line.
    """
    log = plan.with_name(plan.name + ".log")
    request = {
        "task": "build",
        "onnx": str(onnx_file.resolve()),
        "plan": str(plan.resolve()),
        "batch": [1 if spec.is_dynamic else spec.max_batch_size, spec.max_batch_size, spec.max_batch_size],
        "precision": precision,
        "settings": _settings_of(settings or TensorRTSettings()),
        "plugin": None if plugin is None else str(plugin.resolve()),
        "float32_nodes": list(float32_nodes),
        "verbose": verbose,
        "inspect": inspect,
    }
    answer = (python or TensorRTPython()).ask(request, log)
    if "parser_errors" in answer:
        text = explain_parser_errors(answer["parser_errors"], onnx_file)
        raise EngineError(f"TensorRT {answer['tensorrt']} cannot parse {onnx_file.name}: {text}; log: {log}")
    return PlanReport(answer["tensorrt"], answer["layers"], log)


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
        plan: what `build_plan` wrote.
        batches: uint8 [B, H, W, 3] and int32 [B, 2], valid (h, w).
        plugin: as for `build_plan`.
        python: as for `build_plan`.
        graphs: batch sizes to run as CUDA graphs.

    Raises:
        EngineError: as `build_plan`, and for batches that the plan does not take.
    """
    log = plan.with_name(plan.name + ".run.log")
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        arrays: dict[str, NDArray[Any]] = {}
        for i, (images, sizes) in enumerate(batches):
            arrays |= {f"images_{i}": images, f"image_sizes_{i}": sizes}
        np.savez(inputs, **arrays)
        request = {
            "task": "run",
            "plan": str(plan.resolve()),
            "runner": str(RUNNER),
            "inputs": str(inputs),
            "outputs": str(outputs),
            "batches": len(batches),
            "graphs": list(graphs),
            "plugin": None if plugin is None else str(plugin.resolve()),
        }
        (python or TensorRTPython()).ask(request, log)
        with np.load(outputs) as results:
            return [
                EngineOutput(*(results[f"{name}_{i}"] for name in EngineOutput._fields)) for i in range(len(batches))
            ]


def explain_parser_errors(errors: Sequence[Mapping[str, Any]], onnx_file: Path) -> str:
    """Return one line on the first error that belongs to a node, with the node's name and operator."""
    if not errors:
        return "the parser gives no reason"
    error = next((each for each in errors if each["index"] >= 0), errors[0])
    name, operator = error["node"], error["operator"]
    if not operator and error["index"] >= 0:
        nodes = onnx.load(str(onnx_file), load_external_data=False).graph.node
        if error["index"] < len(nodes):
            name, operator = nodes[error["index"]].name, nodes[error["index"]].op_type
    where = f"node {name or error['index']} ({operator}): " if operator else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}{error['text']}{more}"


def _spec_of(program: ExportedProgram) -> InputSpec:
    images = profiles(program)[0]
    batch, height, width, _ = images.get("max_shape") or images["shape"]
    return InputSpec(height, width, batch, dynamic_batch="max_shape" in images)


def _settings_of(settings: TensorRTSettings) -> dict[str, Any]:
    values = asdict(settings)
    if settings.timing_cache is not None:
        values["timing_cache"] = str(settings.timing_cache.resolve())
    return values


def _ending(code: int) -> str:
    if code < 0:
        return f"TensorRT ended its process with {signal.Signals(-code).name}"
    return f"TensorRT's process ended with status {code}"


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-_LAST_LINES:]) or "nothing"
