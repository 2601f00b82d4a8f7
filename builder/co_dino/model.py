"""Co-DINO: backbone, channel mapper, deformable encoder, two-stage proposals, DINO decoder, top-k.

Source: Co-DETR (arXiv 2211.12860) at inference, as mmdetection's `projects/CO-DETR` runs it with
`eval_module="detr"`. The auxiliary heads that give Co-DETR its name exist in training only.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from builder.co_dino.config import SwinConfig, Variant
from builder.co_dino.decoder import Decoder, DecoderOutput
from builder.co_dino.encoder import Encoder
from builder.co_dino.joined_encoder import joined_encoder
from builder.co_dino.neck import ChannelMapper
from builder.co_dino.proposals import ProposalHead, Proposals
from builder.co_dino.swin import SwinTransformer
from builder.detector import Detector
from builder.operators.post_attention_layer import Works
from builder.parts.boxes import inverse_sigmoid, top_candidates
from builder.parts.layers import FLOAT32_LAYERS, per_channel
from builder.parts.position import Shapes, level_valid_shapes, looked_up_positions, sine_position_embedding
from builder.parts.precision import convert
from builder.parts.resnet import FrozenBatchNorm2d, ResNet, fold_batch_norms
from serving.contract import PIXEL_MEAN, PIXEL_STD

LEVELS_LOOKED_UP = 5  # with fewer `looked_up_positions` saves nothing


class Memory(NamedTuple):
    """The encoder's output and where its tokens are."""

    tokens: Tensor  # [B, S, C]
    shapes: Shapes  # (h, w) of each level
    valid_shapes: Tensor  # int32 [B, L, 2], the valid (h, w) of each level


