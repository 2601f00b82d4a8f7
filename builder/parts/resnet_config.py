"""What decides a ResNet; apart from the network, because presets need no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Blocks of each stage. Source: Deep Residual Learning (arXiv 1512.03385), table 1.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class ResNetConfig:
    """ResNet settings, by the names of mmdetection's `ResNet`."""

    depth: int = 50
    base_channels: int = 64
    stem_channels: int = 64
    style: Literal["pytorch", "caffe"] = "pytorch"
    out_indices: tuple[int, ...] = (0, 1, 2, 3)
    blocks: tuple[int, ...] | None = None  # of each stage; None: those of `depth`
    dilated: bool = False  # DC5: the last stage has dilation 2 instead of stride 2, so that its map is twice as large

    @property
    def label(self) -> str:
        """A short name for tables."""
        return f"R{self.depth}{'-DC5' if self.dilated else ''}"

    @property
    def stage_blocks(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return DEPTHS[self.depth] if self.blocks is None else self.blocks

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each output map."""
        return tuple(4 * self.base_channels * 2**i for i in self.out_indices)
