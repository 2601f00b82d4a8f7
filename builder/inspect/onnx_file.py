"""What ONNX Runtime makes of an ONNX file: the nodes after its fusions, their times, and what they were made of."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from builder.engines import loading
from builder.engines.onnx import read_graph
from builder.engines.scopes import modules_of
from builder.inspect.anatomy import Anatomy, Part, median_ms

_TYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's words that are not ours
_PRODUCTS = {
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "QGemm", "QLinearMatMul",
    "DynamicQuantizeMatMul",
}  # fmt: skip
_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"}
_BLOCKED = "_nchwc"  # ends the names that ONNX Runtime gives to convolutions in a layout of its own
_WARNING = 3  # of ONNX Runtime's levels: errors alone; it warns that an optimised file is for this CPU


def describe_onnx(
    file: Path, images: NDArray[np.uint8], sizes: NDArray[np.int32], runs: int, title: str, versions: Mapping[str, str]
) -> Anatomy:
    """Return the parts of an ONNX file as ONNX Runtime executes it on this CPU.

    Args:
        file: the engine.
        images: uint8 [B, H, W, 3] to run.
        sizes: int32 [B, 2], valid (h, w).
        runs: timed inferences.
        title: of the engine.
        versions: it was built with.
    """
    with tempfile.TemporaryDirectory() as folder:
        profile, optimised = _profile(file, Path(folder), images, sizes, runs)
    session = _session(file)
    run_ms = median_ms(partial(session.run, None, given_to(session, images, sizes)), runs)  # without the profiler
    events = [event for event in profile if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    original = read_graph(file)
    parts = _parts(original, optimised, events)
    last = max((int(event["args"].get("mem_in_use_peak", 0)) for event in events), default=0)
    weights = sum(_bytes(item) for item in original.graph.initializer)
    memory = {"weights": weights, **({"peak with weights": last} if last else {})}
    notes = (
        f"ONNX Runtime {onnxruntime.__version__} runs {len(parts)} nodes on this CPU; the file has "
        f"{len(original.graph.node)}",
    )
    return Anatomy(
        "onnx",
        title,
        str(file),
        file.stat().st_size,
        dict(versions),
        tuple(value.name for value in original.graph.input),
        tuple(value.name for value in original.graph.output),
        tuple(parts),
        memory,
        run_ms,
        len(images),
        notes,
    )


def _session(file: Path, options: Any = None) -> Any:
    with loading(file):
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def given_to(session: Any, images: NDArray[np.uint8], sizes: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """Return those of the arrays that a session of ONNX Runtime takes, by name."""
    names = {each.name for each in session.get_inputs()}
    return {name: array for name, array in (("images", images), ("image_sizes", sizes)) if name in names}


def _profile(
    file: Path, folder: Path, images: NDArray[np.uint8], sizes: NDArray[np.int32], runs: int
) -> tuple[list[dict[str, Any]], ModelProto]:
    """Return the profiler's events of all inferences but the first, and the graph that was run."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = _WARNING
    session = _session(file, options)
    given = given_to(session, images, sizes)
    for _ in range(runs + 1):
        session.run(None, given)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    whole = [event for event in events if event["name"] == "model_run"]
    begin = whole[0]["ts"] + whole[0]["dur"] if whole else 0
    return [event for event in events if event["ts"] >= begin], onnx.load(folder / "optimised.onnx")


