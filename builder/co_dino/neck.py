"""Channel mapper: backbone maps of any widths become levels of one width, with extra coarser levels.

Source: mmdetection `channel_mapper.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from builder.parts.layers import GroupNorm


class ChannelMapper(nn.Module):
    """1x1 convolution and group norm for each backbone map, 3x3 stride-2 convolutions for the extra levels."""

    def __init__(self, in_channels: Sequence[int], embed_dim: int, num_levels: int, num_groups: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, embed_dim, 1, bias=False), GroupNorm(num_groups, embed_dim))
            for channels in in_channels
        )
        extra_in = [in_channels[-1]] + [embed_dim] * (num_levels - len(in_channels) - 1)
        self.extra_convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, embed_dim, 3, stride=2, padding=1, bias=False), GroupNorm(num_groups, embed_dim)
            )
            for channels in extra_in[: num_levels - len(in_channels)]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return [B, embed_dim, h_l, w_l] of every level; the first extra level reads the last backbone map."""
        levels = [conv(feature) for conv, feature in zip(self.convs, features, strict=True)]
        extra = features[-1]
        for conv in self.extra_convs:
            extra = conv(extra)
            levels.append(extra)
        return levels
