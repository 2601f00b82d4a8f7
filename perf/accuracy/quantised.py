"""What quantisation costs and gains: the same detector in several recipes, its AP on drawn shapes and its time."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from builder.checkpoint import DTYPES, load_detector, random_detector
from builder.detector import Detector
from builder.engines import EngineOutput
from builder.engines.eager import EagerDetector, eager_device
from builder.engines.kinds import KINDS, BuiltEngine, EngineKind
from builder.engines.tensorrt.settings import TensorRTSettings
from builder.family import DetectorConfig
from builder.pipeline.export import InputSpec, export_detector
from builder.pipeline.samples import Samples, drawn_samples, image_paths
from builder.pipeline.verify import average_precision, fit, overall, run_batched
from builder.precision import Precision, Quantised, option_of
from builder.quantise.groups import chosen_layers
from builder.quantise.recipe import PURPOSE, Calibrated, Pictures, Recipe, calibration_pictures, quantised, words_of
from builder.quantise.trials import milliseconds, processor_milliseconds
from perf.accuracy.precision import relative_error
from perf.machine import header
from perf.records import write_record

KIND = "quantised"
SEED = 3  # of the pictures: neither those of calibration nor of verification
DEFAULTS = "ONNX Runtime's quantiser, its defaults"


ENCODER_PICTURES = 4  # that its error is of
DEFAULT_PICTURES = 16  # it keeps every tensor of every picture in memory until the last


@dataclass(frozen=True)
class Case:
    """One engine."""

    name: str
    precision: str
    quantised: int | None  # layers; None where another program chose
    ap: float | None  # AP 50:95 on the drawn shapes; None for a detector of other classes
    found_again: float  # share of float32's candidates
    found_back: float  # share of the engine's candidates that are float32's
    ms: float | None  # median of one picture; None for PyTorch itself
    mib: float | None = None  # of the engine's file
    processor_ms: float | None = None  # of a CPU's single thread for one picture, which other programs do not change
    encoder_error: float | None = None  # relative, of what leaves the encoder, with the same rounding in PyTorch


def measure(
    variant: DetectorConfig | str,
    weights: Path | None,
    engine: str,
    images: int,
    recipes: Sequence[Recipe],
    output: Path,
    stage: Callable[[str], AbstractContextManager[object]],
    on_case: Callable[[Case], None],
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Measure PyTorch in float32, the engine unquantised, what a naive user gets, and each recipe; write the record.

    Args:
        variant: the network.
        weights: its checkpoint; None for random ones.
        engine: kind of the engine.
        images: drawn ones that AP is of.
        recipes: of int8, or of fp8 for the torch engine.
        output: folder of the record.
        stage: shows what takes long.
        on_case: hears of each case as it comes.
        size: (height, width) of the input in pixels; None for the variant's.

    Raises:
        CodetrError: a recipe's words choose no layer, or its folder holds no pictures; nothing has been measured.
    """
    kind = KINDS[engine]
    reference = random_detector(variant) if weights is None else load_detector(variant, weights)
    bench = _Bench(reference, kind, images, recipes, size)
    record = {
        **header(KIND),
        "variant": bench.reference.variant.name,
        "weights": weights and weights.name,
        "engine": engine,
        "images": images,
        "size": [bench.spec.height, bench.spec.width],
        "torch_threads": torch.get_num_threads(),
        "cases": [],
    }
    for case in bench.cases(stage):
        record["cases"].append(asdict(case))
        on_case(case)
        write_record(record, output, f"{engine}-{record['variant']}.json")
    return record


