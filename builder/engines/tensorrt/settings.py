"""How TensorRT builds a plan, and who runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.engines import EngineError
from builder.pipeline.export import OUTPUT_NAMES

Frontend = Literal["onnx", "torch-tensorrt"]  # what makes a network of the detector's program
Backend = Literal["python", "tensorrt"]  # of Triton, that runs the plan
WindowAttention = Literal["plugin", "written-out"]  # in simple operators, of which TensorRT fuses what it can


@dataclass(frozen=True)
class TensorRTSettings:
    """How TensorRT builds; None leaves a value to TensorRT."""

    optimization_level: int | None = None  # 0 (fast build) to 5; higher is not always a faster engine
    timing_cache: Path | None = None  # kernel timings, read and added to
    version_compatible: bool = False  # without the lean runtime, which a later TensorRT must get from elsewhere
    hardware_compatible: bool = False  # the plan also runs on other GPUs from Ampere on
    fp32_accumulation: bool = False  # of half-precision matrix products
    tf32: bool = False  # float32 matrix products with 10-bit mantissas
    workspace_gib: float | None = None  # the most GPU memory a kernel may use beside its tensors
    average_timings: int = 1  # runs a kernel is timed for
    immutable_weights: bool = True  # a plan that cannot be refitted may be faster
    frontend: Frontend | None = None  # None: torch-tensorrt where it is installed, else onnx
    python: Path | None = None  # that has TensorRT, for the onnx frontend; None: the environment's, or this one
    marked_modules: tuple[str, ...] = ()  # patterns of modules whose outputs stay the plan's: nothing is fused across
    backend: Backend | None = None  # None: Python for TensorRT 8, whose plans no server of today can load itself
    window_attention: WindowAttention = "plugin"  # what the plugin does not do is written out, as all of float32

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise EngineError(f"optimization level {self.optimization_level} is not known; expected 0 to 5")
        if self.workspace_gib is not None and self.workspace_gib <= 0:
            raise EngineError(f"workspace {self.workspace_gib} GiB is not possible; expected more than 0")
        if self.average_timings < 1:
            raise EngineError(f"average_timings={self.average_timings} is not possible; expected at least 1")

    def keywords(self) -> dict[str, Any]:
        """Return the settings by torch_tensorrt's names."""
        keywords: dict[str, Any] = {
            "use_explicit_typing": True,
            "attn_bias_is_causal": False,
            "require_full_compilation": True,
            "min_block_size": 1,
            "assume_dynamic_shape_support": True,  # some converters serve dynamic shapes without being marked so
            "immutable_weights": self.immutable_weights,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "use_fp32_acc": self.fp32_accumulation,
            "disable_tf32": not self.tf32,
            "num_avg_timing_iters": self.average_timings,
            "output_binding_names": OUTPUT_NAMES,
        }
        if self.optimization_level is not None:
            keywords["optimization_level"] = self.optimization_level
        if self.timing_cache is not None:
            keywords["timing_cache_path"] = str(self.timing_cache)
        if self.workspace_gib is not None:
            keywords["workspace_size"] = int(self.workspace_gib * 2**30)
        return keywords
