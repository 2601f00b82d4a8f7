"""What no input size or variant of a two-stage transformer can have: checked before anything is made."""

from __future__ import annotations

from typing import Protocol

from builder.family import VariantError
from builder.operators.interface import CHANNEL_MULTIPLE, MAX_LEVELS

# K of TensorRT's TopK layer, https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/TopK.html
TENSORRT_MAX_TOPK = 3840


class Transformer(Protocol):
    """What the limits depend on."""

    @property
    def name(self) -> str:
        """Of the variant."""

    @property
    def uses_operator(self) -> bool:
        """Whether its graph has deformable attention as our operator."""

    @property
    def num_queries(self) -> int:
        """Chosen from the encoder's tokens."""

    @property
    def max_detections(self) -> int:
        """Candidates returned."""

    @property
    def num_levels(self) -> int:
        """Of deformable attention."""

    @property
    def embed_dim(self) -> int:
        """Channels of deformable attention."""

    @property
    def num_heads(self) -> int:
        """Of deformable attention."""


def check_transformer(variant: Transformer, tokens: int, height: int, width: int, tensorrt: bool) -> None:
    """Check that a variant's network can run on `tokens` encoder tokens of a height x width input, and in TensorRT.

    Raises:
        VariantError: it cannot; names the setting, its value, what is possible and what to do.
    """
    if tokens < variant.num_queries:
        raise VariantError(
            f"height={height} and width={width} give variant {variant.name!r} {tokens} encoder tokens, of which it "
            f"takes num_queries={variant.num_queries}; give a larger height or width, or derive a variant of at "
            f"most {tokens} queries"
        )
    if variant.uses_operator:
        _check_operator(variant)
    for name in ("num_queries", "max_detections"):
        if tensorrt and getattr(variant, name) > TENSORRT_MAX_TOPK:
            raise VariantError(
                f"variant {variant.name!r}: {name}={getattr(variant, name)} is more than the {TENSORRT_MAX_TOPK} that "
                "TensorRT's TopK can have; derive a variant with fewer, or use the onnx or torch engine"
            )


def _check_operator(variant: Transformer) -> None:
    if variant.num_levels > MAX_LEVELS:
        raise VariantError(
            f"variant {variant.name!r}: num_levels={variant.num_levels} is more than the {MAX_LEVELS} that deformable "
            "attention can have; use fewer levels"
        )
    if (channels := variant.embed_dim // variant.num_heads) % CHANNEL_MULTIPLE:
        raise VariantError(
            f"variant {variant.name!r}: embed_dim={variant.embed_dim} of num_heads={variant.num_heads} gives "
            f"{channels} channels a head, no multiple of {CHANNEL_MULTIPLE} as deformable attention needs; change one"
        )
