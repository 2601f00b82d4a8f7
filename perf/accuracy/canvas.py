"""How far an engine's fixed canvas moves DETR's answers from those to the image alone, at its exact size.

The original runs an image at its own size. In a canvas the transformer leaves the padding out, but convolutions at the
image's border see what the padding answers instead of zeros; where the canvas lacks room the image is smaller too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice, permutations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from builder.checkpoint import random_detector
from builder.detr.config import DetrConfig
from builder.detr.model import Detr, detections
from builder.parts.position import level_valid_shapes
from builder.parts.resnet import FrozenBatchNorm2d
from demo.shapes.draw import generate
from model_repository.torch_runner import float32_products
from perf.machine import header
from perf.records import write_record
from serving.decode import Image8
from serving.preprocess import resize_and_pad, valid_size

ORIENTATIONS = ("landscape", "portrait")
SEED = 2  # of the drawn images
ROOM = (1 << 16, 1 << 16)  # in which every image takes its exact size
INNER = 5  # tokens that the border does not reach in random weights: what lies farther inside


@dataclass(frozen=True)
class Shift:
    """Of one canvas and one orientation, over all queries of all images."""

    height: int
    width: int
    orientation: str
    images: int
    exact: int  # images that the canvas holds at their exact size; features are compared on these
    box: float  # mean difference of the boxes' coordinates, in shares of the image's sides
    box_max: float
    box_of_another_image: float  # as `box`, between the exact answers to two images: what the weights make of a change
    score: float  # mean difference
    same_labels: float  # share of the queries
    features: float | None  # of the backbone, ‖canvas - exact‖ / ‖exact‖ over the image's tokens
    inner_features: float | None  # the same without the `INNER` tokens next to each border


class Answer(NamedTuple):
    """Of every query, in their order, and the backbone's tokens of the image."""

    size: tuple[int, int]  # the resized image's (height, width)
    boxes: Tensor  # [Q, 4] x1 y1 x2 y2 in 0..1
    scores: Tensor  # [Q]
    labels: Tensor  # [Q]
    features: Tensor  # [C, h, w]


def scaled_detector(variant: DetrConfig | str) -> Detr:
    """Return a detector of random weights in which an image matters: variances are kept from layer to layer.

    Convolutions and matrices are drawn by fan-in and fan-out, and each batch norm's statistics are those of one drawn
    image. With PyTorch's own defaults every image gets nearly the same answer.
    """
    detector = random_detector(variant)
    assert isinstance(detector, Detr), f"{variant} is no DETR"
    norms = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in detector.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    answer(detector, generate(SEED + 1, 0, (480, 640)).image)
    for hook in hooks:
        hook.remove()
    return detector


def _take_statistics(norm: FrozenBatchNorm2d, inputs: tuple[Tensor]) -> None:
    norm.running_mean, norm.running_var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))


@torch.no_grad()
def answer(detector: Detr, image: Image8, canvas: tuple[int, int] | None = None) -> Answer:
    """Return what a detector answers to an image uint8 [h, w, 3] on a (height, width), or alone at its exact size."""
    rule = detector.variant.rules.pixels
    height, width = canvas or valid_size(image.shape[0], image.shape[1], *ROOM, rule)
    resized, size = resize_and_pad(image, height, width, rule)
    images = torch.from_numpy(resized)[None].to(detector.device)
    sizes = torch.tensor([size], dtype=torch.int32, device=detector.device)
    kept: list[Tensor] = []
    hook = detector.backbone.register_forward_hook(lambda module, inputs, outputs: kept.append(outputs[-1][0]))
    with float32_products(tf32=False):
        boxes, scores, labels = detections(*detector.network(detector.normalize(images, sizes), sizes))
    hook.remove()
    shape = (kept[0].shape[1], kept[0].shape[2])
    h, w = level_valid_shapes(sizes, (height, width), [shape])[0, 0].tolist()
    return Answer(size, boxes[0], scores[0], labels[0], kept[0][:, :h, :w])


def measure(
    detector: Detr, images: Sequence[Image8], orientation: str, canvases: Sequence[tuple[int, int]]
) -> Iterator[Shift]:
    """Yield the shift on each canvas; `images` are at least two, of one orientation."""
    alone = [answer(detector, image) for image in images]
    another = fmean(float((a.boxes - b.boxes).abs().mean()) for a, b in permutations(alone, 2))
    for canvas in canvases:
        pairs = [(a, answer(detector, image, canvas)) for a, image in zip(alone, images, strict=True)]
        moves = [(a.boxes - b.boxes).abs() for a, b in pairs]
        tokens = [(a.features, b.features) for a, b in pairs if a.size == b.size]
        inner = [(a[:, INNER:-INNER, INNER:-INNER], b[:, INNER:-INNER, INNER:-INNER]) for a, b in tokens]
        yield Shift(
            *canvas,
            orientation,
            len(images),
            exact=len(tokens),
            box=fmean(float(move.mean()) for move in moves),
            box_max=max(float(move.max()) for move in moves),
            box_of_another_image=another,
            score=fmean(float((a.scores - b.scores).abs().mean()) for a, b in pairs),
            same_labels=fmean(float((a.labels == b.labels).float().mean()) for a, b in pairs),
            features=_relative(tokens),
            inner_features=_relative([pair for pair in inner if pair[0].numel()]),
        )


def _relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    return fmean(float((b - a).norm() / a.norm()) for a, b in pairs) if pairs else None


def drawn(orientation: str, images: int) -> list[Image8]:
    """Return the first drawn images of an orientation; a square one has none."""
    each = (generate(SEED, index).image for index in count())
    return list(islice((image for image in each if _orientation(*image.shape[:2]) == orientation), images))


def _orientation(height: int, width: int) -> str:
    return "square" if height == width else ORIENTATIONS[height > width]


def run(
    detector: Detr,
    weights: str,
    images: int,
    canvases: Sequence[tuple[int, int]],
    output: Path,
    on_shift: Callable[[Shift], object],
) -> dict[str, Any]:
    """Measure landscape and portrait images, and return the content of the JSON file `output`.

    It is written anew with each canvas, so that Ctrl-C keeps what was measured.
    """
    rows: list[dict[str, Any]] = []
    record = {**header("canvas"), "variant": detector.variant.name, "weights": weights, "complete": False, "rows": rows}
    for orientation in ORIENTATIONS:
        for shift in measure(detector, drawn(orientation, images), orientation, canvases):
            rows.append(asdict(shift))
            write_record(record, output.parent, output.name)
            on_shift(shift)
    record["complete"] = True
    write_record(record, output.parent, output.name)
    return record
