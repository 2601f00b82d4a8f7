"""Compares an engine with the float32 PyTorch detector it was made from, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from builder.co_dino.model import CoDINO
from builder.engines import EngineOutput, Runner, output_of
from serving.errors import CodetrError
from serving.preprocess import resize_and_pad

# Candidates the comparison looks at, best first: those below are noise that any rounding reorders.
COMPARED = 100
# A candidate is found again if one of the same class overlaps it this much.
MATCH_IOU = 0.9


class VerificationError(CodetrError):
    """An engine whose detections are not the detector's; the message gives the figures and the limits."""


@dataclass(frozen=True)
class Limits:
    """How far an engine of one precision may be from float32."""

    min_matched: float  # share of the best candidates that the engine finds again
    max_score_difference: float  # of matched candidates, largest


LIMITS = {
    "float32": Limits(min_matched=0.99, max_score_difference=1e-3),
    "float16": Limits(min_matched=0.95, max_score_difference=0.03),
    "bfloat16": Limits(min_matched=0.85, max_score_difference=0.15),
}


@dataclass(frozen=True)
class Verification:
    """What a comparison found, over all images."""

    images: int
    compared: int
    matched: float
    max_score_difference: float
    mean_box_iou: float
    batch_matched: float | None  # the same figure between batch 1 and the largest batch; None for a batch of 1

    def __str__(self) -> str:
        return (
            f"{self.matched:.1%} of {self.compared} candidates found again, scores within "
            f"{self.max_score_difference:.1e}, mean IoU {self.mean_box_iou:.4f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return asdict(self)


def verify(
    detector: CoDINO,
    run: Runner,
    images: Sequence[NDArray[np.uint8]],
    height: int,
    width: int,
    batch_sizes: tuple[int, int],
    limits: Limits,
) -> Verification:
    """Run engine and detector over `images` (uint8 [h, w, 3] RGB, any sizes) and compare their best candidates.

    Args:
        detector: the float32 reference.
        run: the engine.
        images: what both see, fitted into `height` x `width`.
        height: of the engine's input, in pixels.
        width: of the engine's input, in pixels.
        batch_sizes: smallest and largest batch of the engine; both are run and compared with each other.
        limits: of the engine's precision.

    Raises:
        VerificationError: a figure is outside `limits`.
    """
    pixels, sizes = fit(images, height, width)
    expected = run_batched(_pytorch(detector), pixels, sizes, batch_sizes[0])
    actual = run_batched(run, pixels, sizes, batch_sizes[0])
    matched, score_difference, iou = compare(expected, actual)
    batch_matched = None
    if batch_sizes[1] > batch_sizes[0]:
        batch_matched, _, _ = compare(actual, run_batched(run, pixels, sizes, batch_sizes[1]))
    compared = min(COMPARED, expected.scores.shape[1]) * len(images)
    result = Verification(len(images), compared, matched, score_difference, iou, batch_matched)
    _check(result, limits)
    return result


def fit(images: Sequence[NDArray[np.uint8]], height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return images uint8 [N, height, width, 3] and their valid sizes int32 [N, 2], by the server's pixel rules."""
    fitted = [resize_and_pad(image, height, width) for image in images]
    return np.stack([pixels for pixels, _ in fitted]), np.array([size for _, size in fitted], np.int32)


def run_batched(run: Runner, pixels: NDArray[np.uint8], sizes: NDArray[np.int32], batch_size: int) -> EngineOutput:
    """Run all images in batches of exactly `batch_size`; the last is filled up with its own first image."""
    outputs = []
    for start in range(0, len(pixels), batch_size):
        chosen = np.arange(start, start + batch_size)
        chosen[chosen >= len(pixels)] = start
        outputs.append([part[: len(pixels) - start] for part in run(pixels[chosen], sizes[chosen])])
    return EngineOutput(*(np.concatenate(parts) for parts in zip(*outputs, strict=True)))


def compare(expected: EngineOutput, actual: EngineOutput) -> tuple[float, float, float]:
    """Return the share of the best expected candidates found again, their largest score difference and mean IoU."""
    ious, differences = [], []
    for boxes, scores, labels, *found in zip(*expected, *actual, strict=True):
        for box, score, label in list(zip(boxes, scores, labels, strict=True))[:COMPARED]:
            iou, difference = _best_match(box, score, label, *found)
            ious.append(iou)
            differences.append(difference)
    matched = np.array(ious) >= MATCH_IOU
    largest = float(np.max(np.array(differences)[matched], initial=0.0))
    return float(matched.mean()), largest, float(np.mean(ious))


def _best_match(
    box: NDArray[np.float32],
    score: float,
    label: int,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int32],
) -> tuple[float, float]:
    """Return IoU and score difference of the candidate of `label` that is nearest in score among those on the box."""
    overlap = _iou(box, boxes) * (labels == label)
    if not overlap.size or not np.isfinite(overlap).all():
        return 0.0, np.inf
    on_box = overlap >= min(MATCH_IOU, float(overlap.max()))
    differences = np.where(on_box, np.abs(scores - score), np.inf)
    best = int(differences.argmin())
    return float(overlap[best]), float(differences[best])


def _iou(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the intersection over union of one box [4] and `boxes` [K, 4]; equal boxes have 1, also empty ones."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    intersection = sides.clip(min=0).prod(-1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(-1) - intersection
    same = np.abs(boxes - box).max(-1) < 1e-6
    return np.where(same, 1.0, intersection / np.maximum(union, np.finfo(np.float32).tiny))


def _pytorch(detector: CoDINO) -> Runner:
    def run(images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        device = next(detector.parameters()).device
        with torch.inference_mode():
            outputs = detector(torch.from_numpy(images).to(device), torch.from_numpy(image_sizes).to(device))
        return output_of(tensor.cpu() for tensor in outputs)

    return run


def _check(result: Verification, limits: Limits) -> None:
    faults = []
    if result.matched < limits.min_matched:
        faults.append(f"found {result.matched:.1%} of the detector's candidates, expected {limits.min_matched:.0%}")
    if result.max_score_difference > limits.max_score_difference:
        faults.append(
            f"scores differ by up to {result.max_score_difference:.4f}, expected {limits.max_score_difference}"
        )
    if result.batch_matched is not None and result.batch_matched < limits.min_matched:
        faults.append(
            f"the largest batch finds {result.batch_matched:.1%} of what batch 1 finds, expected "
            f"{limits.min_matched:.0%}"
        )
    if faults:
        raise VerificationError(f"the engine does not reproduce the detector: {'; '.join(faults)}")
