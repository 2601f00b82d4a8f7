"""DETR: backbone, transformer encoder, decoder of learned queries, one class and box a query.

Source: End-to-End Object Detection with Transformers (arXiv 2005.12872), as facebookresearch/detr runs it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from builder.detector import Detector
from builder.detr.config import DetrConfig
from builder.parts.boxes import cxcywh_to_xyxy
from builder.parts.layers import FLOAT32_LAYERS, MLP, BoxHead, LayerNorm, MultiHeadAttention, per_channel
from builder.parts.position import level_valid_shapes, sine_position_embedding, token_mask
from builder.parts.precision import convert
from builder.parts.resnet import FrozenBatchNorm2d, ResNet, fold_batch_norms
from serving.contract import PIXEL_MEAN, PIXEL_STD

POSITION_TEMPERATURE = 10000.0
# Added to the scores of padding tokens. In float32 their softmax is 0, as with minus infinity, and it is a number even
# where an image has no valid token.
MASKED = -1e9


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by a norm."""

    def __init__(self, variant: DetrConfig) -> None:
        super().__init__()
        embed_dim = variant.embed_dim
        self.self_attn = MultiHeadAttention(embed_dim, variant.num_heads)
        self.norm1 = LayerNorm(embed_dim)
        self.ffn = MLP(embed_dim, variant.feedforward_dim, embed_dim)
        self.norm2 = LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, position: Tensor, key_bias: Tensor) -> Tensor:
        """Return [B, S, C] for `tokens` and `position` [B, S, C]; `key_bias` is float32 [B, 1, 1, S]."""
        placed = tokens + position  # in every layer, and never in the value
        tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens, key_bias))
        return self.norm2(tokens + self.ffn(tokens))


class Encoder(nn.Module):
    """A stack of encoder layers, without a norm after them."""

    def __init__(self, variant: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(variant) for _ in range(variant.encoder_layers))

    def forward(self, tokens: Tensor, position: Tensor, key_bias: Tensor) -> Tensor:
        """Return the memory [B, S, C]."""
        for layer in self.layers:
            tokens = layer(tokens, position, key_bias)
        return tokens


class DecoderLayer(nn.Module):
    """Self-attention, attention to the memory and a feed-forward network, each followed by a norm."""

    def __init__(self, variant: DetrConfig) -> None:
        super().__init__()
        embed_dim = variant.embed_dim
        self.self_attn = MultiHeadAttention(embed_dim, variant.num_heads)
        self.norm1 = LayerNorm(embed_dim)
        self.cross_attn = MultiHeadAttention(embed_dim, variant.num_heads)
        self.norm2 = LayerNorm(embed_dim)
        self.ffn = MLP(embed_dim, variant.feedforward_dim, embed_dim)
        self.norm3 = LayerNorm(embed_dim)

    def forward(self, hidden: Tensor, queries: Tensor, keys: Tensor, memory: Tensor, key_bias: Tensor) -> Tensor:
        """Return [B, Q, C] for `hidden` and `queries` [B, Q, C]; `keys` [B, S, C] are the memory with its position."""
        placed = hidden + queries
        hidden = self.norm1(hidden + self.self_attn(placed, placed, hidden))
        hidden = self.norm2(hidden + self.cross_attn(hidden + queries, keys, memory, key_bias))
        return self.norm3(hidden + self.ffn(hidden))


class Decoder(nn.Module):
    """A stack of decoder layers, and the norm of the last one's output."""

    def __init__(self, variant: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(variant) for _ in range(variant.decoder_layers))
        self.norm = LayerNorm(variant.embed_dim)

    def forward(self, queries: Tensor, memory: Tensor, position: Tensor, key_bias: Tensor) -> Tensor:
        """Return [B, Q, C] for `queries` [B, Q, C]; what the layers refine starts as zeros."""
        hidden, keys = torch.zeros_like(queries), memory + position
        for layer in self.layers:
            hidden = layer(hidden, queries, keys, memory, key_bias)
        return self.norm(hidden)