class CoDINO(Detector):
    """The whole detector, from uint8 pixels to scored boxes."""

    variant: Variant
    pixel_mean: Tensor
    pixel_std: Tensor
    looks_up_positions = False  # or makes the same for each token

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        backbone = variant.backbone
        self.backbone = SwinTransformer(backbone) if isinstance(backbone, SwinConfig) else ResNet(backbone)
        self.neck = ChannelMapper(backbone.out_channels, variant.embed_dim, variant.num_levels, variant.num_groups)
        self.level_embeds = nn.Parameter(torch.zeros(variant.num_levels, variant.embed_dim))
        self.encoder = Encoder(variant)
        self.proposals = ProposalHead(variant)
        self.query_embed = nn.Embedding(variant.num_queries, variant.embed_dim)
        self.decoder = Decoder(variant)
        self.class_head = nn.Linear(variant.embed_dim, variant.num_classes)
        self.register_buffer("pixel_mean", per_channel(PIXEL_MEAN), persistent=False)
        self.register_buffer("pixel_std", per_channel(PIXEL_STD), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and matrix products."""
        return self.level_embeds.dtype

    def set_precision(self, dtype: torch.dtype) -> CoDINO:
        """Convert weights and matrix products to `dtype`; norms, box heads and pixel constants stay float32."""
        mean, std = self.pixel_mean.clone(), self.pixel_std.clone()
        convert(self, dtype, (*FLOAT32_LAYERS, FrozenBatchNorm2d))
        self.pixel_mean, self.pixel_std = mean, std
        return self

    def deploy(self) -> CoDINO:
        """Fold a ResNet's frozen batch norms into its convolutions, in place; a Swin Transformer has none."""
        if isinstance(self.backbone, ResNet):
            fold_batch_norms(self.backbone)
        return self

    def joined(self, works: Works) -> CoDINO:
        """Join what follows the encoder's attention, as `Detector.joined` says, and look positions up."""
        encoder = joined_encoder(self.encoder, works)
        if encoder is self.encoder:
            return self
        twin = copy.copy(self)
        twin._modules = {**self._modules, "encoder": encoder}
        twin.looks_up_positions = self.variant.num_levels >= LEVELS_LOOKED_UP
        return twin

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best candidates before any suppression, as `Detector.forward` says; boxes end with the image."""
        pixels = self.normalize(images, image_sizes)
        logits, boxes = self.network(pixels, image_sizes)
        return self._top_candidates(logits, boxes, (images.shape[1], images.shape[2]), image_sizes)

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W], normalised, with everything outside `image_sizes` set to the padding."""
        # TensorRT moves no uint8 tensor: it is cast before it is permuted.
        pixels = (images.float().permute(0, 3, 1, 2) - self.pixel_mean) / self.pixel_std
        rows = torch.arange(images.shape[1], device=images.device) < image_sizes[:, :1]
        columns = torch.arange(images.shape[2], device=images.device) < image_sizes[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)  # [B, 1, H, W]
        if self.variant.padding_value is None:
            return pixels * inside
        return torch.where(inside, pixels, (self.variant.padding_value - self.pixel_mean) / self.pixel_std)

    def network(self, pixels: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [B, Q, num_classes] and boxes float32 [B, Q, 4] of every query.

        Args:
            pixels: [B, 3, H, W] RGB, normalised, zero (a variant trained with LSJ: its padding colour) outside the
                valid size.
            image_sizes: int [B, 2], valid (h, w) in pixels.

        Returns:
            Logits in the detector's precision, and boxes cx cy w h in 0..1 of the image as the network sees it: its
            valid part, or for a variant trained with LSJ all of it.
        """
        memory = self.encode(pixels, image_sizes)
        return self.decode(memory, self.proposals(*memory).boxes)

    def encode(self, pixels: Tensor, image_sizes: Tensor) -> Memory:
        """Return the memory of normalised `pixels` [B, 3, H, W] with valid (h, w) `image_sizes` int [B, 2]."""
        input_shape = (pixels.shape[2], pixels.shape[3])
        levels = self.neck(self.backbone(pixels.to(self.dtype)))  # L x [B, C, h, w]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        if not self.variant.masks_padding:
            image_sizes = torch.ones_like(image_sizes) * image_sizes.new_tensor(input_shape)
        valid_shapes = level_valid_shapes(image_sizes, input_shape, shapes)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # [B, S, C]
        position = self._position(shapes, valid_shapes)
        return Memory(self.encoder(tokens, position, shapes, valid_shapes), shapes, valid_shapes)

    def decode(self, memory: Memory, references: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and boxes as `network` does, decoded from `references` float32 [B, Q, 4], cx cy w h in 0..1."""
        queries = self.query_embed.weight.expand(references.shape[0], -1, -1)
        return self.predict(self.decoder(queries, references, *memory), -1)

    def content(self, proposals: Proposals) -> Tensor:
        """Return what the queries contain, [B, Q, C]: learned, whatever was proposed."""
        return self.query_embed.weight.expand(proposals.boxes.shape[0], -1, -1)

    def predict(self, decoded: DecoderOutput, layer: int) -> tuple[Tensor, Tensor]:
        """Return logits and boxes as `network` does, of decoder layer `layer`: training has a loss for each of them."""
        hidden = self.decoder.norm(decoded.hidden[layer])
        deltas = self.decoder.box_heads[layer](hidden)
        return self.class_head(hidden), torch.sigmoid(deltas + inverse_sigmoid(decoded.references[layer]))

    def _position(self, shapes: Shapes, valid_shapes: Tensor) -> Tensor:
        """Return the position and level embedding of every token, [B, S, C]."""
        channels, temperature = self.variant.embed_dim, self.variant.position_temperature
        if self.looks_up_positions:
            return looked_up_positions(shapes, valid_shapes, self.level_embeds, temperature).to(self.dtype)
        embeddings = [
            sine_position_embedding(shape, valid_shapes[:, i], channels, temperature) + self.level_embeds[i].float()
            for i, shape in enumerate(shapes)
        ]
        return torch.cat(embeddings, dim=1).to(self.dtype)

    def _top_candidates(
        self, logits: Tensor, boxes: Tensor, input_shape: tuple[int, int], image_sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        corners, scores, labels = top_candidates(logits, boxes, self.variant.max_detections)
        if not self.variant.masks_padding:  # boxes of the padded image, in units of its valid part
            height, width = input_shape
            sizes = image_sizes.flip(-1).repeat(1, 2).unsqueeze(1)  # [B, 1, 4], w h w h
            corners = corners * corners.new_tensor([width, height, width, height]) / sizes
        return corners.clamp(0, 1), scores, labels
