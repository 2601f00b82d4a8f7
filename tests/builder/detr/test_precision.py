"""Half precision: products alone are narrow."""

import pytest
import torch

from builder.parts.layers import BoxHead, LayerNorm
from builder.parts.resnet import FrozenBatchNorm2d
from serving.contract import PIXEL_MEAN
from tests.builder.detr.golden import Case


@pytest.mark.parametrize(("precision", "score"), [("float16", 0.005), ("bfloat16", 0.05)])
@pytest.mark.parametrize("deployed", [False, True])
def test_scores_and_boxes_stay_close_to_float32(detr, precision, score, deployed):
    case = Case(detr, "batch2")
    detector = detr.detector()
    if deployed:
        detector = detector.deployed()
    detector = detector.set_precision(getattr(torch, precision))
    logits, boxes = detector.network(case.pixels, case.image_sizes)
    assert (logits.dtype, boxes.dtype) == (getattr(torch, precision), torch.float32)
    assert (logits.float().softmax(-1) - case["head/cls_logits"].softmax(-1)).abs().max() < score
    assert (boxes - case["head/boxes_cxcywh"]).abs().max() < score
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
