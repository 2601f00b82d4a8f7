"""RT-DETRv2: ResNet-vd, hybrid encoder, query selection, decoder, top-k.

Source: RT-DETRv2 (arXiv 2407.17140), as lyuwenyu/RT-DETR `rtdetrv2_pytorch` runs it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from builder.detector import Detector
from builder.parts.boxes import top_candidates
from builder.parts.layers import FLOAT32_LAYERS
from builder.parts.position import Shapes
from builder.parts.precision import convert
from builder.parts.resnet import FrozenBatchNorm2d
from builder.rtdetrv2.backbone import PResNet
from builder.rtdetrv2.config import RTDETRv2Config
from builder.rtdetrv2.decoder import Decoder, DecoderOutput, PositionHead
from builder.rtdetrv2.encoder import HybridEncoder
from builder.rtdetrv2.layers import BatchNorm2d, ConvNorm, fold
from builder.rtdetrv2.proposals import ProposalHead, Proposals

_FLOAT32 = (*FLOAT32_LAYERS, PositionHead, BatchNorm2d, FrozenBatchNorm2d)


class Memory(NamedTuple):
    """What the decoder attends to, and where its tokens are."""

    tokens: Tensor  # [B, S, C], level by level, row by row
    shapes: Shapes  # (h, w) of each level


class RTDETRv2(Detector):
    """The whole detector, from uint8 pixels to scored boxes.

    `auxiliary` gives every decoder layer a class head of its own, which training needs and inference does not.
    """

    variant: RTDETRv2Config

    def __init__(self, variant: RTDETRv2Config, auxiliary: bool = False) -> None:
        super().__init__()
        self.variant, embed_dim = variant, variant.embed_dim
        self.backbone = PResNet(variant.backbone)
        self.encoder = HybridEncoder(variant.backbone.out_channels, variant.encoder)
        maps = len(variant.backbone.out_indices)
        widths = [variant.encoder.embed_dim] * (maps + 1) + [embed_dim] * variant.num_levels
        self.input_proj = nn.ModuleList(
            ConvNorm(widths[i], embed_dim, 1) if i < maps else ConvNorm(widths[i], embed_dim, 3, 2)
            for i in range(variant.num_levels)
        )
        self.proposals = ProposalHead(variant)
        self.query_embed = nn.Embedding(variant.num_queries, embed_dim) if variant.learned_queries else None
        self.decoder = Decoder(variant)
        self.class_head = nn.Linear(embed_dim, variant.num_classes)
        self.auxiliary_heads = nn.ModuleList(
            nn.Linear(embed_dim, variant.num_classes) for _ in range(variant.decoder_layers - 1 if auxiliary else 0)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and matrix products."""
        return self.class_head.weight.dtype

    def deploy(self) -> RTDETRv2:
        """Fold batch norms and RepVGG branches into plain convolutions and leave out what only training reads."""
        fold(self)
        self.auxiliary_heads = nn.ModuleList()
        return self

    def set_precision(self, dtype: torch.dtype) -> RTDETRv2:
        """Convert weights and products to `dtype`; norms, box heads and what embeds boxes stay float32 or wider."""
        convert(self, dtype, _FLOAT32)
        return self

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the K = `variant.max_detections` best candidates of each image, best first.

        Args:
            images: uint8 [B, H, W, 3] RGB, stretched to the engine's size.
            image_sizes: int32 [B, 2], not read: the image fills the input.

        Returns:
            Boxes float32 [B, K, 4], x1 y1 x2 y2 in 0..1 of the image, which they may leave; scores float32 [B, K];
            labels int32 [B, K].
        """
        logits, boxes = self.network(self.normalize(images), image_sizes)
        return top_candidates(logits, boxes, self.variant.max_detections)

    def normalize(self, images: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W] in 0..1 of `images` uint8 [B, H, W, 3]."""
        return images.float().permute(0, 3, 1, 2) / 255  # cast first: TensorRT moves no uint8 tensor

    def network(self, pixels: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [B, Q, num_classes] and boxes float32 [B, Q, 4], cx cy w h in 0..1, of every query.

        Args:
            pixels: [B, 3, H, W] RGB, 0..1.
            image_sizes: int [B, 2], not read.
        """
        memory = self.encode(pixels)
        return self.predict(self.decode(memory, self.proposals(*memory)), -1)

    def predict(self, decoded: DecoderOutput, layer: int) -> tuple[Tensor, Tensor]:
        """Return logits and boxes as `network` does, of decoder layer `layer`: training has a loss for each of them.

        Raises:
            RuntimeError: another layer than the last, and the network was made without `auxiliary` or is deployed.
        """
        is_last = layer in (-1, len(decoded.hidden) - 1)
        if not is_last and not self.auxiliary_heads:
            raise RuntimeError(
                f"predictions of layer {layer}, not the last, need RTDETRv2(variant, auxiliary=True), not deployed"
            )
        head = self.class_head if is_last else self.auxiliary_heads[layer]
        return head(decoded.hidden[layer]), decoded.boxes[layer]

    def encode(self, pixels: Tensor) -> Memory:
        """Return the memory of `pixels` [B, 3, H, W], 0..1; `levels.check_limits` says which sizes are possible."""
        features = self.encoder(self.backbone(pixels.to(self.dtype)))
        levels: list[Tensor] = []
        for i, project in enumerate(self.input_proj):  # further levels come from the coarsest map, one from another
            source = features[i] if i < len(features) else features[-1] if i == len(features) else levels[-1]
            levels.append(project(source))
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # [B, S, C]
        return Memory(tokens, [(level.shape[2], level.shape[3]) for level in levels])

    def decode(self, memory: Memory, proposals: Proposals) -> DecoderOutput:
        """Return what every decoder layer makes of the chosen tokens and their boxes."""
        return self.decoder(self.content(proposals), proposals.boxes, *memory)

    def content(self, proposals: Proposals) -> Tensor:
        """Return what the queries contain, [B, Q, C]: the chosen tokens, to which the decoder's losses do not reach."""
        if self.query_embed is None:
            return proposals.tokens.detach()
        return self.query_embed.weight.expand(proposals.tokens.shape[0], -1, -1)
