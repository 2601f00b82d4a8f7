"""Half precision: products alone are narrow."""

import pytest
import torch

from builder.parts.layers import BoxHead, LayerNorm
from builder.parts.resnet import FrozenBatchNorm2d
from serving.contract import PIXEL_MEAN
from tests.builder.detr.golden import Case


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["batch2", "dc5_batch2"])
def test_half_precision_loses_little_more_than_rounding_its_weights(detr, name, precision, folded):
    """Products of rounded activations make it up to 3 times the loss of rounded weights; 5 is the limit."""
    case, dtype = Case(detr, name), getattr(torch, precision)
    detector = detr.detector(case.dilated)
    detector = (detector.deploy() if folded else detector).set_precision(dtype)
    rounded = detr.detector(case.dilated, precision).set_precision(torch.float32)
    logits, boxes = detector.network(case.pixels, case.image_sizes)
    assert (logits.dtype, boxes.dtype) == (dtype, torch.float32)
    least = rounded.network(case.pixels, case.image_sizes)
    for ours, other, key in ((logits.float(), least[0], "cls_logits"), (boxes, least[1], "boxes_cxcywh")):
        expected = case[f"head/{key}"]
        assert (ours - expected).abs().mean() < 5 * (other - expected).abs().mean()
    outputs = detector(case.images(), case.image_sizes)
    assert [output.dtype for output in outputs] == [torch.float32, torch.float32, torch.int32]


def test_what_must_be_float32_keeps_its_exact_values(detr):
    exact, half = detr.detector(), detr.detector(precision="float16")
    assert torch.equal(half.pixel_mean.flatten(), torch.tensor(PIXEL_MEAN))
    kept = 0
    for (name, module), original in zip(half.named_modules(), exact.modules(), strict=True):
        if isinstance(module, (LayerNorm, BoxHead, FrozenBatchNorm2d)):
            kept += 1
            for key, value in module.state_dict().items():
                assert torch.equal(value, original.state_dict()[key]), f"{name}.{key}"
    assert kept > 20
    assert half.input_proj.weight.dtype == half.encoder.layers[0].self_attn.in_proj_weight.dtype == torch.float16


def test_padding_that_float16_could_not_mask_is_still_unseen(detr):
    case = Case(detr, "few_valid")
    detector = detr.detector(precision="float16")
    logits, boxes = detector.network(case.pixels, case.image_sizes)
    assert torch.isfinite(logits).all()
    assert (boxes - case["head/boxes_cxcywh"]).abs().max() < 0.01
