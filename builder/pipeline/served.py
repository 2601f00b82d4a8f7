"""What the server answers for an engine's candidates, in this process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codetr_client.detections import Detections
from serving.postprocess import PostprocessSettings, postprocess
from serving.rules import Suppression


def served(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int32],
    original_size: tuple[int, int],
    suppression: Suppression,
    class_names: Sequence[str] = (),
) -> Detections:
    """Return the detections of one image.

    Args:
        boxes: [K, 4], x1 y1 x2 y2 in 0..1 of the valid image.
        scores: [K].
        labels: [K].
        original_size: (height, width) of the upright original, in whose pixels the detections are.
        suppression: the engine's rule.
        class_names: of the detector, in label order.
    """
    rows = postprocess(boxes, scores, labels, original_size, PostprocessSettings.of(suppression, len(scores)))
    n = rows.num_detections
    return Detections.named(rows.boxes[:n], rows.scores[:n], rows.labels[:n], class_names)
