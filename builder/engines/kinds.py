"""The kinds of engine, in one table: what each can do, and the functions that check, build and load it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from builder.engines import Device, Engine, EngineError
from builder.precision import EnginePrecision, Precision, Quantised, option_of

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from builder.detector import Detector
    from builder.pipeline.export import InputSpec
    from builder.quantise.calibration import Ranges
    from builder.quantise.layers import Layer


class EngineModule(Protocol):
    """What the module of an engine has; it is imported when it is needed, as is what it runs on."""

    def device(self) -> Device:
        """Return where an engine built here runs; raises EngineError where this machine has no such place."""

    def export_device(self, settings: Any = None) -> Device:
        """Return where `build` wants the program's weights."""

    def check(self, uses_operator: bool, settings: Any = None) -> None:
        """Raise EngineError for what `build` needs and this machine lacks.

        Args:
            uses_operator: whether the detector's graph has deformable attention.
            settings: as for `build`.
        """

    def check_quantised(self, precision: Quantised, settings: Any = None) -> None:
        """Raise EngineError where this machine or these settings have no such numbers."""

    def quantised_layers(
        self, layers: Mapping[str, Layer], ranges: Mapping[str, Ranges], precision: Quantised
    ) -> dict[str, nn.Module]:
        """Return what takes the place of layers before the export; raises EngineError for a layer that cannot be."""

    def prepared(self, detector: Detector) -> Detector:
        """Return what is exported for `build`: a detector, or one that shares its layers with it, which stays itself.

        Args:
            detector: deployed, quantised and in the engine's precision, where `build` wants it.
        """

    def build(self, program: ExportedProgram, path: Path, settings: Any) -> BuiltEngine:
        """Write the engine file; raises EngineError."""

    def load(self, path: Path, spec: InputSpec, device: Device, settings: Any = None) -> Engine:
        """Return an engine in this process; raises EngineError where it cannot run."""


_REMEDIES: Mapping[EnginePrecision, str] = {
    "float16": "the torch engine for half precision",
    "bfloat16": "the torch engine for half precision",
    "int8": "the onnx engine on a CPU, the tensorrt engine on a GPU",
    "fp8": "the torch engine on a GPU that has it",
}


@dataclass(frozen=True)
class EngineKind:
    """One kind of engine; templates are within `model_repository/codetr_detector`, or absolute."""

    name: str
    file_name: str  # in a repository, as Triton's backend or the model's code expects it
    config: str | Path  # template of config.pbtxt
    code: str | Path | None  # template of model.py, where the Python backend runs the engine
    precisions: tuple[Precision, ...]  # the default first
    devices: tuple[Device, ...]
    has_settings: bool = False  # whether `build` reads `TensorRTSettings`
    quantised: Mapping[Quantised, Precision] = field(default_factory=dict)  # with the precision of the other layers
    quantised_groups: tuple[str, ...] = ()  # of `builder.quantise.groups`, unless others are asked for

    @property
    def module(self) -> EngineModule:
        """The module of `builder.engines` that builds and loads this kind."""
        return cast(EngineModule, importlib.import_module(f"builder.engines.{self.name}"))

    def check_precision(self, precision: EnginePrecision) -> None:
        """Raise EngineError if this kind does not exist in a precision."""
        known = (*self.precisions, *self.quantised)
        if precision not in known:
            raise EngineError(
                f"the {self.name} engine has no precision {option_of(precision)}; give "
                f"{', '.join(map(option_of, known))}, or use {_REMEDIES.get(precision, 'another engine')}"
            )

    def around(self, precision: EnginePrecision) -> Precision:
        """Return the precision of what is not quantised."""
        if precision == "int8" or precision == "fp8":
            return self.quantised[precision]
        return precision


@dataclass(frozen=True)
class BuiltEngine:
    """What a build made, as it really is."""

    file: Path
    kind: EngineKind
    device: Device  # it was built for
    inputs: tuple[str, ...]  # that it reads: images, and image_sizes or not
    outputs: tuple[str, ...]  # what it calls boxes, scores and labels
    extra_files: tuple[Path, ...] = ()  # what belongs beside the file, under its own name
    versions: Mapping[str, str] = field(default_factory=dict)  # of what built it elsewhere than in this interpreter
    frontend: str | None = None  # of `TensorRTSettings`, that built it
    plugin_layers: int | None = None  # of ours, that TensorRT's inspector shows in a plan


KINDS: dict[str, EngineKind] = {
    kind.name: kind
    for kind in (
        # half types have no fast kernels in ONNX Runtime on CPUs
        EngineKind(
            "onnx",
            "model.onnx",
            "configs/onnx.pbtxt",
            "1/model.py",
            ("float32",),
            ("cpu",),
            quantised={"int8": "float32"},
            quantised_groups=("backbone-convs", "backbone-linears", "neck"),
        ),
        EngineKind(
            "torch",
            "model.pt2",
            "configs/torch.pbtxt",
            "1/model_torch.py",
            ("float32", "float16", "bfloat16"),
            ("cuda", "cpu"),
            quantised={"fp8": "float16"},
            quantised_groups=("backbone-linears", "encoder-ffn"),
        ),
        EngineKind(
            "tensorrt",
            "model.plan",
            "config.pbtxt",
            None,
            ("float32", "float16", "bfloat16"),
            ("cuda",),
            has_settings=True,
            quantised={"int8": "float16", "fp8": "float16"},
            quantised_groups=("backbone-convs", "backbone-linears", "neck", "projections"),
        ),
    )
}

# The same plan, run by the Python backend: for servers whose own TensorRT is another than the one that built it.
PLAN_IN_PYTHON = replace(KINDS["tensorrt"], config="configs/plan.pbtxt", code="1/model_plan.py")


def engine_kind(name: str) -> EngineKind:
    """Return a kind of engine by its name; raises EngineError for an unknown one."""
    if name not in KINDS:
        raise EngineError(f"engine {name!r} is not known; expected {', '.join(KINDS)}")
    return KINDS[name]
