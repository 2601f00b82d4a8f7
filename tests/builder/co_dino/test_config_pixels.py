import dataclasses

import numpy as np
import pytest
import torch

from builder import VariantError, from_mmdet_config
from builder.checkpoint import load_detector
from tests.public_configs import ABSENT, ORIGINAL_LSJ, ORIGINAL_R50, R50, R50_LSJ, changed, load

NEW = "test_dataloader.dataset.pipeline"
OLD = "data.test.pipeline.1"  # MultiScaleFlipAug
OLD_STEPS = f"{OLD}.transforms"


def pixels(config):
    variant = from_mmdet_config(config)
    return variant.input_size, variant.augmentation, variant.padding_value


def with_pad(name, steps, place, **pad):
    """A public config with one more Pad at a place of its test pipeline, or with its Pad changed."""
    config = load(name)
    target = config
    for key in steps.split("."):
        target = target[int(key) if key.isdigit() else key]
    target[:] = [step for step in target if step["type"] != "Pad"]
    target.insert(place, {"type": "Pad", **pad})
    return config


SQUARE = (1024, 1024)
BEFORE, AFTER = 2, 3  # Normalize, in the original's R50 pipeline without its Pad


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(load(R50), ((800, 1333), "DETR", None), id="mmdetection, no Pad"),
        pytest.param(load(R50_LSJ), (SQUARE, "LSJ", 114), id="mmdetection, LSJ"),
        pytest.param(load(ORIGINAL_R50), ((800, 1333), "DETR", None), id="original"),
        pytest.param(load(ORIGINAL_LSJ), (SQUARE, "LSJ", 114), id="original, LSJ"),
        pytest.param(
            with_pad(R50_LSJ, NEW, 2, size=[1024, 1024]), (SQUARE, "LSJ", 0), id="mmdetection, black by default"
        ),
        pytest.param(
            changed(load(R50), "model.use_lsj", True), ((800, 1333), "DETR", None), id="mmdetection, LSJ without Pad"
        ),
        pytest.param(
            changed(load(R50_LSJ), "model.use_lsj", False), (SQUARE, "LSJ", 114), id="mmdetection counts Pad as image"
        ),
        pytest.param(
            with_pad(ORIGINAL_R50, OLD_STEPS, AFTER, size_divisor=32), ((800, 1333), "DETR", None), id="original, 32"
        ),
        pytest.param(
            with_pad(ORIGINAL_R50, OLD_STEPS, AFTER, size=[1333, 1333]),
            ((800, 1333), "DETR", None),
            id="original, a fixed size that is masked",
        ),
        pytest.param(
            with_pad(ORIGINAL_LSJ, OLD_STEPS, 3, size=[1024, 1024]), (SQUARE, "LSJ", None), id="zeros after Normalize"
        ),
        pytest.param(
            with_pad(ORIGINAL_LSJ, OLD_STEPS, 2, size=[1024, 1024], pad_val=[128, 128, 128]),
            (SQUARE, "LSJ", 128),
            id="original, another grey",
        ),
    ],
)
def test_padding_and_size(config, expected):
    assert pixels(config) == expected


def test_the_size_of_a_pad_is_width_and_height_in_mmdetection_only():
    config = with_pad(R50_LSJ, NEW, 2, size=[1536, 1024], pad_val=114)
    assert pixels(changed(config, f"{NEW}.1.scale", [1536, 1024]))[0] == (1024, 1536)
    config = with_pad(ORIGINAL_LSJ, OLD_STEPS, 2, size=[1024, 1536], pad_val=114)
    assert pixels(changed(config, f"{OLD}.img_scale", [1536, 1024]))[0] == (1024, 1536)


