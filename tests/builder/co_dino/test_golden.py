"""The network against mmdetection's own arrays, stage by stage (tests/data/README.md)."""

import pytest
import torch

from builder import load_detector
from builder.co_dino.encoder import encoder_reference_points
from builder.co_dino.proposals import anchor_logits
from builder.parts.boxes import inverse_sigmoid
from builder.parts.position import sine_position_embedding, token_mask, valid_ratios

CASES = ("full", "padded", "batch2", "wide", "few_valid")
# In `few_valid` most chosen proposals are invalid and tie, so their order is not defined.
ORDERED_CASES = CASES[:-1]


@pytest.fixture(scope="module")
def detector(golden_config, golden_weights):
    return load_detector(golden_config, golden_weights)


class Case:
    """The arrays of one golden case as tensors."""

    def __init__(self, golden, name):
        self.arrays, self.name = golden, name
        self.pixels, self.image_sizes = self["image"], self["valid_hw"].int()

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[f"{self.name}/{key}"])

    def list(self, pattern, count):
        return [self[pattern.format(i)] for i in range(count)]


@pytest.fixture(params=CASES)
def case(golden, request):
    return Case(golden, request.param)


def assert_equal(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_backbone_and_neck(detector, case):
    features = detector.backbone(case.pixels)
    assert_equal(features, case.list("backbone/stage{}", 4), atol=1e-4)
    assert_equal(detector.neck(features), case.list("neck/level{}", 5), atol=1e-4)


def test_swin_blocks(detector, golden):
    case = Case(golden, "full")
    blocks = {}
    for i, block in enumerate(detector.backbone.stages[0].blocks):
        block.register_forward_hook(lambda *args, i=i: blocks.update({i: args[-1].flatten(1, 2)}))
    detector.backbone(case.pixels)
    assert_equal([blocks[0], blocks[1]], case.list("backbone/stage0_block{}", 2), atol=1e-5)


def test_masks_and_valid_ratios(detector, case):
    memory = detector.encode(case.pixels, case.image_sizes)
    padding = torch.cat([mask.flatten(1) for mask in case.list("mask/level{}", 5)], dim=1).bool()
    assert torch.equal(~token_mask(memory.valid_shapes, memory.shapes), padding)
    assert_equal(valid_ratios(memory.valid_shapes, memory.shapes), case["valid_ratios"], atol=1e-7)
    assert memory.shapes == [tuple(shape) for shape in case["spatial_shapes"].tolist()]


def test_positions(detector, golden):
    case = Case(golden, "padded")
    memory = detector.encode(case.pixels, case.image_sizes)
    points = encoder_reference_points(memory.shapes, memory.valid_shapes)
    assert_equal(points[:, :, 0], case["enc_reference_points"][:, :, 0], atol=1e-6)
    assert_equal(points, case["enc_reference_points"], atol=1e-6)
    for level, shape in enumerate(memory.shapes):
        embedding = sine_position_embedding(shape, memory.valid_shapes[:, level], 64, 20)
        assert_equal(embedding, case[f"pos/level{level}"].flatten(2).transpose(1, 2), atol=1e-5)


def test_memory(detector, case):
    assert_equal(detector.encode(case.pixels, case.image_sizes).tokens, case["memory"], atol=1e-4)


def test_encoder_layers(detector, golden):
    case = Case(golden, "few_valid")
    outputs = {}
    for i, layer in enumerate(detector.encoder.layers):
        layer.register_forward_hook(lambda *args, i=i: outputs.update({i: args[-1]}))
    detector.encode(case.pixels, case.image_sizes)
    assert_equal([outputs[0], outputs[1]], case.list("encoder/layer{}", 2), atol=1e-4)


def test_anchors(detector, case):
    memory = detector.encode(case.pixels, case.image_sizes)
    logits, valid = anchor_logits(memory.shapes, memory.valid_shapes)
    assert torch.equal(valid, case["proposals/valid"].bool())
    assert_equal(logits, case["proposals/unact"], atol=1e-5)


@pytest.mark.parametrize("name", ORDERED_CASES)
def test_chosen_proposals_in_order(detector, golden, name):
    case = Case(golden, name)
    proposals = detector.proposals(*detector.encode(case.pixels, case.image_sizes))
    assert torch.equal(proposals.indices, case["proposals/topk_indices"])
    assert_equal(proposals.logits.amax(-1), case["proposals/topk_score"], atol=1e-4)


def test_chosen_boxes(detector, case):
    proposals = detector.proposals(*detector.encode(case.pixels, case.image_sizes))
    assert_equal(proposals.boxes, case["decoder/ref_init"], atol=1e-5)


def test_decoder_layers(detector, case):
    memory = detector.encode(case.pixels, case.image_sizes)
    queries = detector.query_embed.weight.expand(len(case.pixels), -1, -1)
    decoded = detector.decoder(queries, detector.proposals(*memory).boxes, *memory)
    assert_equal(decoded.hidden, case.list("decoder/layer{}/hidden", 2), atol=1e-4)
    refined = [
        torch.sigmoid(head(hidden) + inverse_sigmoid(reference))
        for head, hidden, reference in zip(detector.decoder.box_heads, *decoded, strict=True)
    ]
    assert_equal(refined, case.list("decoder/layer{}/ref_out", 2), atol=1e-5)


def test_logits_and_boxes_of_every_query(detector, case):
    """Another export's boxes, `head/boxes_cxcywh_seed`, apply the last refinement twice and are far from these."""
    logits, boxes = detector.network(case.pixels, case.image_sizes)
    assert_equal(logits, case["head/cls_logits"], atol=1e-4)
    assert_equal(boxes, case["head/boxes_cxcywh"], atol=1e-5)


def test_candidates(detector, case):
    """From the golden logits on, so that near-equal scores keep their order; boxes in pixels of the valid image."""
    input_shape = case.pixels.shape[2:]
    boxes, scores, labels = detector._top_candidates(
        case["head/cls_logits"], case["head/boxes_cxcywh"], input_shape, case.image_sizes
    )
    scale = case.image_sizes.flip(-1).repeat(1, 2)[:, None]
    assert_equal(boxes * scale, case["out_mmdet/boxes"], atol=1e-3)
    assert_equal(scores, case["out_mmdet/scores"], atol=1e-5)
    assert torch.equal(labels, case["out_mmdet/labels"].int())
