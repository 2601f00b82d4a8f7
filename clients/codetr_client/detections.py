"""The detections of one image: what every client returns."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codetr_client.errors import CodetrError
from codetr_client.threshold import check_threshold


@dataclass(frozen=True, eq=False)
class Detections:
    """N detections of one image, in the server's order (soft-NMS pick order, not always by score).

    boxes: float32 [N, 4], x1 y1 x2 y2 in pixels of the upright original (EXIF orientation applied).
    scores: float32 [N], 0..1.
    labels: int32 [N], class indices.
    names: N class names.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        N = len(self.scores)
        if self.boxes.shape != (N, 4) or self.labels.shape != (N,) or len(self.names) != N:
            shapes = f"boxes {self.boxes.shape}, labels {self.labels.shape}, {len(self.names)} names"
            raise ValueError(f"{N} scores do not fit {shapes}")

    @classmethod
    def named(
        cls,
        boxes: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int32],
        class_names: Sequence[str],
    ) -> Detections:
        """Return detections with the names of their labels; `class N` where `class_names` lacks one."""
        known = len(class_names)
        names = (class_names[label] if 0 <= label < known else f"class {label}" for label in labels.tolist())
        return cls(boxes, scores, labels, tuple(names))

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score_threshold: float) -> Detections:
        """Return the detections whose score is at least `score_threshold` (0..1, as float32), in the same order."""
        return self._rows(self.scores >= np.float32(check_threshold(score_threshold)))

    def of_labels(self, labels: Container[int]) -> Detections:
        """Return the detections whose label is one of `labels`, in the same order."""
        return self._rows(np.array([label in labels for label in self.labels.tolist()], bool))

    def _rows(self, kept: npt.NDArray[np.bool_]) -> Detections:
        names = tuple(name for name, is_kept in zip(self.names, kept.tolist(), strict=True) if is_kept)
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], names)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one JSON-ready dictionary a detection: `box` (x1 y1 x2 y2, pixels), `score`, `label`, `name`."""
        return [
            {"box": box, "score": score, "label": label, "name": name}
            for box, score, label, name in zip(
                self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names, strict=True
            )
        ]

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int | str] | Mapping[int, int] | Mapping[int, str]
    ) -> list[dict[str, Any]]:
        """Return COCO results: `bbox` is x, y, width, height in pixels; `category_ids[label]` is the category's id.

        Ids are those of the annotation file, numbers or text.
        Raises CodetrError for a label that `category_ids` does not hold.
        """
        known = category_ids if isinstance(category_ids, Mapping) else range(len(category_ids))
        unknown = set(self.labels.tolist()).difference(known)
        if unknown:
            raise CodetrError(
                f"label {max(unknown)} has no COCO category: category_ids holds {len(category_ids)}; "
                "give one number for every class of the detector"
            )
        corners = self.boxes.astype(np.float64)
        sized = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return [
            {"image_id": image_id, "category_id": _plain(category_ids[label]), "bbox": bbox, "score": score}
            for bbox, score, label in zip(sized.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        ]


def _plain(category_id: int | str) -> int | str:
    return category_id if isinstance(category_id, str) else int(category_id)  # NumPy's are no JSON
