"""Latencies that others have published of the same networks, for reference beside what is measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builder.family import DetectorConfig
from builder.pipeline.export import InputSpec


@dataclass(frozen=True)
class Published:
    """What one project measured of one network."""

    family: str
    networks: tuple[str, ...]  # summaries of its variants
    hardware: str
    source: str
    how: str
    # milliseconds of a batch, by (width, height, batch) and "PyTorch PRECISION" or "engine PRECISION"
    figures: Mapping[tuple[int, int, int], Mapping[str, float]]

    @property
    def note(self) -> str:
        """The sentence that stands under a table with these figures."""
        return (
            f"{self.hardware}: **published reference on other hardware**, not measured here: {self.source}. {self.how}"
        )


PUBLISHED = (
    Published(
        "co_dino",
        ("Swin-L", "Swin-L, LSJ"),
        "RTX 4090",
        "README of anenbergb/Co-DETR-TensorRT",
        "Its engine is TensorRT 10.7 in float16, mean GPU time of `trtexec` with CUDA graphs; PyTorch is eager.",
        {
            (1920, 1280, 1): {"PyTorch float32": 346.0, "PyTorch float16": 147.1, "engine float16": 79.5},
            (1152, 768, 1): {"PyTorch float32": 123.0, "PyTorch float16": 50.8, "engine float16": 30.2},
            (608, 608, 1): {"PyTorch float32": 59.0, "PyTorch float16": 24.8, "engine float16": 13.4},
        },
    ),
    Published(
        "rtdetrv2",
        ("R18vd",),
        "RTX 4090",
        "README of jacksonsc007/RTDETR_TensorRT_Deployment",
        "It states 204 images/s for PyTorch, 424 and 762 for its TensorRT 10.7 engines in float32 and float16.",
        {(640, 640, 1): {"PyTorch float32": 1e3 / 204, "engine float32": 1e3 / 424, "engine float16": 1e3 / 762}},
    ),
    Published(
        "detr",
        ("R50",),
        "Titan RTX",
        "the published table of a conversion of DETR R50 from ONNX to TensorRT 7",
        "It gives milliseconds of batches of 1 and 4 and not the size of the images; they stand beside 1066x800 here.",
        {
            (1066, 800, 1): {
                "PyTorch float32": 29.0, "PyTorch float16": 23.0, "engine float32": 20.0, "engine float16": 11.0,
            },
            (1066, 800, 4): {
                "PyTorch float32": 86.0, "PyTorch float16": 49.0, "engine float32": 70.0, "engine float16": 39.0,
            },
        },
    ),
)  # fmt: skip


def published(variant: DetectorConfig) -> Published | None:
    """Return what has been published of this network; None if nothing has."""
    known = (each for each in PUBLISHED if each.family == variant.family)
    return next((each for each in known if variant.summary in each.networks), None)


def published_ms(variant: DetectorConfig, spec: InputSpec, implementation: str, precision: str) -> float | None:
    """Return the published latency in milliseconds of this case; None if there is none.

    Args:
        variant: the network.
        spec: its largest batch counts.
        implementation: "PyTorch", or the kind of engine.
        precision: such as "float16".
    """
    found = published(variant)
    if found is None:
        return None
    kind = "PyTorch" if implementation == "PyTorch" else "engine"
    return found.figures.get((spec.width, spec.height, spec.max_batch_size), {}).get(f"{kind} {precision}")


def sizes_to_measure(variant: DetectorConfig) -> list[tuple[int, int]]:
    """Return the sizes (width, height) to measure unless told: the published ones, else the network's usual one."""
    found = published(variant)
    if found is None:
        return [(variant.input_size[1], variant.input_size[0])]
    return list(dict.fromkeys((width, height) for width, height, _ in found.figures))
