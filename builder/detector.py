"""The detector as the builder sees it, whatever its family."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from builder.family import DetectorConfig

if TYPE_CHECKING:
    from typing_extensions import Self

    from builder.operators.post_attention_layer import Works


class Detector(nn.Module):
    """The whole detector, from uint8 pixels to scored boxes."""

    variant: DetectorConfig

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def deploy(self) -> Self:
        """Turn weights of training into those of an engine, in place, such as batch norms into convolutions."""
        return self

    def joined(self, works: Works) -> Self:
        """Return the detector with layers joined into operators of ours that need a GPU of one kind, or itself.

        It shares its other layers with this one. Done last before an export, to a detector in the engine's precision.

        Args:
            works: tells whether such an operator can do a kind of layer, here.
        """
        return self

    @abstractmethod
    def set_precision(self, dtype: torch.dtype) -> Self:
        """Convert weights and matrix products to `dtype`; what must stay float32 does."""

    @abstractmethod
    def network(self, pixels: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [B, Q, classes] and boxes float32 [B, Q, 4], cx cy w h in 0..1, of every query.

        Args:
            pixels: [B, 3, H, W] RGB, as the family's pixel rules make them.
            image_sizes: int [B, 2], valid (h, w) in pixels.
        """

    @abstractmethod
    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the K = `variant.max_detections` best candidates of each image, before any suppression, best first.

        Args:
            images: uint8 [B, H, W, 3] RGB.
            image_sizes: int32 [B, 2], valid (h, w) in pixels; what lies outside does not matter.

        Returns:
            Boxes float32 [B, K, 4], x1 y1 x2 y2 in 0..1 of the valid image; scores float32 [B, K]; labels int32 [B, K].
        """
