"""What decides a DETR network, and the published models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from builder.family import NO_CLASS, DetectorConfig, VariantError
from builder.parts.resnet_config import ResNetConfig
from serving.contract import coco_class_names
from serving.rules import Pixels, Rules, Suppression

if TYPE_CHECKING:
    from typing_extensions import Self

# COCO's category ids that no category has; DETR's labels are the ids, so these are labels without a class.
_UNUSED_IDS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def _names_by_category_id() -> tuple[str, ...]:
    names = iter(coco_class_names())
    return tuple(NO_CLASS if id_ in _UNUSED_IDS else next(names) for id_ in range(91))


COCO_NAMES = _names_by_category_id()  # of labels 0 to 90
# Source: facebookresearch/detr `datasets/coco.py`, the transform of evaluation, and `models/detr.py`, which answers
# every query.
RULES = Rules(
    Pixels("fit", antialias=True, shortest_edge=800, longest_edge=1333),
    Suppression("none", score_threshold=0.0, clip=False),
)
# (height, width) in pixels that hold every image whose shorter side is brought to 800 and whose longer to 1333 or a
# little more, landscape or portrait. A landscape image uses 1050 of its 1764 tokens: (800, 1344) is the cheaper choice
# where there are no portraits.
EVERY_IMAGE = (1344, 1344)
# (height, width) that a landscape image of 4:3, COCO's most frequent shape, fills; for the models that need it filled.
FILLED = (800, 1066)


@dataclass(frozen=True)
class DetrConfig(DetectorConfig):
    """Everything that decides a DETR network's shape and arithmetic, and where its weights come from.

    `num_classes` is without the no-object class: the network has one logit more.
    """

    family: ClassVar[str] = "detr"

    backbone: ResNetConfig = ResNetConfig(out_indices=(3,))  # noqa: RUF009  # frozen
    num_queries: int = 100
    embed_dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_classes: int = field(default=len(COCO_NAMES), kw_only=True)
    max_detections: int = field(default=100, kw_only=True)
    input_size: tuple[int, int] = field(default=EVERY_IMAGE, kw_only=True)
    rules: Rules = field(default=RULES, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_queries < self.max_detections:
            raise VariantError(
                f"variant {self.name!r}: {self.num_queries} queries give one candidate each, fewer than "
                f"max_detections={self.max_detections}; lower max_detections"
            )
        if self.embed_dim % self.num_heads or self.embed_dim % 4:
            raise VariantError(
                f"variant {self.name!r}: embed_dim={self.embed_dim} is no multiple of 4 and of "
                f"num_heads={self.num_heads}"
            )

    @property
    def uses_operator(self) -> bool:
        """Never: its attention is an ordinary one."""
        return False

    @property
    def summary(self) -> str:
        """The backbone, for tables."""
        return self.backbone.label

    def with_class_names(self) -> Self:
        """Return the configuration with names for all classes: its own, COCO's for 91 category ids, else as others."""
        if self.class_names is None and self.num_classes == len(COCO_NAMES):
            return replace(self, class_names=COCO_NAMES)
        return super().with_class_names()


def _preset(depth: int, dilated: bool, box_ap: float, checkpoint: str) -> DetrConfig:
    backbone = ResNetConfig(depth, out_indices=(3,), dilated=dilated)
    return DetrConfig(
        f"detr_r{depth}_dc5" if dilated else f"detr_r{depth}",
        backbone,
        input_size=FILLED if dilated else EVERY_IMAGE,
        class_names=COCO_NAMES,
        checkpoint=checkpoint,
        box_ap=box_ap,
    )


# Source: the model table of facebookresearch/detr `README.md`.
PRESETS: dict[str, DetrConfig] = {
    preset.name: preset
    for preset in (
        _preset(50, False, 42.0, "detr-r50-e632da11.pth"),
        _preset(50, True, 43.3, "detr-r50-dc5-f0fb7ef5.pth"),
        _preset(101, False, 43.5, "detr-r101-2c7b67e5.pth"),
        _preset(101, True, 44.9, "detr-r101-dc5-a2e86def.pth"),
    )
}