class Detr(Detector):
    """The whole detector, from uint8 pixels to scored boxes."""

    variant: DetrConfig
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, variant: DetrConfig) -> None:
        super().__init__()
        self.variant = variant
        self.backbone = ResNet(variant.backbone)
        self.input_proj = nn.Conv2d(variant.backbone.out_channels[-1], variant.embed_dim, 1)
        self.encoder = Encoder(variant)
        self.query_embed = nn.Embedding(variant.num_queries, variant.embed_dim)
        self.decoder = Decoder(variant)
        self.class_head = nn.Linear(variant.embed_dim, variant.num_classes + 1)  # the last is no object
        self.box_head = BoxHead(variant.embed_dim)
        self.register_buffer("pixel_mean", per_channel(PIXEL_MEAN), persistent=False)
        self.register_buffer("pixel_std", per_channel(PIXEL_STD), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and matrix products."""
        return self.query_embed.weight.dtype

    def set_precision(self, dtype: torch.dtype) -> Detr:
        """Convert weights and matrix products to `dtype`; norms, box head and pixel constants stay float32 or wider."""
        mean, std = self.pixel_mean.clone(), self.pixel_std.clone()
        convert(self, dtype, (*FLOAT32_LAYERS, FrozenBatchNorm2d))
        self.pixel_mean, self.pixel_std = mean, std
        return self

    def deploy(self) -> Detr:
        """Fold the frozen batch norms into their convolutions, in the type of the weights; return the detector."""
        fold_batch_norms(self.backbone)
        return self

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the K = `variant.max_detections` best queries of each image, one class each, best first.

        Args:
            images: uint8 [B, H, W, 3] RGB.
            image_sizes: int32 [B, 2], valid (h, w) in pixels; what lies outside does not matter.

        Returns:
            Boxes float32 [B, K, 4], x1 y1 x2 y2 in 0..1 of the valid image and beyond where an object is thought to
            reach outside; scores float32 [B, K]; labels int32 [B, K].
        """
        boxes, scores, labels = detections(*self.network(self.normalize(images, image_sizes), image_sizes))
        scores, best = scores.topk(self.variant.max_detections, dim=1)
        return boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4)), scores, labels.gather(1, best).int()

    def network(self, pixels: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [B, Q, num_classes + 1], the last of no object, and boxes of every query.

        Args:
            pixels: [B, 3, H, W] RGB, normalised, zero outside the valid size.
            image_sizes: int [B, 2], valid (h, w) in pixels.

        Returns:
            Logits in the detector's precision; boxes float32 [B, Q, 4], cx cy w h in 0..1 of the valid image.
        """
        features = self.input_proj(self.backbone(pixels.to(self.dtype))[-1])  # [B, C, h, w]
        shape = (features.shape[2], features.shape[3])
        valid_shapes = level_valid_shapes(image_sizes, (pixels.shape[2], pixels.shape[3]), [shape])  # [B, 1, 2]
        position = self._position(shape, valid_shapes[:, 0])
        key_bias = torch.where(token_mask(valid_shapes, [shape]), 0.0, MASKED)[:, None, None]  # [B, 1, 1, S]
        memory = self.encoder(features.flatten(2).transpose(1, 2), position, key_bias)
        queries = self.query_embed.weight.expand(pixels.shape[0], -1, -1)
        hidden = self.decoder(queries, memory, position, key_bias)
        return self.class_head(hidden), self.box_head(hidden).sigmoid()

    def _position(self, shape: tuple[int, int], valid_shape: Tensor) -> Tensor:
        """Return the position embedding of every token, [B, h*w, C], made in float32 whatever the precision."""
        embedding = sine_position_embedding(shape, valid_shape, self.variant.embed_dim, POSITION_TEMPERATURE)
        return embedding.to(self.dtype)

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W], normalised, and zero outside `image_sizes`."""
        shape = (images.shape[1], images.shape[2])
        inside = token_mask(image_sizes.unsqueeze(1), [shape]).unflatten(1, shape).unsqueeze(1)  # [B, 1, H, W]
        # TensorRT moves no uint8 tensor: it is cast before it is permuted.
        return (images.float().permute(0, 3, 1, 2) - self.pixel_mean) / self.pixel_std * inside


def detections(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each query's box float32 [B, Q, 4] x1 y1 x2 y2, score float32 [B, Q] and label int64 [B, Q].

    No object takes part in the softmax, and is left out only then: a query always has the best class of the others.
    """
    scores, labels = logits.to(boxes.dtype).softmax(-1)[..., :-1].max(-1)
    return cxcywh_to_xyxy(boxes), scores, labels
