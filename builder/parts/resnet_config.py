"""What decides a ResNet; apart from the network, because presets need no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ResNetConfig:
    """ResNet settings, by the names of mmdetection's `ResNet`."""

    depth: int = 50
    base_channels: int = 64
    stem_channels: int = 64
    style: Literal["pytorch", "caffe"] = "pytorch"
    out_indices: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def label(self) -> str:
        """A short name for tables."""
        return f"R{self.depth}"

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each output map."""
        return tuple(4 * self.base_channels * 2**i for i in self.out_indices)
