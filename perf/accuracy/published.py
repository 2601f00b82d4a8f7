"""A measured AP beside the one that a checkpoint was published with."""

from __future__ import annotations

from perf.accuracy.dataset import Dataset
from serving.contract import coco_class_names

# COCO's val2017, on which detectors are published.
VAL2017_IMAGES = 5000
# Percentage points. Published figures are rounded to 0.1; JPEG decoders and another machine's kernels move the rest.
TOLERANCE = 0.2


def verdict(
    ap: float, published: float, classes: int, dataset: Dataset, size: tuple[int, int], usual: tuple[int, int]
) -> str:
    """Return one line that compares a measured AP with a published one.

    Args:
        ap: measured, 0..1.
        published: in percent.
        classes: of the published variant; those of 80 are published on COCO val2017.
        dataset: what was measured on.
        size: (height, width) of the engine's input.
        usual: that of the published figure.
    """
    measured = f"published box AP {published:.1f}, measured {100 * ap:.2f}"
    if classes != len(coco_class_names()):
        return f"{measured}: no verdict, since the published figure is that of another data set than COCO"
    missing = _missing(dataset)
    if missing:
        return f"{measured}: no verdict, since the published figure is that of COCO val2017, and {missing}"
    difference = round(100 * ap - published, 2)
    if abs(difference) <= TOLERANCE:
        return f"{measured}: agrees within {TOLERANCE}"
    text = f"{measured}: differs by {difference:+.2f}, more than {TOLERANCE}"
    if size != usual:
        return f"{text}; the input is {size[0]}x{size[1]} (height x width), the published one {usual[0]}x{usual[1]}"
    return f"{text}; check that weights, variant and images are those of the published figure"


def _missing(dataset: Dataset) -> str | None:
    """Return in words what makes a data set another one than val2017; None if it is that one by all that it tells."""
    if set(dataset.category_names) != set(coco_class_names()):
        return f"{dataset.annotations.name} has {len(dataset.category_names)} categories that are not COCO's 80"
    if len(dataset.images) != VAL2017_IMAGES or not dataset.is_whole:
        return f"{len(dataset.images)} images were measured instead of its {VAL2017_IMAGES}, all of them"
    return None
