"""Builds and measures engines of some groups, for the search."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from builder.detector import Detector
from builder.engines import Engine, EngineError, EngineOutput, first_line
from builder.engines.eager import EagerDetector
from builder.engines.kinds import EngineKind
from builder.engines.tensorrt.plans import ChildPlan
from builder.engines.tensorrt.settings import TensorRTSettings
from builder.pipeline.export import InputSpec, export_detector
from builder.pipeline.samples import Samples, Truth
from builder.pipeline.verify import average_precision, detections, fit, run_batched
from builder.quantise.recipe import Calibrated, quantised
from builder.quantise.search import Trial

PICTURES = 64  # drawn ones, where no others are given; AP of fewer jumps by more than a usual budget
SECONDS, LEAST = 3.0, 20  # an engine is timed for, and calls at least
CONFIDENT = 0.3  # score from which float32's detections count as annotations where there are none


@dataclass(frozen=True)
class Bench:
    """What trials have in common."""

    kind: EngineKind
    detector: Detector  # deployed, in the precision of what is not quantised
    calibrated: Calibrated
    spec: InputSpec
    settings: TensorRTSettings
    samples: Samples  # annotated
    expected: float  # AP of the float32 detector on them

    def measure(self, groups: tuple[str, ...]) -> Trial:
        """Return the trial of an engine with `groups` quantised; one that cannot be built has a fault."""
        quantisation = self.calibrated.quantisation(groups)
        try:
            detector = quantised(self.detector, quantisation, self.kind) if groups else self.detector
            with tempfile.TemporaryDirectory(prefix="codetr-trial-") as folder:
                program = export_detector(self.kind.module.prepared(detector), self.spec)
                built = self.kind.module.build(program, Path(folder, self.kind.file_name), self.settings)
                engine = self.kind.module.load(built.file, self.spec, built.device, self.settings)
                ap, ms = self._ap(engine), self._ms(engine, built.file)
        except EngineError as error:
            nan = float("nan")
            return Trial(groups, len(quantisation.ranges), nan, nan, first_line(error))
        return Trial(groups, len(quantisation.ranges), self.expected - ap, ms)

    def _ap(self, engine: Engine) -> float:
        return ap_of(engine, self.samples, self.spec, self.detector)

    def _ms(self, engine: Engine, file: Path) -> float:
        if self.kind.name == "onnx":
            return processor_milliseconds(file, *self._first())
        return milliseconds(engine, *self._first())

    def _first(self) -> tuple[Any, Any]:
        batch = 1 if self.spec.is_dynamic else self.spec.max_batch_size
        chosen = [self.samples.images[0]] * batch
        return fit(chosen, self.spec.height, self.spec.width, self.detector.variant.rules.pixels)


def ap_of(run: Callable[..., EngineOutput], samples: Samples, spec: InputSpec, detector: Detector) -> float:
    """Return the AP of what runs on annotated samples, after the server's post-processing."""
    rules = detector.variant.rules
    pixels, sizes = fit(samples.images, spec.height, spec.width, rules.pixels)
    output = run_batched(run, pixels, sizes, 1 if spec.is_dynamic else spec.max_batch_size)
    ap = average_precision(output, samples, rules.suppression)
    if ap is None:
        raise EngineError("the pictures of a search are not annotated")
    return ap


def annotated(samples: Samples, detector: Detector, spec: InputSpec) -> tuple[Samples, str]:
    """Return samples with annotations: their own, or else the float32 detector's confident detections.

    Returns:
        The samples, and what they are in words.

    Raises:
        EngineError: they have none, and the detector is confident of nothing on them.
    """
    if samples.truth is not None:
        return samples, f"{len(samples.truth.image_ids)} annotated pictures"
    rules = detector.variant.rules
    pixels, sizes = fit(samples.images, spec.height, spec.width, rules.pixels)
    output = run_batched(EagerDetector(detector), pixels, sizes, 1)
    truth = _truth(output, samples, detector)
    if not truth.content["annotations"]:
        raise EngineError(
            f"the detector finds nothing with a score of {CONFIDENT} on the {len(samples.images)} pictures, so no set "
            "of layers can be judged; give annotated pictures, or leave the search out"
        )
    return replace(samples, truth=truth), f"float32's own detections on {len(samples.images)} pictures"


def _truth(output: EngineOutput, samples: Samples, detector: Detector) -> Truth:
    entries: list[dict[str, Any]] = []
    for number, found in enumerate(detections(output, samples, detector.variant.rules.suppression), 1):
        kept = found.above(CONFIDENT)
        for (x1, y1, x2, y2), label in zip(kept.boxes.tolist(), kept.labels.tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            entry = {"id": len(entries) + 1, "image_id": number, "category_id": label + 1, "bbox": box}
            entries.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    images = [
        {"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]}
        for number, (name, image) in enumerate(zip(samples.names, samples.images, strict=True), 1)
    ]
    labels = range(detector.variant.num_classes)
    categories = [{"id": label + 1, "name": str(label)} for label in labels]
    content = {"images": images, "annotations": entries, "categories": categories}
    return Truth(content, {i: i + 1 for i in range(len(images))}, {label: label + 1 for label in labels})


def milliseconds(engine: Engine | ChildPlan, images: Any, sizes: Any) -> float:
    """Return the median time of one batch, to compare engines with; `codetr bench engine` measures better."""
    if isinstance(engine, ChildPlan):
        times = engine.measure(images, sizes, SECONDS, 2 * LEAST).times_ms
        return float(np.median(times[len(times) // 2 :]))
    call, times = engine.prepare(images, sizes), []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < LEAST:
        start = time.perf_counter()
        call()
        if engine.device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times[len(times) // 4 :])  # the first ones warm it up


def processor_milliseconds(file: Path, images: Any, sizes: Any) -> float:
    """Return the median processor time that one thread takes for a batch in an ONNX file.

    Other programs do not change it, as they change the time of several threads that wait for each other.
    """
    from builder.engines.onnx import load_session

    call, times = load_session(file, threads=1).prepare(images, sizes), []
    for _ in range(LEAST):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return median(times[LEAST // 4 :])


def search_samples(samples: Samples, are_given: bool, class_names: Sequence[str]) -> Samples:
    """Return what a search is judged on: the pictures that are given, or more drawn ones than a verification needs."""
    from builder.pipeline.samples import SEED, drawn_samples

    return samples if are_given else drawn_samples(SEED, PICTURES, class_names)
