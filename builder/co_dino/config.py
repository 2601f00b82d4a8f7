"""What decides a Co-DINO network: backbone, transformer, classes, and how its training padded images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from builder.family import USUAL_SIZE, DetectorConfig, VariantError
from builder.parts.resnet_config import ResNetConfig

__all__ = ["LSJ_PADDING_VALUE", "USUAL_SIZE", "ResNetConfig", "SwinConfig", "Variant", "VariantError"]

# Padding of the Large-Scale-Jitter configs (`Pad(pad_val=114)`), in 0..255 before normalisation.
LSJ_PADDING_VALUE = 114.0


@dataclass(frozen=True)
class SwinConfig:
    """Swin Transformer settings, by the names of mmdetection's `SwinTransformer`."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4
    patch_size: int = 4
    qkv_bias: bool = True
    out_indices: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def label(self) -> str:
        """A short name for tables; Swin's family name follows from its width."""
        return {96: "Swin-T/S", 128: "Swin-B", 192: "Swin-L"}.get(self.embed_dim, f"Swin ({self.embed_dim})")

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each output map."""
        return tuple(self.embed_dim * 2**i for i in self.out_indices)


@dataclass(frozen=True)
class Variant(DetectorConfig):
    """Everything that decides a Co-DINO network's shape and arithmetic, and where its weights come from."""

    family: ClassVar[str] = "co_dino"

    backbone: SwinConfig | ResNetConfig
    augmentation: Literal["DETR", "LSJ"] = "DETR"
    num_queries: int = 900
    embed_dim: int = 256
    num_heads: int = 8  # of deformable attention, in the encoder and in the decoder
    num_self_heads: int = 8  # of the decoder's self-attention
    num_levels: int = 5
    num_groups: int = 32  # of the channel mapper's group norms
    num_points: int = 4
    feedforward_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    position_temperature: float = 20
    epochs: int | None = None
    lsj_padding: float | None = LSJ_PADDING_VALUE  # 0..255, fills the padding of LSJ; None: zeros after normalisation

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_queries * self.num_classes < self.max_detections:
            raise VariantError(
                f"variant {self.name!r}: {self.num_queries} queries of {self.num_classes} classes give fewer than "
                f"max_detections={self.max_detections} candidates; lower max_detections"
            )
        for name in ("num_heads", "num_self_heads", "num_groups"):
            if self.embed_dim % getattr(self, name):
                raise VariantError(
                    f"variant {self.name!r}: embed_dim={self.embed_dim} is no multiple of {name}={getattr(self, name)}"
                )
        if self.embed_dim % 4:
            raise VariantError(f"variant {self.name!r}: embed_dim={self.embed_dim} is no multiple of 4")
        if self.num_levels < len(self.backbone.out_channels):
            raise VariantError(
                f"variant {self.name!r}: num_levels={self.num_levels} is fewer than the backbone's "
                f"{len(self.backbone.out_channels)} maps"
            )

    @property
    def uses_operator(self) -> bool:
        """Its graph has deformable attention as our operator."""
        return True

    @property
    def summary(self) -> str:
        """Backbone and augmentation, for tables."""
        return self.backbone.label if self.augmentation == "DETR" else f"{self.backbone.label}, {self.augmentation}"

    @property
    def masks_padding(self) -> bool:
        """Whether attention ignores the padding; models trained with LSJ see it as part of the image."""
        return self.augmentation == "DETR"

    @property
    def padding_value(self) -> float | None:
        """Pixel value 0..255 that fills the padding before normalisation, or None for zeros after it."""
        return self.lsj_padding if self.augmentation == "LSJ" else None

    def derive(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        num_queries: int | None = None,
        max_detections: int | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> Variant:
        """Return this architecture with another class or query count, for a fine-tuned checkpoint."""
        if num_classes is None:
            num_classes = self.num_classes if class_names is None else len(class_names)
        num_queries = self.num_queries if num_queries is None else num_queries
        if max_detections is None:
            max_detections = min(self.max_detections, num_queries * num_classes)
        # Both counts at once: the checks of a variant look at their product.
        return replace(
            self,
            name=name,
            num_classes=num_classes,
            num_queries=num_queries,
            max_detections=max_detections,
            class_names=class_names,
            checkpoint=None,
            box_ap=None,
            epochs=None,
        )
