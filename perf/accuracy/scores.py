"""COCO's figures of detections."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.pipeline.ap import evaluate
from builder.pipeline.coco import Matched
from codetr_client.detections import Detections
from codetr_client.outputs import make_folder, refuse_overwriting, write_whole
from perf import machine
from perf.accuracy.dataset import Dataset, Picture, by_orientation
from perf.records import write_record
from serving.errors import CodetrError

# What an evaluation writes to its folder; RESULTS is what an interrupted one continues from.
RESULTS, DETECTIONS, ACCURACY = "results.jsonl", "detections.json", "accuracy.json"


@dataclass(frozen=True)
class Accuracy:
    """COCO's figures, 0..1; -1 where the images hold no such object."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    classes: dict[str, dict[str, float]]  # AP and AP50 of each class


def coco_results(found: Mapping[int, Detections], categories: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return COCO result records of all detections whose label has a category, in numbers of ours."""
    return [
        row for number, each in sorted(found.items()) for row in each.of_labels(categories).to_coco(number, categories)
    ]


def with_own_ids(dataset: Dataset, results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return result records with the ids that the annotation file gives its images and categories."""
    images = {image.number: image.id for image in dataset.images}
    categories = {category.number: category.id for category in dataset.coco.categories}
    return [
        {**row, "image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]} for row in results
    ]


def score(dataset: Dataset, results: list[dict[str, Any]], images: Iterable[Picture] | None = None) -> Accuracy:
    """Return COCO's AP and AR of `results` on the data set, or on some of its images."""
    numbers = [image.number for image in (dataset.images if images is None else images)]
    categories = [category.number for category in dataset.coco.categories]
    stats, precision = evaluate(dataset.content, results, numbers, categories)
    ap, ap50, ap75, small, medium, large, _, _, *recalls = stats.tolist()
    ar100, ar_small, ar_medium, ar_large = recalls
    classes = {
        name: {"ap": _mean(precision[:, :, k]), "ap50": _mean(precision[0, :, k])}
        for k, name in enumerate(dataset.category_names)
    }
    return Accuracy(ap, ap50, ap75, small, medium, large, ar100, ar_small, ar_medium, ar_large, classes)


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def check_output(output: Path, sources: Iterable[Path | None]) -> None:
    """Check that an evaluation can write to `output` without replacing one of its sources or what is no run's.

    Raises:
        CodetrError: it cannot; nothing was detected yet.
    """
    make_folder(output)
    written = [output / name for name in (RESULTS, DETECTIONS, ACCURACY)]
    refuse_overwriting(written, sources)
    if not written[0].exists() and (foreign := [path.name for path in written[1:] if os.path.lexists(path)]):
        raise CodetrError(
            f"{output} has {', '.join(foreign)} but no {RESULTS} of an earlier evaluation, so it wrote none of them; "
            "name another output"
        )


def report(
    dataset: Dataset, source: str, found: Mapping[int, Detections], matched: Matched, output: Path
) -> dict[str, Any]:
    """Write `detections.json` and `accuracy.json` to `output` and return the latter's content.

    `detections.json` are COCO results with the annotation file's own ids.
    """
    results = coco_results(found, matched.categories)
    write_whole(output / DETECTIONS, json.dumps(with_own_ids(dataset, results)).encode())
    annotated = {annotation.image for annotation in dataset.coco.annotations}
    empty = [found[image.number].scores for image in dataset.images if image.number not in annotated]
    content = {
        **machine.header("accuracy"),
        "source": source,
        "images": len(dataset.images),
        "notes": [*dataset.coco.notes, *matched.notes],
        **asdict(score(dataset, results)),
        "orientations": {
            name: {"images": len(images), "ap": score(dataset, results, images).ap}
            for name, images in by_orientation(dataset).items()
        },
        "empty_images": len(empty),
        "highest_score_on_empty": max((float(scores.max(initial=0)) for scores in empty), default=0.0),
    }
    write_record(content, output, ACCURACY)
    return content
