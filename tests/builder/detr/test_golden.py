"""The network against the original's own arrays, stage by stage (tests/data/README.md)."""

import copy

import pytest
import torch

from builder.detr.model import detections
from builder.parts.position import level_valid_shapes, token_mask
from tests.builder.detr.golden import Case, assert_close

# The reference's own float32 noise is 4e-5 on stages and 6.4e-6 on boxes; of 20 mistakes in the arithmetic each moves
# the logits by at least 0.4.
STAGE, BOX = 1e-4, 2e-5


@pytest.fixture(scope="module")
def detectors(detr):
    """The detector without and with DC5; tests must not change them."""
    return [detr.detector(dilated) for dilated in (False, True)]


@pytest.fixture
def detector(detectors, case):
    return detectors[case.dilated]


@pytest.fixture
def outputs(detector, case):
    """What every module returned."""
    found, hooks = {}, []
    for name, module in detector.named_modules():
        hooks.append(module.register_forward_hook(lambda *args, name=name: found.update({name: args[-1]})))
    found["logits"], found["boxes"] = detector.network(case.pixels, case.image_sizes)
    for hook in hooks:
        hook.remove()
    return found


def tokens(maps):
    return maps.flatten(2).transpose(1, 2)


# Names of the reference's stages and of ours.
STAGES = (
    [(f"backbone/layer{i}", f"backbone.layer.{i}") for i in (1, 2, 3, 4)]
    + [("input_proj", "input_proj"), ("memory", "encoder"), ("decoder/final_normed", "decoder")]
    + [(f"{part}/layer{i}{theirs}", f"{part}.layers.{i}{ours}")
       for i in (0, 1) for part, theirs, ours in (
           ("encoder", "/self_attn_out", ".self_attn"), ("encoder", "/norm1", ".norm1"), ("encoder", "", ""),
           ("decoder", "/self_attn_out", ".self_attn"), ("decoder", "/norm1", ".norm1"),
           ("decoder", "/cross_attn_out", ".cross_attn"), ("decoder", "/norm2", ".norm2"), ("decoder", "/hidden", ""))]
)  # fmt: skip  # a table


def test_stages(outputs, case):
    compared = [theirs for theirs, _ in STAGES if theirs in case]
    for theirs, ours in STAGES:
        if theirs in case:
            assert_close(outputs[ours], case[theirs], STAGE)
    assert len(compared) >= (23 if case.name in ("full", "batch2") else 8)


def test_masks_and_positions(detector, case):
    shape = tuple(case["mask/level0"].shape[1:])
    valid = level_valid_shapes(case.image_sizes, tuple(case.pixels.shape[2:]), [shape])
    assert torch.equal(~token_mask(valid, [shape]), case["mask/level0"].bool().flatten(1))
    assert_close(detector._position(shape, valid[:, 0]), tokens(case["pos/level0"]), 2e-6)


def test_logits_and_boxes(outputs, case):
    assert_close(outputs["logits"], case["head/cls_logits"], STAGE)
    assert_close(outputs["boxes"], case["head/boxes_cxcywh"], BOX)


def test_float64_agrees_with_the_original_in_float64(detector, case):
    logits, boxes = copy.deepcopy(detector).double().network(case.pixels.double(), case.image_sizes)
    assert_close(logits, case["head/cls_logits_f64"], 2e-6)
    assert_close(boxes, case["head/boxes_cxcywh_f64"], 2e-6)


def test_folded_norms_compute_the_same(detector, case):
    folded = copy.deepcopy(detector).deploy()
    assert not any("bn" in name or "running" in name for name in folded.state_dict())
    logits, boxes = folded.network(case.pixels, case.image_sizes)
    assert_close(logits, case["head/cls_logits"], STAGE)
    assert_close(boxes, case["head/boxes_cxcywh"], BOX)


def test_detections_are_the_originals(case):
    """By query, as the original answers them, in pixels of the original image."""
    boxes, scores, labels = detections(case["head/cls_logits"], case["head/boxes_cxcywh"])
    scale = case.inputs["orig_hw"].flip(-1).repeat(1, 2)[:, None]
    assert_close(boxes * scale, case["out_detr/boxes"], 1e-3)
    assert_close(scores, case["out_detr/scores"], 1e-6)
    assert torch.equal(labels, case["out_detr/labels"])


def test_forward_answers_them_best_first_whatever_the_padding_holds(detector, case):
    boxes, scores, labels = detector(case.images(), case.image_sizes)
    expected, order = case["out_detr/scores"].sort(dim=1, descending=True)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int32)
    assert_close(scores, expected, 2e-5)
    assert torch.equal(scores, scores.sort(dim=1, descending=True)[0])
    scale = case.inputs["orig_hw"].flip(-1).repeat(1, 2)[:, None]
    for index, (ours, wanted) in enumerate(zip(order, case["out_detr/boxes"], strict=True)):
        apart = expected[index].diff().abs() > 1e-4  # of near-equal scores the order is not defined
        clear = torch.cat([apart.new_ones(1), apart]) & torch.cat([apart, apart.new_ones(1)])
        assert torch.equal(labels[index][clear].long(), case["out_detr/labels"][index][ours][clear])
        assert_close((boxes * scale)[index][clear], wanted[ours][clear], 1e-2)


def test_one_image_is_the_same_alone_and_in_a_batch(detectors, detr):
    case = Case(detr, "few_valid")
    together = detectors[0].network(case.pixels, case.image_sizes)
    for index in range(3):
        alone = detectors[0].network(case.pixels[index : index + 1], case.image_sizes[index : index + 1])
        for one, all_ in zip(alone, together, strict=True):
            assert_close(one[0], all_[index], STAGE)


@pytest.mark.parametrize("size", [(1, 1), (0, 0)])
def test_sizes_of_almost_nothing_give_numbers(detectors, size):
    outputs = detectors[0](torch.zeros(1, 65, 97, 3, dtype=torch.uint8), torch.tensor([size], dtype=torch.int32))
    assert all(torch.isfinite(output.float()).all() for output in outputs)
