"""The kinds of engine, in one table: what each can do, and the functions that check, build and load it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from builder.engines import Device, Engine, EngineError
from builder.precision import Precision, option_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from builder.pipeline.export import InputSpec


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

    def build(self, program: ExportedProgram, path: Path, settings: Any) -> BuiltEngine:
        """Write the engine file; raises EngineError."""

    def load(self, path: Path, spec: InputSpec, device: Device, settings: Any = None) -> Engine:
        """Return an engine in this process; raises EngineError where it cannot run."""


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

    @property
    def module(self) -> EngineModule:
        """The module of `builder.engines` that builds and loads this kind."""
        return cast(EngineModule, importlib.import_module(f"builder.engines.{self.name}"))

    def check_precision(self, precision: Precision) -> None:
        """Raise EngineError if this kind does not exist in a precision."""
        if precision not in self.precisions:
            raise EngineError(
                f"the {self.name} engine has no precision {option_of(precision)}; give "
                f"{', '.join(map(option_of, self.precisions))}, or use the torch engine for half precision"
            )


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


KINDS: dict[str, EngineKind] = {
    kind.name: kind
    for kind in (
        # half types have no fast kernels in ONNX Runtime on CPUs
        EngineKind("onnx", "model.onnx", "configs/onnx.pbtxt", "1/model.py", ("float32",), ("cpu",)),
        EngineKind(
            "torch",
            "model.pt2",
            "configs/torch.pbtxt",
            "1/model_torch.py",
            ("float32", "float16", "bfloat16"),
            ("cuda", "cpu"),
        ),
        EngineKind(
            "tensorrt",
            "model.plan",
            "config.pbtxt",
            None,
            ("float32", "float16", "bfloat16"),
            ("cuda",),
            has_settings=True,
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
