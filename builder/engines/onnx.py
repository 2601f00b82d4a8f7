"""ONNX engine: the detector in standard operators, for ONNX Runtime on a CPU or any other ONNX consumer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch._decomp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from builder.detector import Detector
from builder.engines import Device, EngineError, EngineOutput, first_line, loading, output_of
from builder.engines.kinds import KINDS, BuiltEngine
from builder.engines.scopes import keep_scopes_alone
from builder.pipeline.export import INPUT_NAMES, OPERATORS, OUTPUT_NAMES, InputSpec, inputs_of
from builder.precision import Quantised
from builder.quantise import operator
from builder.quantise.calibration import Ranges
from builder.quantise.integers import round_after_relu, store_biases, store_integers
from builder.quantise.layers import Layer, rounding_layers
from serving.integers import set_exact_integers

OPSET = 18
# Where a protocol buffer ends; the largest published variant needs 0.9 GB.
MAX_BYTES = 2**31 - 2**24
RULES = "_DEFAULT_REWRITE_RULES"  # of the exporter's optimiser, in onnxscript.rewriter
SLOW_RULES = frozenset({"SlicesSplit"})


def device() -> Device:
    """Return where the engine runs."""
    return "cpu"


def export_device(settings: object = None) -> Device:
    """Return where `build` wants the program: on the CPU."""
    return "cpu"


def check(uses_operator: bool, settings: object = None) -> None:
    """Check that this machine has what `build` needs: nothing."""


def check_quantised(precision: Quantised, settings: object = None) -> None:
    """Check that this machine has such numbers: every CPU has INT8."""


def quantised_layers(
    layers: Mapping[str, Layer], ranges: Mapping[str, Ranges], precision: Quantised
) -> dict[str, nn.Module]:
    """Return what takes the place of layers: ONNX Runtime wants zero points that save a ReLU, and outputs rounded."""
    return rounding_layers(layers, ranges, precision, symmetric=False, outputs=True)


def _unchanged(model: onnx.ModelProto) -> None:
    """Leave the model as it is."""


def _for_integers(model: onnx.ModelProto) -> None:
    store_integers(model)
    store_biases(model)
    round_after_relu(model)


def prepared(detector: Detector) -> Detector:
    """Return what is exported for `build`: the detector as it is."""
    return detector


def build(program: ExportedProgram, path: Path, settings: object = None) -> BuiltEngine:
    """Write the program as ONNX to `path`, checked by onnx; needs neither a GPU nor a compiler.

    Raises:
        EngineError: an operator has no ONNX form, or the result is not valid ONNX.
    """
    write(program, path, revise=_for_integers if operator.quantised_to(program) else _unchanged, written_out=OPERATORS)
    return BuiltEngine(path, KINDS["onnx"], "cpu", inputs_of(program), OUTPUT_NAMES)


def write(
    program: ExportedProgram,
    path: Path,
    translations: Mapping[Any, Callable[..., Any]] | None = None,
    revise: Callable[[onnx.ModelProto], None] = _unchanged,
    written_out: Mapping[Any, Callable[..., Tensor]] = MappingProxyType({}),
) -> None:
    """Write the program, of operators that have an ONNX form or one of `translations`, and check the file.

    Args:
        program: what to write.
        path: of the file.
        translations: of operators that are not ONNX's, by the operator.
        revise: changes the model in place before it is written.
        written_out: by the operator of ours, what writes it out in operators that have an ONNX form.

    Raises:
        EngineError: as `build`; `revise` may raise others.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > MAX_BYTES:
        raise EngineError(f"the weights take {size / 2**30:.1f} GiB; an ONNX file holds less than 2 GiB")
    try:
        with warnings.catch_warnings(), _decomposed(written_out), _without_slow_rules():
            warnings.simplefilter("ignore")  # the exporter warns about its own deprecated calls
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs_of(program)),
                output_names=list(OUTPUT_NAMES),
                custom_translation_table={**operator.TRANSLATIONS, **(translations or {})},
                verbose=logging.getLogger("torch.onnx").isEnabledFor(logging.INFO),
            )
            if exported is None:
                raise EngineError("the ONNX exporter returned nothing")
            model = exported.model_proto
        keep_scopes_alone(model)
        revise(model)
        onnx.save(model, path)
        onnx.checker.check_model(str(path))
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError) as error:
        raise EngineError(f"ONNX export failed: {first_line(error)}") from error


@contextmanager
def _decomposed(table: Mapping[Any, Callable[..., Tensor]]) -> Iterator[None]:
    """Have the exporter write operators out in its own pass over the program; one before it would trace all again.

    It looks into PyTorch's table, where ours must not stay: other exports keep our operators.
    """
    known = torch._decomp.decomposition_table
    known.update(table)
    try:
        yield
    finally:
        for each in table:
            del known[each]


@contextmanager
def _without_slow_rules() -> Iterator[None]:
    """Have the exporter's optimiser leave out a rule that looks at the whole graph for each node.

    It makes one Split of two Slices, which no network here has, and takes most of the time of a large graph's file. The
    rules have no public name; where they are not under this one, nothing is left out.
    """
    from onnxscript import rewriter  # takes a second; who only reads a file needs none

    rules = getattr(rewriter, RULES, ())
    if rules:
        setattr(rewriter, RULES, tuple(rule for rule in rules if rule.name not in SLOW_RULES))
    try:
        yield
    finally:
        if rules:
            setattr(rewriter, RULES, rules)


def load(path: Path, spec: InputSpec, device: Device, settings: object = None) -> OnnxEngine:
    """Return the ONNX file's engine on the CPU; the file itself knows its `spec`."""
    return load_session(path)


def load_session(path: Path, threads: int = 0) -> OnnxEngine:
    """Return the ONNX file's engine with a number of threads; 0 is one for each core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    set_exact_integers(options)
    with loading(path):
        return OnnxEngine(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def read_graph(path: Path) -> onnx.ModelProto:
    """Return what an engine's ONNX file holds.

    Raises:
        EngineError: it cannot be read, or is damaged.
    """
    with loading(path):
        model = onnx.load(path)
        if not model.graph.node:
            raise EngineError(f"{path} holds no graph; build the repository again")
        return model


class OnnxEngine:
    """An `Engine` of an ONNX Runtime session."""

    device: Device = "cpu"

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = {each.name for each in session.get_inputs()}

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        """Run the session, as `builder.engines.Engine` says."""
        return output_of(self.prepare(images, image_sizes)())

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> Callable[[], Any]:
        """Return a call that repeats one inference, as `builder.engines.Engine` says."""
        given = dict(zip(INPUT_NAMES, (images, image_sizes), strict=True))
        inputs = {name: array for name, array in given.items() if name in self.inputs}
        return partial(self.session.run, list(OUTPUT_NAMES), inputs)
