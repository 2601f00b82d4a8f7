"""How a detector is quantised: what is asked for, what calibration made of it, and the detector with other layers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from builder.detector import Detector
from builder.engines import EngineError
from builder.engines.kinds import EngineKind
from builder.pipeline.export import InputSpec
from builder.pipeline.samples import drawn_samples, image_paths, read_images
from builder.pipeline.verify import fit
from builder.precision import Quantised
from builder.quantise.calibration import Histogram, Method, Ranges, calibrate
from builder.quantise.groups import chosen_layers, groups_of
from builder.quantise.layers import Layer, replace_layers
from builder.quantise.search import Search, described
from serving.rules import Pixels

logger = logging.getLogger(__name__)

AP_BUDGET = 0.005  # unless told
CALIBRATION_SEED = 11  # of drawn pictures; not that of the pictures on which engines are verified
PURPOSE = "to calibrate on"  # of pictures, for messages
# How the ranges of activations are found unless told: what lies far out is cut for INT8, whose steps are all alike.
METHODS: Mapping[Quantised, Method] = {"int8": "percentile", "fp8": "max"}


@dataclass(frozen=True)
class Recipe:
    """What is asked for."""

    layers: tuple[str, ...] = ()  # groups, or patterns of module names; none: those that the engine's kind names
    method: Method | None = None  # None: `METHODS`
    images: Path | None = None  # folder of pictures to calibrate on; None: drawn shapes
    count: int = 64  # pictures at most
    search: bool = False  # look for the fastest set of groups within `ap_budget`
    ap_budget: float = AP_BUDGET  # AP 50:95, 0..1, that may be lost

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(dict.fromkeys(self.layers)))  # a word twice is the same layers
        if self.count < 1:
            raise EngineError(f"{self.count} calibration pictures are not possible; expected at least 1")
        if not 0 <= self.ap_budget < 1:
            raise EngineError(f"an AP budget of {self.ap_budget} is not possible; expected 0 to 1, of AP 0..1")
        if self.ap_budget != AP_BUDGET and not self.search:
            raise EngineError(
                f"an AP budget of {self.ap_budget:g} is only kept by a search; ask for a search, or leave it out"
            )


class Pictures(NamedTuple):
    """What was calibrated on."""

    pixels: NDArray[np.uint8]  # [N, H, W, 3]
    sizes: NDArray[np.int32]  # [N, 2], valid (h, w)
    source: str  # for the manifest

    def batches(self) -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
        """Return the pictures one by one."""
        return [(self.pixels[i : i + 1], self.sizes[i : i + 1]) for i in range(len(self.pixels))]


@dataclass(frozen=True)
class Quantisation:
    """A recipe made ready: the layers that are chosen and what was seen of their inputs and outputs."""

    precision: Quantised
    words: tuple[str, ...]  # that chose the layers
    ranges: Mapping[str, Ranges]  # by the layers' names
    method: Method
    pictures: Pictures
    search: Search | None = None  # that chose the layers

    def describe(self) -> dict[str, Any]:
        """Return what a manifest has of it."""
        return {
            "layers": list(self.words),
            "quantised": len(self.ranges),
            "method": self.method,
            "calibration": {"source": self.pictures.source, "images": len(self.pictures.pixels)},
            "search": None if self.search is None else described(self.search),
        }


class Calibrated:
    """Histograms of the layers that a search, or one set, may choose."""

    def __init__(
        self, detector: Detector, precision: Quantised, words: Sequence[str], recipe: Recipe, pictures: Pictures
    ) -> None:
        """Run `detector`, in float32 and deployed, on `pictures`, with the layers of `words` observed."""
        self.detector, self.precision, self.pictures = detector, precision, pictures
        self.method = recipe.method or METHODS[precision]
        self.histograms: dict[str, tuple[Histogram, Histogram]] = calibrate(
            detector, chosen_layers(detector, words), pictures.batches()
        )

    def quantisation(self, words: Sequence[str]) -> Quantisation:
        """Return the ranges of the layers that `words` choose, which are some of those that were observed."""
        ranges = {}
        for name in chosen_layers(self.detector, words):
            of_input, of_output = self.histograms[name]
            ranges[name] = Ranges(of_input.range(self.method), of_output.range(self.method))
        return Quantisation(self.precision, tuple(words), ranges, self.method, self.pictures)


def calibration_pictures(recipe: Recipe, class_names: Sequence[str], spec: InputSpec, rule: Pixels) -> Pictures:
    """Return the pictures to calibrate on, fitted into the engine's input by its pixel rule.

    Of a folder only those are read that are taken, evenly spread over its names, since the first ones may be alike.

    Raises:
        CodetrError: there is no such folder, it holds none, or some of those that are taken cannot be read.
    """
    if recipe.images is None:
        images, source = drawn_samples(CALIBRATION_SEED, recipe.count, class_names).images, "drawn shapes"
    else:
        paths = image_paths(recipe.images, PURPOSE)
        if len(paths) < recipe.count:
            note = f"{recipe.images} holds {len(paths)} pictures {PURPOSE}, fewer than {recipe.count}"
            logger.warning("note: %s", note)
        chosen = np.linspace(0, len(paths) - 1, min(recipe.count, len(paths))).round().astype(int)
        images, source = read_images([paths[i] for i in chosen]), recipe.images.name
    return Pictures(*fit(images, spec.height, spec.width, rule), source)


def words_of(recipe: Recipe, kind: EngineKind, detector: Detector) -> tuple[str, ...]:
    """Return the words of a recipe, or the groups that a kind of engine quantises unless told, as far as there are any.

    Raises:
        EngineError: the detector has none of those groups.
    """
    if recipe.layers:
        return recipe.layers
    words = tuple(group for group in groups_of(detector) if group in kind.quantised_groups)
    if not words:
        raise EngineError(
            f"{detector.variant.name} has none of the groups that the {kind.name} engine quantises "
            f"({', '.join(kind.quantised_groups)}); choose layers by patterns of module names"
        )
    return words


def quantised(detector: Detector, quantisation: Quantisation, kind: EngineKind) -> Detector:
    """Return a copy of a deployed detector in the engine's precision with the chosen layers replaced."""
    detector = copy.deepcopy(detector)
    layers: dict[str, Layer] = {}
    for name in quantisation.ranges:
        layers[name] = detector.get_submodule(name)  # type: ignore[assignment]
    replace_layers(detector, kind.module.quantised_layers(layers, quantisation.ranges, quantisation.precision))
    return detector
