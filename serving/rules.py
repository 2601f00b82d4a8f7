"""Rules that travel with an engine from its variant to the server; data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.contract import NMS_IOU_THRESHOLD, SCORE_THRESHOLD, SOFT_NMS_MIN_SCORE
from serving.errors import CodetrError

SuppressionKind = Literal["soft", "hard", "none"]
_KINDS: tuple[SuppressionKind, ...] = ("soft", "hard", "none")


@dataclass(frozen=True)
class Suppression:
    """Which candidates become detections; the defaults are mmdetection's `test_cfg[0]` of Co-DINO.

    Raises:
        CodetrError: a threshold is outside 0..1 or the kind is unknown; names the parameter of `config.pbtxt`.
    """

    kind: SuppressionKind = "soft"  # linear soft NMS, hard NMS or none; the parameter `nms`
    iou_threshold: float = NMS_IOU_THRESHOLD
    min_score: float = SOFT_NMS_MIN_SCORE  # soft NMS drops what it has brought below this
    score_threshold: float = SCORE_THRESHOLD  # keep scores above it, before NMS; 0 keeps all
    class_agnostic: bool = False  # let boxes of different classes suppress each other

    def __post_init__(self) -> None:
        for key in ("score_threshold", "iou_threshold", "min_score"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise CodetrError(f"{key}: expected a number in 0..1, got {value}")
        if self.kind not in _KINDS:
            raise CodetrError(f"nms: expected one of {', '.join(_KINDS)}, got {self.kind!r}")


# mmdetection's Co-DINO configs.
DEFAULT_SUPPRESSION = Suppression()
