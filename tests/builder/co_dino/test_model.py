import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from builder import load_detector
from builder.checkpoint import random_detector
from builder.parts.resnet import FrozenBatchNorm2d
from builder.parts.resnet_config import ResNetConfig
from builder.variants import from_mmdet_config
from serving.contract import PIXEL_MEAN, PIXEL_STD


@pytest.fixture(scope="module")
def detector(golden_config, golden_weights):
    return load_detector(golden_config, golden_weights)


@pytest.fixture(scope="module")
def lsj_detector(golden_config, golden_weights):
    variant = dataclasses.replace(from_mmdet_config(golden_config), augmentation="LSJ")
    return load_detector(variant, golden_weights)


def random_images(batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def sizes(*pairs):
    return torch.tensor(pairs, dtype=torch.int32)


def numpy_normalized(images, image_sizes, padding=None):
    """Normalise in NumPy, padding afterwards with zeros, or before with one pixel value."""
    out = np.zeros(images.shape, np.float32)
    for i, (h, w) in enumerate(image_sizes.tolist()):
        image = images[i].numpy().astype(np.float32)
        if padding is not None:
            image[h:], image[:, w:] = padding, padding
            h, w = image.shape[:2]
        out[i, :h, :w] = (image[:h, :w] - PIXEL_MEAN) / PIXEL_STD
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def test_contract_of_the_outputs(detector):
    boxes, scores, labels = detector(random_images(2, 64, 96), sizes((64, 96), (50, 33)))
    assert (boxes.shape, scores.shape, labels.shape) == ((2, 300, 4), (2, 300), (2, 300))
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int32)
    assert boxes.amin() >= 0
    assert boxes.amax() <= 1
    assert (scores.diff(dim=1) <= 0).all()
    assert set(labels.unique().tolist()) <= set(range(8))


@pytest.mark.parametrize("shape", [(64, 96), (75, 53), (33, 130)], ids=["even", "odd", "wide"])
def test_normalisation_and_padding_happen_inside(detector, shape):
    images, image_sizes = random_images(2, *shape), sizes(shape, (shape[0] // 2, shape[1] - 9))
    logits, boxes = detector.network(numpy_normalized(images, image_sizes), image_sizes)
    expected = detector._top_candidates(logits, boxes, shape, image_sizes)
    torch.testing.assert_close(detector(images, image_sizes), expected, atol=1e-4, rtol=0)


def test_pixels_outside_the_valid_size_do_not_matter(detector, lsj_detector):
    image_sizes = sizes((40, 70))
    first, second = random_images(1, 64, 96, seed=1), random_images(1, 64, 96, seed=2)
    second[:, :40, :70] = first[:, :40, :70]
    for model in (detector, lsj_detector):
        torch.testing.assert_close(model(first, image_sizes), model(second, image_sizes), atol=0, rtol=0)


def test_lsj_sees_the_padded_image_as_whole(detector, lsj_detector):
    """LSJ equals the masking network on the image padded with gray 114 and declared valid all over."""
    images, image_sizes = random_images(1, 64, 96), sizes((40, 70))
    logits, boxes = detector.network(numpy_normalized(images, image_sizes, padding=114), sizes((64, 96)))
    ours = lsj_detector.network(lsj_detector.normalize(images, image_sizes), image_sizes)
    torch.testing.assert_close(ours, (logits, boxes), atol=1e-4, rtol=0)


def test_lsj_boxes_come_from_the_shape_of_the_input(lsj_detector):
    images, image_sizes = random_images(1, 64, 96), sizes((40, 70))
    logits, boxes = lsj_detector.network(numpy_normalized(images, image_sizes, padding=114), image_sizes)
    expected = lsj_detector._top_candidates(logits, boxes, (64, 96), image_sizes)
    torch.testing.assert_close(lsj_detector(images, image_sizes), expected, atol=1e-4, rtol=0)


def test_lsj_boxes_are_relative_to_the_valid_size(lsj_detector):
    logits = torch.full((1, 50, 8), -9.0)
    logits[0, 7, 3] = 9
    boxes = torch.full((1, 50, 4), 0.5)
    boxes[0, 7] = torch.tensor([0.25, 0.25, 0.5, 0.25])  # 0..48 and 8..24 of 96 x 64 pixels
    found, _, labels = lsj_detector._top_candidates(logits, boxes, (64, 96), sizes((32, 60)))
    torch.testing.assert_close(found[0, 0], torch.tensor([0, 8 / 32, 48 / 60, 24 / 32]))
    assert labels[0, 0] == 3


@pytest.mark.parametrize("name", ["detector", "lsj_detector"])
def test_a_batch_equals_its_images(name, request):
    model = request.getfixturevalue(name)
    images, image_sizes = random_images(3, 64, 96), sizes((64, 96), (33, 80), (60, 20))
    together = model.network(model.normalize(images, image_sizes), image_sizes)
    for i in range(3):
        alone = model.network(model.normalize(images[i : i + 1], image_sizes[i : i + 1]), image_sizes[i : i + 1])
        torch.testing.assert_close(alone, tuple(part[i : i + 1] for part in together), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("valid", [(1, 1), (2, 96), (64, 1), (5, 5)])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_hardly_any_valid_pixels_make_no_nan(golden_config, golden_weights, valid, precision):
    model = load_detector(golden_config, golden_weights, precision)
    boxes, scores, _ = model(random_images(1, 64, 96), sizes(valid))
    assert boxes.isfinite().all()
    assert scores.isfinite().all()


def test_batch_norms_of_a_resnet_fold_into_its_convolutions(golden_config):
    backbone = ResNetConfig(50, base_channels=8, stem_channels=8)
    variant = dataclasses.replace(from_mmdet_config(golden_config), backbone=backbone)
    detector = random_detector(variant)
    for name, buffer in detector.backbone.named_buffers():
        buffer.uniform_(0.5, 1.5) if "var" in name or "weight" in name else buffer.uniform_(-0.3, 0.3)
    images, valid = random_images(1, 64, 96), sizes((60, 96))
    expected = detector.encode(detector.normalize(images, valid), valid)
    folded = detector.deploy()
    assert folded is detector
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in detector.modules())
    actual = detector.encode(detector.normalize(images, valid), valid)
    torch.testing.assert_close(actual.tokens, expected.tokens, atol=1e-4, rtol=1e-4)


def test_needs_no_other_detection_library():
    """A fresh interpreter builds and runs a network; nothing of the training stack may be imported on the way."""
    script = (
        "import sys, torch, builder\n"
        "v = builder.get_variant('co_dino_r50_12e').derive('x', num_classes=8, num_queries=50)\n"
        "builder.random_detector(v)(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.tensor([[64, 64]]).int())\n"
        "print([m for m in ('mmcv', 'mmdet', 'mmengine', 'torchvision', 'tensorrt', 'torch_tensorrt')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
