"""Deformable attention in a TensorRT plan as our plugin and as ONNX's GridSample: what either finds, beside PyTorch.

TensorRT is known to compute GridSample wrongly in some releases, so no engine of this project has it. This measures it,
where there are TensorRT and a GPU:

    python -m perf.engine.grid_sample rtdetrv2_demo --weights demo/weights/rtdetrv2_demo_fp16.safetensors

The result is grid-sample.json, written anew after each of the two plans.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from builder.checkpoint import DTYPES, load_detector
from builder.detector import Detector
from builder.engines import EngineError
from builder.engines.tensorrt import TensorRTSettings, onnx_frontend, plugin_library, route
from builder.engines.tensorrt.plans import ChildPlan
from builder.pipeline.build import compare_engine
from builder.pipeline.export import InputSpec, decompose_operator, export_detector
from builder.pipeline.samples import sample_images
from builder.pipeline.verify import limits_of
from builder.precision import PRECISIONS, Precision
from builder.variants import get_variant
from codetr_client.outputs import make_folder
from perf.machine import header
from perf.records import write_record
from serving.errors import CodetrError

RECORD = "grid-sample.json"
Design = Literal["plugin", "grid_sample"]
DESIGNS: tuple[Design, ...] = ("plugin", "grid_sample")


def run(
    detector: Detector, precision: Precision, spec: InputSpec, output: Path, python: Path | None, seconds: float
) -> dict[str, Any]:
    """Build and judge both plans, and return the content of `output`/grid-sample.json.

    Args:
        detector: in float32.
        precision: of the plans.
        spec: their size and batches.
        output: folder of record, ONNX files and plans.
        python: with TensorRT; see `builder.engines.tensorrt.route.python_of`.
        seconds: of the measurement of each plan at its largest batch.

    Raises:
        CodetrError: there is no TensorRT, no plugin, or the network has no deformable attention.
    """
    if not detector.variant.uses_operator:
        raise CodetrError(f"{detector.variant.name} has no deformable attention")
    make_folder(output)
    interpreter = route.python_of(TensorRTSettings(frontend="onnx", python=python))
    version, library = route.version_of(interpreter), plugin_library()
    record: dict[str, Any] = {
        **header("grid sample"),
        "variant": detector.variant.name,
        "tensorrt": version,
        "precision": precision,
        "height": spec.height,
        "width": spec.width,
        "batch": spec.max_batch_size,
        "cases": {},
    }
    program = export_detector(copy.deepcopy(detector).deploy().set_precision(DTYPES[precision]), spec)
    samples = sample_images(detector.variant.class_names or ())
    for design in DESIGNS:
        onnx_file, plan = output / f"{design}.onnx", output / f"{design}.plan"
        plugin = library if design == "plugin" else None
        try:
            of_design = program if design == "plugin" else decompose_operator(program)
            onnx_frontend.write_onnx(of_design, onnx_file, version)
            onnx_frontend.build_plan(onnx_file, plan, spec, precision, plugin=plugin, python=interpreter)
            engine = ChildPlan(plan, plugin, interpreter)
            found = compare_engine(detector, engine, samples, spec, limits_of(precision)).result
            timings = engine.measure(*_full_images(spec), seconds, 20)
            record["cases"][design] = {**found.to_dict(), "p50_ms": statistics.median(timings.times_ms)}
        except EngineError as error:
            record["cases"][design] = {"error": str(error)}
        write_record(record, output, RECORD)
    return record


def _full_images(spec: InputSpec) -> tuple[Any, Any]:
    shape = (spec.max_batch_size, spec.height, spec.width, 3)
    sizes = np.array([[spec.height, spec.width]] * spec.max_batch_size, np.int32)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8), sizes


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description="Deformable attention in plans, as our plugin and as GridSample.")
    parser.add_argument("variant")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32")
    parser.add_argument("--batch", type=int, default=4, help="largest batch, from 1 on")
    parser.add_argument(
        "--tensorrt-python", type=Path, help="with TensorRT; else CODETR_TENSORRT_PYTHON's, or this one"
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/grid-sample"))
    options = parser.parse_args()
    try:
        detector = load_detector(get_variant(options.variant), options.weights)
        height, width = detector.variant.input_size
        record = run(
            detector,
            PRECISIONS[options.precision],
            InputSpec(height, width, options.batch),
            options.output,
            options.tensorrt_python,
            options.seconds,
        )
    except CodetrError as error:
        sys.exit(f"error: {error}")
    for design, case in record["cases"].items():
        print(design, *(f"{name}={value}" for name, value in case.items()))


if __name__ == "__main__":
    main()
