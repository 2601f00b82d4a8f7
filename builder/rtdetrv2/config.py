"""What decides an RT-DETRv2 network; apart from the network, because presets need no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from builder.family import DetectorConfig, VariantError
from serving.rules import Pixels, Rules, Suppression

Activation = Literal["relu", "silu", "gelu", "leaky_relu"]
Selection = Literal["default", "one2many", "agnostic"]
Sampling = Literal["default", "discrete"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_EXPANSION = 4  # output channels of a bottleneck over its width

# Pictures are stretched as Pillow does it; every candidate is a detection, also beyond the picture (upstream's
# evaluation transforms, and `RTDETRPostProcessor`).
RULES = Rules(Pixels(resize="stretch", antialias=True), Suppression("none", score_threshold=0.0, clip=False))


@dataclass(frozen=True)
class PResNetConfig:
    """ResNet-vd settings: a stem of three convolutions, shortcuts that pool before they project."""

    depth: Literal[18, 34, 50, 101] = 50  # from 50 on its blocks are bottlenecks
    blocks: tuple[int, ...] = BLOCKS[50]
    stem_channels: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    out_indices: tuple[int, ...] = (1, 2, 3)
    activation: Activation = "relu"
    frozen_norm: bool = True  # whether training leaves the batch norms alone

    @property
    def label(self) -> str:
        """A short name for tables."""
        return f"R{self.depth}vd"

    @property
    def has_bottlenecks(self) -> bool:
        """Whether a block is a bottleneck of three convolutions, else it has two of 3x3."""
        return self.depth >= 50

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Output channels of every stage."""
        return tuple(width * (BOTTLENECK_EXPANSION if self.has_bottlenecks else 1) for width in self.widths)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each output map."""
        return tuple(self.stage_channels[i] for i in self.out_indices)


@dataclass(frozen=True)
class HybridEncoderConfig:
    """Settings of the encoder: attention within single maps, convolutions across them."""

    embed_dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 1024
    num_layers: int = 1  # of attention on each attended map
    attended: tuple[int, ...] = (2,)  # indices of backbone maps that attention sees
    attention_activation: Activation = "gelu"
    temperature: float = 10000.0  # of the position embedding
    expansion: float = 1.0  # inner channels of a fusion block over `embed_dim`
    num_rep_blocks: int = 3  # RepVGG blocks of a fusion block
    activation: Activation = "silu"

    @property
    def fusion_dim(self) -> int:
        """Inner channels of a fusion block."""
        return int(self.embed_dim * self.expansion)


@dataclass(frozen=True)
class RTDETRv2Config(DetectorConfig):
    """Everything that decides an RT-DETRv2 network's shape and arithmetic, and where its weights come from."""

    family: ClassVar[str] = "rtdetrv2"

    backbone: PResNetConfig = PResNetConfig()
    encoder: HybridEncoderConfig = HybridEncoderConfig()
    embed_dim: int = 256  # of the decoder
    num_heads: int = 8
    num_levels: int = 3
    num_points: tuple[int, ...] = (4, 4, 4)  # sampled on each level
    feedforward_dim: int = 1024
    decoder_layers: int = 6  # that the network runs
    trained_layers: int | None = None  # in the checkpoint, if more than it runs
    activation: Activation = "relu"
    num_queries: int = 300
    sampling: Sampling = "default"  # bilinear, or the token at the nearest corner
    selection: Selection = "default"  # by the best class; of (token, class) pairs; by one score for all classes
    learned_queries: bool = False  # content of the queries: learned, else of the chosen tokens
    input_size: tuple[int, int] = field(default=(640, 640), kw_only=True)
    rules: Rules = field(default=RULES, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_queries * self.num_classes < self.max_detections:
            raise VariantError(
                f"variant {self.name!r}: {self.num_queries} queries of {self.num_classes} classes give fewer than "
                f"max_detections={self.max_detections} candidates; lower max_detections"
            )
        for where, width, heads in (
            ("", self.embed_dim, self.num_heads),
            ("encoder.", self.encoder.embed_dim, self.encoder.num_heads),
        ):
            if width % heads:
                raise VariantError(
                    f"variant {self.name!r}: {where}embed_dim={width} is no multiple of {where}num_heads={heads}"
                )
        if self.encoder.embed_dim % 4:
            raise VariantError(
                f"variant {self.name!r}: encoder.embed_dim={self.encoder.embed_dim} is no multiple of 4, as its "
                "position embedding needs"
            )
        maps = len(self.backbone.out_indices)
        if self.num_levels < maps or len(self.num_points) != self.num_levels:
            raise VariantError(
                f"variant {self.name!r}: num_levels={self.num_levels} and num_points={self.num_points}; expected at "
                f"least {maps} levels, as the backbone has maps, and a number of points for each"
            )
        if any(not 0 <= i < maps for i in self.encoder.attended):
            raise VariantError(
                f"variant {self.name!r}: encoder.attended={self.encoder.attended}; expected indices of {maps} maps"
            )

    @property
    def uses_operator(self) -> bool:
        """Whether its graph has deformable attention as our operator; discrete sampling is a gather."""
        return self.sampling == "default"

    @property
    def summary(self) -> str:
        """Backbone and sampling, for tables."""
        return self.backbone.label if self.sampling == "default" else f"{self.backbone.label}, {self.sampling}"

    def derive(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        max_detections: int | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> RTDETRv2Config:
        """Return this architecture with other classes, for a fine-tuned checkpoint."""
        if num_classes is None:
            num_classes = self.num_classes if class_names is None else len(class_names)
        if max_detections is None:
            max_detections = min(self.max_detections, self.num_queries * num_classes)
        return super().derive(name, num_classes=num_classes, max_detections=max_detections, class_names=class_names)