class _Bench:
    def __init__(
        self,
        reference: Detector,
        kind: EngineKind,
        images: int,
        recipes: Sequence[Recipe],
        size: tuple[int, int] | None,
    ) -> None:
        self.kind, self.reference, self.recipes = kind, reference.deploy(), recipes
        for recipe in recipes:  # what is wrong with them is said before anything long
            chosen_layers(self.reference, words_of(recipe, kind, self.reference))
            if recipe.images is not None:
                image_paths(recipe.images, PURPOSE)
        variant = reference.variant
        self.spec, self.rules = InputSpec(*(size or variant.input_size), 1, False), variant.rules
        self.samples: Samples = drawn_samples(SEED, images, variant.class_names or ())
        self.pixels, self.sizes = fit(self.samples.images, self.spec.height, self.spec.width, self.rules.pixels)
        self.settings = TensorRTSettings(frontend="onnx") if kind.has_settings else None
        self.reference.to(eager_device(kind.module.device()))
        self.expected = run_batched(EagerDetector(self.reference), self.pixels, self.sizes, 1)

    def cases(self, stage: Callable[[str], AbstractContextManager[object]]) -> Iterator[Case]:
        yield self._case("PyTorch", "float32", self.expected, None, 0)
        low: Quantised = "fp8" if "fp8" in self.kind.quantised and "int8" not in self.kind.quantised else "int8"
        plain: Precision = self.kind.around(low)
        with tempfile.TemporaryDirectory() as folder:
            with stage(f"engine, {option_of(plain)}"):
                built = self._build(self._detector(plain), Path(folder))
                case = self._measured("engine", plain, built, 0)
            yield case
            if self.kind.name == "onnx":
                with stage(DEFAULTS):
                    case = self._defaults(built)
                yield case
        for recipe in self.recipes:
            words = words_of(recipe, self.kind, self.reference)
            with stage(f"{option_of(low)}: {', '.join(words)}"):
                pictures = self._pictures(recipe)
                calibrated = Calibrated(self.reference, low, words, recipe, pictures)
                quantisation = calibrated.quantisation(words)
                detector = quantised(self._detector(plain), quantisation, self.kind)
                name = f"{', '.join(words)}; {quantisation.method}"
                with tempfile.TemporaryDirectory() as folder:
                    case = self._measured(name, low, self._build(detector, Path(folder)), len(quantisation.ranges))
                case = replace(case, encoder_error=self._encoder_error(detector))
            yield case

    def _detector(self, precision: Precision) -> Detector:
        detector = copy.deepcopy(self.reference).set_precision(DTYPES[precision])
        return detector.to(self.kind.module.export_device(self.settings))

    def _encoder_error(self, detector: Detector) -> float | None:
        """Return the relative error of what leaves a quantised detector's encoder; None where it has none."""
        if self.kind.name != "onnx":
            return None  # its layers are none that run anywhere
        batch = self.pixels[:ENCODER_PICTURES], self.sizes[:ENCODER_PICTURES]
        expected, actual = _encoded(self.reference, *batch), _encoded(detector, *batch)
        return None if expected is None or actual is None else relative_error(actual, expected)

    def _pictures(self, recipe: Recipe) -> Pictures:
        return calibration_pictures(recipe, (), self.spec, self.rules.pixels)

    def _build(self, detector: Detector, folder: Path) -> BuiltEngine:
        program = export_detector(self.kind.module.prepared(detector), self.spec)
        return self.kind.module.build(program, folder / self.kind.file_name, self.settings)

    def _measured(self, name: str, precision: str, built: BuiltEngine, layers: int | None) -> Case:
        run = self.kind.module.load(built.file, self.spec, built.device, self.settings)
        output = run_batched(run, self.pixels, self.sizes, 1)
        ms = milliseconds(run, self.pixels[:1], self.sizes[:1])
        case = self._case(name, precision, output, ms, layers)
        first = self.pixels[:1], self.sizes[:1]
        alone = processor_milliseconds(built.file, *first) if self.kind.name == "onnx" else None
        return replace(case, mib=built.file.stat().st_size / 2**20, processor_ms=alone)

    def _fed(self, pixels: NDArray[np.uint8], sizes: NDArray[np.int32], built: BuiltEngine) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"images": pixels, "image_sizes": sizes}
        return {name: arrays[name] for name in built.inputs}

    def _case(self, name: str, precision: str, output: EngineOutput, ms: float | None, layers: int | None) -> Case:
        agreement = overall(self.expected, output)
        ap = average_precision(output, self.samples, self.rules.suppression)
        return Case(name, precision, layers, ap, agreement.matched, agreement.matched_back, ms)

    def _defaults(self, plain: BuiltEngine) -> Case:
        """Quantise the unquantised file as ONNX Runtime's own quantiser does where nothing is asked for."""
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        pictures = self._pictures(Recipe(count=DEFAULT_PICTURES))
        feeds = [self._fed(*batch, plain) for batch in pictures.batches()]

        class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
            def get_next(self) -> dict[str, NDArray[Any]] | None:
                return feeds.pop() if feeds else None

        with tempfile.TemporaryDirectory() as folder:
            made = replace(plain, file=Path(folder, self.kind.file_name))
            quantize_static(str(plain.file), str(made.file), Reader())
            return self._measured(DEFAULTS, "int8", made, None)


def _encoded(detector: Detector, pixels: NDArray[np.uint8], sizes: NDArray[np.int32]) -> Tensor | None:
    """Return all numbers that leave a detector's encoder."""
    encoder, left = dict(detector.named_children()).get("encoder"), []
    if encoder is None:
        return None
    hook = encoder.register_forward_hook(lambda module, inputs, output: left.extend(tree_leaves(output)))
    run_batched(EagerDetector(detector), pixels, sizes, 1)
    hook.remove()
    return torch.cat([each.flatten() for each in left])


def naive() -> Recipe:
    """Return what is often taken for quantisation: every layer, with ranges from one extreme to the other."""
    return Recipe(layers=("*",), method="max")