def _parts(original: ModelProto, optimised: ModelProto, events: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Return the nodes of the optimised graph in the order in which they ran."""
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        by_name[event["name"].removesuffix("_kernel_time")].append(event)
    weights = {item.name: _bytes(item) for item in optimised.graph.initializer}
    origins = Origins(original, optimised)
    order = {name: i for i, name in enumerate(by_name)}
    nodes = sorted(optimised.graph.node, key=lambda node: order.get(node.name, len(order)))
    return [_part(node, by_name.get(node.name, []), weights, origins) for node in nodes]


def _part(
    node: NodeProto,
    events: Sequence[Mapping[str, Any]],
    weights: Mapping[str, int],
    origins: Origins,
) -> Part:
    arguments = events[-1]["args"] if events else {}
    made, given = (_shapes(arguments.get(key, ())) for key in ("output_type_shape", "input_type_shape"))
    details = {
        attribute.name: _attribute(attribute)
        for attribute in node.attribute
        if attribute.type != onnx.AttributeProto.GRAPH
    }
    if arguments:
        details |= {
            "provider": str(arguments.get("provider", "")),
            "output bytes": str(arguments.get("output_size", "")),
        }
    fused = origins.of(node)
    dims = {name: shape for name, (_, shape) in zip(node.input, given, strict=False)} | dict(origins.dims)
    return Part(
        node.name,
        node.op_type,
        origins.module(node),
        tuple(name for name in node.input if name and name not in weights),
        tuple(name for name in node.output if name),
        tuple(f"{type_} {'x'.join(map(str, shape)) or 'scalar'}" for type_, shape in made),
        made[0][0] if made else "",
        sum(weights.get(name, 0) for name in node.input),
        flops_of(node, given[0][1] if given else (), dims.get(node.input[1], ()) if len(node.input) > 1 else (), made),
        float(np.median([event["dur"] for event in events])) / 1e3 if events else None,
        tuple(f"{each.op_type} {each.name}" for each in fused) if len(fused) > 1 else (),
        details=details,
    )


def _shapes(described: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(_TYPES.get(type_, type_), tuple(shape)) for each in described for type_, shape in each.items()]


def flops_of(
    node: NodeProto, given: Sequence[int], kernel: Sequence[int], made: Sequence[tuple[str, tuple[int, ...]]]
) -> int | None:
    """Return the operations of a product or convolution, a multiplication and an addition as two; None of others.

    Args:
        node: of the graph.
        given: shape of its first input.
        kernel: shape of its second input.
        made: type and shape of its outputs.
    """
    if not made:
        return None
    if node.op_type in _CONVOLUTIONS and kernel:
        return 2 * math.prod(made[0][1]) * math.prod(kernel[1:])
    if node.op_type in _PRODUCTS and given:
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return 2 * math.prod(made[0][1]) * given[-2 if transposed and len(given) > 1 else -1]
    return None


class Origins:
    """Which nodes of a file a node of the optimised graph was made of, and so which module it belongs to."""

    def __init__(self, original: ModelProto, optimised: ModelProto) -> None:
        self.dims = {item.name: tuple(item.dims) for item in optimised.graph.initializer}  # the profiler omits weights
        self.makers = {name: node for node in original.graph.node for name in node.output}
        self.users: dict[str, list[NodeProto]] = defaultdict(list)
        self.kept: set[str] = set()  # tensors that both graphs have
        for node in optimised.graph.node:
            self.kept |= set(self._outputs(node))
            for name in node.input:
                self.users[name].append(node)

    def of(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that it stands for, back to tensors that other nodes still make."""
        found: dict[str, NodeProto] = {}
        waiting = self._outputs(node)
        given = set(node.input)
        first = set(waiting)
        while waiting:
            name = waiting.pop()
            maker = self.makers.get(name)
            if maker is None or maker.name in found or (name not in first and (name in given or name in self.kept)):
                continue
            found[maker.name] = maker
            waiting += maker.input
        return list(reversed(found.values()))

    def _outputs(self, node: NodeProto) -> list[str]:
        """Return what it puts out of the file's tensors; of a blocked convolution, the tensor that names it."""
        plain = [node.name.removesuffix(_BLOCKED)] if node.name.endswith(_BLOCKED) else []
        return [name for name in (*plain, *node.output) if name in self.makers]

    def module(self, node: NodeProto) -> str:
        """Return the innermost module of what it puts out; of a tensor of the optimised graph alone, its reader's."""
        seen: set[str] = set()
        waiting = [node]
        while waiting:
            current = waiting.pop(0)
            for name in self._outputs(current):
                modules = modules_of(self.makers[name])
                return modules[-1] if modules else ""
            for name in current.output:
                if name not in seen:
                    seen.add(name)
                    waiting += self.users[name]
        return ""


def _bytes(item: Any) -> int:
    return math.prod(item.dims) * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize


def _attribute(attribute: Any) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
