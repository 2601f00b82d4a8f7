"""A ResNet whose 1x1 convolutions are products, against the ResNet that it was made of."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from builder.checkpoint import random_detector
from builder.co_dino.config import ResNetConfig
from builder.detr.config import DetrConfig
from builder.parts.resnet import FrozenBatchNorm2d, ResNet, fold_batch_norms
from builder.parts.resnet_products import ProductResNet, as_products
from tests.smallest import SMALLEST

NARROW = ResNetConfig(50, base_channels=4, stem_channels=6)
CONVOLUTION, PRODUCT = torch.ops.aten.conv2d.default, torch.ops.aten.linear.default


def folded(config):
    torch.manual_seed(0)
    backbone = ResNet(config).double()
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    fold_batch_norms(backbone)
    return backbone


@pytest.mark.parametrize(
    "config",
    [NARROW, replace(NARROW, style="caffe"), replace(NARROW, dilated=True), replace(NARROW, out_indices=(1, 3))],
    ids=["pytorch", "caffe", "dilated", "two maps"],
)
def test_computes_what_the_backbone_does(config):
    backbone = folded(config)
    products = as_products(backbone)
    pixels = torch.randn(2, 3, 65, 98, dtype=torch.float64)
    expected, found = backbone(pixels), products(pixels)
    assert len(found) == len(expected) == len(config.out_indices)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_convolutions_of_one_pixel_are_products_on_rows():
    program = torch.export.export(as_products(folded(NARROW)), (torch.zeros(1, 3, 64, 64, dtype=torch.float64),))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    products = [node for node in calls if node.target is PRODUCT]
    convolutions = [node for node in calls if node.target is CONVOLUTION]
    assert len(products) == 16 + 16 + 1, "a block's first and last, and the residual of the first stage"
    assert len(convolutions) == 1 + 16 + 3, "the stem, a block's second, the other residuals"
    for node in convolutions[1:]:
        x = node.args[0].meta["val"]
        assert x.is_contiguous(memory_format=torch.channels_last), "so a GPU's library copies nothing"
    copies = {torch.ops.aten.contiguous.default, torch.ops.aten.clone.default, torch.ops.aten.reshape.default}
    assert not any(node.target in copies for node in calls)


def test_weights_are_shared():
    backbone = folded(NARROW)
    products = as_products(backbone)
    pointers = {parameter.data_ptr() for parameter in backbone.parameters()}
    assert {parameter.data_ptr() for parameter in products.parameters()} == pointers


@pytest.mark.parametrize("backbone", [ResNet(NARROW), nn.Identity()], ids=["batch norms not folded", "no ResNet"])
def test_other_backbones_stay_as_they_are(backbone):
    assert as_products(backbone) is backbone


@pytest.mark.parametrize(
    "variant", [SMALLEST, DetrConfig("small", embed_dim=32, feedforward_dim=64)], ids=["Co-DINO", "DETR"]
)
def test_detectors_join_their_convolutions(variant):
    backbone = replace(NARROW, out_indices=variant.backbone.out_indices)
    detector = random_detector(replace(variant, backbone=backbone)).deploy()
    joined = detector.joined(lambda kind: False)
    assert isinstance(joined.backbone, ProductResNet)
    assert isinstance(detector.backbone, ResNet), "the detector itself is as it was"
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([[64, 80]], dtype=torch.int32)
    expected = detector.network(detector.normalize(images, sizes), sizes)
    found = joined.network(joined.normalize(images, sizes), sizes)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
