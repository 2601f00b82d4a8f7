"""The deformable encoder for GPUs on which all that follows a layer's attention is one operator.

What it computes is `Encoder`'s; where a layer ends the next one's first products are made.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from builder.co_dino.deformable import MultiScaleDeformableAttention, Projected, attend
from builder.co_dino.encoder import Encoder, EncoderLayer, encoder_reference_points
from builder.operators.linear_e4m3 import E4M3
from builder.operators.post_attention import post_attention, post_attention_followed
from builder.operators.post_attention_layer import TYPES, Following, Layer, Norm, Product, Scales, Works, kind_of, pack
from builder.parts.layers import LayerNorm
from builder.parts.position import Shapes


class Projections(nn.Module):
    """The products with which an encoder layer begins."""

    def __init__(self, attention: MultiScaleDeformableAttention) -> None:
        super().__init__()
        self.value_proj = attention.value_proj
        self.sampling_offsets = attention.sampling_offsets
        self.attention_weights = attention.attention_weights

    def forward(self, tokens: Tensor, position: Tensor) -> Projected:
        """Return what attention reads of `tokens` and `position` [B, S, C]."""
        query = tokens + position
        return Projected(self.value_proj(tokens), self.sampling_offsets(query), self.attention_weights(query))


class PlainEnd(nn.Module):
    """What follows the attention of a layer that the operator cannot do, and the next layer's projections."""

    def __init__(self, layer: EncoderLayer, following: EncoderLayer | None) -> None:
        super().__init__()
        self.output_proj, self.norm1 = layer.self_attn.output_proj, layer.norm1
        self.ffn, self.norm2 = layer.ffn, layer.norm2
        self.following = None if following is None else Projections(following.self_attn)

    def forward(self, attended: Tensor, tokens: Tensor, position: Tensor) -> tuple[Tensor, Projected | None]:
        """Return the tokens that leave the layer, and what the next one's attention reads, of [B, S, C] each."""
        tokens = self.norm1(tokens + self.output_proj(attended))
        tokens = self.norm2(tokens + self.ffn(tokens))
        return tokens, None if self.following is None else self.following(tokens, position)


class JoinedEnd(nn.Module):
    """The same as one operator."""

    weights: Tensor
    vectors: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.kind = kind_of(layer)
        weights, vectors = pack(layer)
        self.register_buffer("weights", weights)
        self.register_buffer("vectors", vectors)

    def forward(self, attended: Tensor, tokens: Tensor, position: Tensor) -> tuple[Tensor, Projected | None]:
        """Return what `PlainEnd` returns."""
        _, _, hidden, e4m3, offsets, logits = self.kind
        shape, packed = tokens.shape[:-1], (self.weights, self.vectors, hidden, e4m3)
        attended, tokens, position = (each.flatten(0, -2) for each in (attended, tokens, position))  # [B*S, C]
        if not offsets:
            return post_attention(attended, tokens, *packed).view(*shape, -1), None
        found = post_attention_followed(attended, tokens, position, *packed, offsets, logits)
        tokens, *projected = (each.view(*shape, -1) for each in found)
        return tokens, Projected(*projected)


class JoinedEncoder(nn.Module):
    """An encoder whose layers, or some of them, end in one operator."""

    def __init__(self, attention: MultiScaleDeformableAttention, ends: list[PlainEnd | JoinedEnd]) -> None:
        """Begin with the projections of `attention`, the first layer's; all layers have samples alike."""
        super().__init__()
        self.samples = attention.samples
        self.projections = Projections(attention)
        self.layers = nn.ModuleList(ends)

    def forward(self, tokens: Tensor, position: Tensor, shapes: Shapes, valid_shapes: Tensor) -> Tensor:
        """Return the memory [B, S, C] as `Encoder` does."""
        reference_points = encoder_reference_points(shapes, valid_shapes)
        projected = self.projections(tokens, position)
        for layer in self.layers:
            attended = attend(projected, self.samples, reference_points, shapes, valid_shapes)
            tokens, projected = layer(attended, tokens, position)
        return tokens


def joined_encoder(encoder: Encoder, works: Works) -> Encoder | JoinedEncoder:
    """Return what computes an encoder with all that follows a layer's attention as one operator.

    Args:
        encoder: in half precision; both products of a layer's feed-forward network, or neither, may be E4M3's.
        works: tells whether the operator can do a kind of layer; others stay as they are.

    Returns:
        An encoder that shares the modules of those others with `encoder`; `encoder` itself if there is no layer else.
    """
    ends: list[PlainEnd | JoinedEnd] = []
    layers: list[Any] = list(encoder.layers)
    for layer, following in zip_longest(layers, layers[1:]):
        described = _described(layer, following)
        joined = described is not None and works(kind_of(described))
        ends.append(JoinedEnd(described) if described and joined else PlainEnd(layer, following))
    if not any(isinstance(end, JoinedEnd) for end in ends):
        return encoder
    return JoinedEncoder(layers[0].self_attn, ends)


def _described(layer: EncoderLayer, following: EncoderLayer | None) -> Layer | None:
    """Return a layer as the operator knows it; None where it has what that does not."""
    first, _, second = layer.ffn
    whole = [layer.self_attn.output_proj]
    if following is not None:
        whole += _projections(following.self_attn)
    plain = all(type(each) is nn.Linear and each.weight.dtype in TYPES for each in whole)
    quantised = [each.weight.dtype == E4M3 for each in (first, second)]
    if not plain or any(quantised) != all(quantised):
        return None
    return Layer(
        _product(layer.self_attn.output_proj),
        _norm(layer.norm1),
        _product(first),
        _product(second),
        _norm(layer.norm2),
        _scales(first, second) if all(quantised) else None,
        None if following is None else Following(*map(_product, _projections(following.self_attn))),
    )


def _projections(attention: MultiScaleDeformableAttention) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return attention.value_proj, attention.sampling_offsets, attention.attention_weights


def _product(layer: Any) -> Product:
    return Product(layer.weight.detach(), layer.bias.detach())


def _norm(layer: LayerNorm) -> Norm:
    return Norm(layer.weight.detach(), layer.bias.detach(), layer.eps)


def _scales(first: Any, second: Any) -> Scales:
    """Return the scales of two layers that have those of input and weights, as `builder.quantise` gives them."""
    scales = [
        each for layer in (first, second) for each in (layer.input_factor, layer.input_scale * layer.weight_scale)
    ]
    return Scales(*scales)