def test_what_is_tested_counts_before_a_variable_of_that_name():
    config = load(R50)
    config["test_pipeline"] = load(R50_LSJ)["test_dataloader"]["dataset"]["pipeline"]
    assert pixels(config)[0] == (800, 1333)
    wrapped = changed(config, "test_dataloader", {"dataset": {"dataset": config["test_dataloader"]["dataset"]}})
    assert pixels(wrapped)[0] == (800, 1333)
    assert pixels(changed(config, "test_dataloader", ABSENT))[0] == SQUARE


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(with_pad(R50, NEW, 2, size_divisor=32), "Pad.size_divisor=32", id="unmasked multiple"),
        pytest.param(
            with_pad(ORIGINAL_LSJ, OLD_STEPS, 3, size_divisor=32), "Pad.size_divisor=32", id="original, LSJ, multiple"
        ),
        pytest.param(
            with_pad(ORIGINAL_R50, OLD_STEPS, BEFORE, size=[1333, 1333], pad_val=114),
            "a colour that attention ignores",
            id="coloured and masked",
        ),
        pytest.param(
            with_pad(ORIGINAL_R50, OLD_STEPS, AFTER, size_divisor=1, pad_val=1), "pad_val=1; expected 0", id="not 0"
        ),
        pytest.param(
            with_pad(R50_LSJ, NEW, 2, size=[1024, 1024], pad_val=[1, 2, 3]), "expected one grey", id="a colour"
        ),
        pytest.param(with_pad(R50_LSJ, NEW, 2, size=[1280, 1280]), "resized to.*1024.*padded to.*1280", id="two sizes"),
        pytest.param(with_pad(R50_LSJ, NEW, 2, size=1024), "Pad has the size 1024", id="no pair"),
        pytest.param(changed(load(R50), f"{NEW}.1.keep_ratio", ABSENT), "keep_ratio=False", id="stretched by default"),
        pytest.param(changed(load(R50), f"{NEW}.1.interpolation", "nearest"), "interpolation='nearest'", id="nearest"),
        pytest.param(changed(load(R50), f"{NEW}.1.type", "FixScaleResize"), "step FixScaleResize", id="another step"),
        pytest.param(changed(load(R50), f"{NEW}.0.to_float32", True), "to_float32=True", id="float images"),
        pytest.param(changed(load(ORIGINAL_R50), f"{OLD}.flip", True), "MultiScaleFlipAug.flip=True", id="augmented"),
        pytest.param(
            changed(load(ORIGINAL_R50), f"{OLD}.img_scale", [[1333, 800], [2000, 1200]]), "one pair", id="many sizes"
        ),
        pytest.param(changed(load(ORIGINAL_R50), f"{OLD_STEPS}.2.to_rgb", False), "to_rgb=False", id="BGR, original"),
        pytest.param(changed(load(ORIGINAL_R50), f"{OLD_STEPS}.2.mean", [0, 0, 0]), "Normalize.mean", id="mean"),
        pytest.param(
            changed(load(ORIGINAL_R50), f"{OLD_STEPS}.2.type", "RandomFlip"),
            "expected a Normalize with mean",
            id="no Normalize",
        ),
        pytest.param(
            changed(load(R50), "model.data_preprocessor.bgr_to_rgb", False), "bgr_to_rgb=False", id="BGR, mmdetection"
        ),
        pytest.param(
            changed(load(R50), "model.data_preprocessor.bgr_to_rgb", ABSENT), "bgr_to_rgb=False", id="BGR by default"
        ),
        pytest.param(
            changed(load(R50), "model.data_preprocessor.mean", ABSENT), "data_preprocessor.mean", id="not normalised"
        ),
        pytest.param(
            changed(load(R50), "model.data_preprocessor.std", [1, 1, 1]), r"data_preprocessor.std=\(1, 1, 1\)", id="std"
        ),
        pytest.param(
            changed(load(R50), "model.data_preprocessor.pad_value", 114), "pad_value=114", id="padded after normalising"
        ),
        pytest.param(
            changed(load(R50_LSJ), "model.data_preprocessor.pad_size_divisor", 96), "pad_size_divisor=96", id="enlarged"
        ),
    ],
)
def test_other_pixels_are_refused_in_one_line(config, message):
    with pytest.raises(VariantError, match=message) as error:
        from_mmdet_config(config)
    assert "\n" not in str(error.value)


def test_masking_is_closest_to_an_image_without_padding(golden_config, golden_weights):
    """Why a config without a fixed padding is a masking one: its network is shown images as they are."""
    masking = load_detector(golden_config, golden_weights)
    without = load_detector(golden_config, golden_weights)
    without.variant = dataclasses.replace(from_mmdet_config(golden_config), augmentation="LSJ", lsj_padding=None)
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 128)).astype(np.float32))
    padded = torch.zeros(1, 3, 128, 192)
    padded[..., :64, :128] = pixels
    size = torch.tensor([[64, 128]])
    with torch.inference_mode():
        exact = without.encode(pixels, size)
        errors = [
            (tokens_of(model.encode(padded, size), exact.shapes) - exact.tokens).square().mean()
            for model in (masking, without)
        ]
    assert errors[0] < errors[1]


def tokens_of(memory, shapes):
    """The tokens of the first (h, w) of each level, in the order they have without padding."""
    start, kept = 0, []
    for (height, width), (h, w) in zip(memory.shapes, shapes, strict=True):
        level = memory.tokens[:, start : start + height * width].unflatten(1, (height, width))
        kept.append(level[:, :h, :w].flatten(1, 2))
        start += height * width
    return torch.cat(kept, 1)
