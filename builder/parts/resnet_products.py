"""A ResNet whose 1x1 convolutions are products of matrices, for engines that compute the ReLU behind one with it.

Maps are [B, h, w, C] between the blocks, which is how a GPU's library wants those of 3x3 convolutions in half precision
too, so nothing is copied.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from builder.parts.resnet import Bottleneck, ResNet


class ProductBottleneck(nn.Module):
    """What `Bottleneck` computes, its batch norms folded, of [B, h, w, C]."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, Bottleneck)
        self.conv1, self.conv2, self.conv3 = map(_on_rows, (block.conv1, block.conv2, block.conv3))
        projection = block.downsample
        self.downsample = _on_rows(projection[0]) if isinstance(projection, nn.Sequential) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, h/stride, w/stride, 4*width] for `x` [B, h, w, C]."""
        out = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(out) + self.downsample(x))


class RowsConv2d(nn.Module):
    """A convolution of [B, h, w, C]."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, h', w', C'] for `x` [B, h, w, C]."""
        out: Tensor = self.convolution(x.permute(0, 3, 1, 2))
        return out.permute(0, 2, 3, 1)


class ProductResNet(nn.Module):
    """What a `ResNet` with folded batch norms computes; it shares that one's weights."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.out_indices = backbone.out_indices
        self.conv1 = backbone.conv1
        self.stages = nn.ModuleList(
            nn.Sequential(*map(ProductBottleneck, stage.children())) for stage in backbone.layer.values()
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return what `ResNet.forward` does for `pixels` [B, 3, H, W]."""
        x = F.max_pool2d(F.relu(self.conv1(pixels)), 3, stride=2, padding=1).permute(0, 2, 3, 1)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x.permute(0, 3, 1, 2))
        return outputs


def as_products(backbone: nn.Module) -> nn.Module:
    """Return a backbone with 1x1 convolutions as products if it is a ResNet with folded batch norms; else itself."""
    if not isinstance(backbone, ResNet) or not isinstance(backbone.bn1, nn.Identity):
        return backbone
    return ProductResNet(backbone)


def _on_rows(convolution: nn.Module) -> nn.Linear | RowsConv2d:
    """Return a convolution for [B, h, w, C]: as a product if it looks at one pixel for each of its results."""
    assert isinstance(convolution, nn.Conv2d)
    if convolution.kernel_size != (1, 1) or convolution.stride != (1, 1):
        return RowsConv2d(convolution)
    product = nn.Linear(convolution.in_channels, convolution.out_channels, device="meta")
    product.weight = nn.Parameter(convolution.weight.detach().flatten(1), requires_grad=False)
    assert isinstance(convolution.bias, nn.Parameter)  # of a batch norm
    product.bias = convolution.bias
    return product
