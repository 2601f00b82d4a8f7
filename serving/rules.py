"""Rules that travel with an engine from its variant to the server; data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serving.contract import NMS_IOU_THRESHOLD, SCORE_THRESHOLD, SOFT_NMS_MIN_SCORE
from serving.errors import CodetrError

Resize = Literal["fit", "stretch"]
_RESIZES: tuple[Resize, ...] = ("fit", "stretch")
SuppressionKind = Literal["soft", "hard", "none"]
_KINDS: tuple[SuppressionKind, ...] = ("soft", "hard", "none")


@dataclass(frozen=True)
class Pixels:
    """How an upright image becomes the engine's input; the defaults are mmdetection's, which Co-DINO has.

    What an image does not fill is 0 here and of no meaning: a graph sets it itself, from the valid size.

    Raises:
        CodetrError: an impossible value; names the parameter of `config.pbtxt`.
    """

    # fit: keep the ratio, into the top left corner; stretch: fill the input
    resize: Resize = "fit"
    # Bilinear either way. True: Pillow's, whose filter widens as an image shrinks; False: OpenCV's, which skips pixels.
    antialias: bool = False
    # DETR's rule in pixels, before an image is fitted: the shorter side to `shortest_edge`, the longer side to
    # `longest_edge` at most. 0: an image is as large as the input lets it be.
    shortest_edge: int = 0
    longest_edge: int = 0

    def __post_init__(self) -> None:
        if self.resize not in _RESIZES:
            raise CodetrError(f"resize: expected one of {', '.join(_RESIZES)}, got {self.resize!r}")
        edges = (self.shortest_edge, self.longest_edge)
        if min(edges) < 0 or (0 in edges and edges != (0, 0)):
            raise CodetrError(f"shortest_edge, longest_edge: expected both above 0 or both 0, got {edges}")
        if self.resize == "stretch" and edges != (0, 0):
            raise CodetrError(f"shortest_edge, longest_edge: expected 0 where resize is stretch, got {edges}")


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
    clip: bool = True  # cut boxes at the image's border

    def __post_init__(self) -> None:
        for key in ("score_threshold", "iou_threshold", "min_score"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise CodetrError(f"{key}: expected a number in 0..1, got {value}")
        if self.kind not in _KINDS:
            raise CodetrError(f"nms: expected one of {', '.join(_KINDS)}, got {self.kind!r}")


@dataclass(frozen=True)
class Rules:
    """How images go into an engine and candidates come out of it; the defaults are mmdetection's Co-DINO configs."""

    pixels: Pixels = field(default_factory=Pixels)
    suppression: Suppression = field(default_factory=Suppression)

    @classmethod
    def restore(cls, network: Mapping[str, Any]) -> Rules:
        """Return the rules of the network in a manifest; older ones have a suppression alone, or nothing."""
        rules = network.get("rules", {"suppression": network.get("suppression", {})})
        return cls(Pixels(**rules.get("pixels", {})), Suppression(**rules["suppression"]))


DEFAULT_RULES = Rules()
