"""The network against upstream's own arrays, stage by stage (tests/data/README.md)."""

import copy

import pytest
import torch

from builder import load_detector
from builder.parts.boxes import top_candidates
from builder.rtdetrv2.encoder import position_embedding
from builder.rtdetrv2.proposals import anchor_logits
from tests.builder.rtdetrv2.conftest import CASES, DISCRETE_CASES, Case

# In `border` eight invalid tokens are chosen and tie, so the order of queries is not defined.
ORDERED_CASES = CASES[:-1]


def assert_equal(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def outputs_of(modules, run):
    """What each of the modules, by name, returned while `run` ran."""
    found = {}
    handles = [
        module.register_forward_hook(lambda *args, name=name: found.update({name: args[-1]}))
        for name, module in modules.items()
    ]
    run()
    for handle in handles:
        handle.remove()
    return found


def by_box(logits, boxes):
    """Queries of one image in the order of their boxes: ties leave their own order open."""
    rows = torch.cat([boxes, logits], dim=-1)
    order = sorted(range(rows.shape[1]), key=lambda i: [round(x, 3) for x in rows[0, i].tolist()])
    return rows[:, order]


def test_backbone(detector, case):
    assert_equal(detector.backbone(case.pixels), [case[f"backbone/stage{i}"] for i in (1, 2, 3)], atol=1e-4)


def test_first_blocks(detector, eval96):
    backbone = detector.backbone
    modules = {"stem": backbone.stem, "stage0_block0": backbone.stages[0][0], "stage1_block0": backbone.stages[1][0]}
    modules["stage0"] = backbone.stages[0]
    for name, output in outputs_of(modules, lambda: backbone(eval96.pixels)).items():
        assert_equal(output, eval96[f"backbone/{name}"], atol=1e-5)


def test_encoder(detector, case):
    levels = detector.encoder(detector.backbone(case.pixels))
    assert_equal(levels, case.list("encoder/level{}", 3), atol=1e-4)


def test_attention_within_the_coarsest_map(detector, case):
    layer = detector.encoder.attention[0][0]
    found = outputs_of({"aifi_out": layer, "aifi_self_attn": layer.self_attn}, lambda: detector.encode(case.pixels))
    assert_equal(found["aifi_out"], case["encoder/aifi_out"], atol=1e-4)
    if case.name == "eval96":
        assert_equal(found["aifi_self_attn"], case["encoder/aifi_self_attn"], atol=1e-5)


@pytest.mark.parametrize("name", ["eval96", "wide", "odd"])
def test_position_embedding(golden, name):
    case = Case(golden, name)
    h, w = case["backbone/stage3"].shape[2:]
    assert_equal(position_embedding(h, w, 32, 1e4, torch.device("cpu")), case["encoder/aifi_pos"], atol=1e-5)


def test_fusion_of_maps(detector, eval96):
    encoder = detector.encoder
    block = encoder.fpn_blocks[0]
    modules = {f"proj{i}": module for i, module in enumerate(encoder.input_proj)}
    modules |= {f"lateral{i}": module for i, module in enumerate(encoder.lateral_convs)}
    modules |= {f"down{i}": module for i, module in enumerate(encoder.downsample_convs)}
    modules |= {f"fpn0_rep{i}": module for i, module in enumerate(block.bottlenecks)}
    modules |= {"fpn0_conv1": block.conv1, "fpn0_conv2": block.conv2, "fpn0": block}
    found = outputs_of(modules, lambda: detector.encode(eval96.pixels))
    assert len(found) == 13
    for name, output in found.items():
        assert_equal(output, eval96[f"encoder/{name}"], atol=1e-4)


def test_memory(detector, case):
    memory = detector.encode(case.pixels)
    assert_equal(memory.tokens, case["memory"], atol=1e-4)
    assert memory.shapes == [tuple(shape) for shape in case["spatial_shapes"].tolist()]


def test_anchors(detector, case):
    shapes = [tuple(shape) for shape in case["spatial_shapes"].tolist()]
    logits, valid = anchor_logits(shapes, torch.device("cpu"), torch.float32)
    assert torch.equal(valid, case["enc/valid_mask"][0, :, 0].bool())
    assert case.name != "border" or (~valid).sum() == 8
    if case.name == "eval96":
        assert_equal(logits.sigmoid(), case["enc/anchors"].sigmoid(), atol=1e-6)


@pytest.mark.parametrize("name", ORDERED_CASES)
def test_chosen_tokens_in_order(detector, golden, name):
    case = Case(golden, name)
    proposals = detector.proposals(*detector.encode(case.pixels))
    assert torch.equal(proposals.indices, case["enc/topk_indices"])
    assert_equal(proposals.logits.amax(-1), case["enc/topk_score"], atol=1e-4)
    assert_equal(proposals.boxes, case["decoder/ref_init"], atol=1e-5)


def test_invalid_tokens_are_chosen_with_the_whole_picture_as_box(detector, golden):
    case = Case(golden, "border")
    proposals = detector.proposals(*detector.encode(case.pixels))
    assert (proposals.boxes == 1).all(-1).sum() == 8
    assert torch.equal(proposals.indices.sort().values, case["enc/topk_indices"].sort().values)


@pytest.mark.parametrize("name", ORDERED_CASES)
def test_decoder_layers(detector, golden, name):
    case = Case(golden, name)
    memory = detector.encode(case.pixels)
    decoded = detector.decode(memory, detector.proposals(*memory))
    assert_equal(decoded.hidden, case.list("decoder/layer{}/hidden", 3), atol=1e-4)
    assert_equal(decoded.boxes, case.list("decoder/layer{}/ref_out", 3), atol=1e-5)
    assert_equal(decoded.references, [case["decoder/ref_init"], *decoded.boxes[:-1]], atol=1e-5)


def test_within_a_decoder_layer(detector, eval96):
    layer = detector.decoder.layers[0]
    modules = {
        "self_attn": layer.self_attn,
        "after_norm1": layer.norm1,
        "cross_attn": layer.cross_attn,
        "after_norm2": layer.norm2,
        "offsets_raw": layer.cross_attn.sampling_offsets,
        "attn_logits_raw": layer.cross_attn.attention_weights,
        "value": layer.cross_attn.value_proj,
        "bbox_delta": detector.decoder.box_heads[0],
    }
    found = outputs_of(modules, lambda: detector.network(eval96.pixels, eval96.image_sizes))
    for name, output in found.items():
        assert_equal(output, eval96[f"decoder/layer0/{name}"], atol=1e-4)
    position = detector.decoder.position_head(eval96["decoder/ref_init"])
    assert_equal(position, eval96["decoder/layer0/query_pos"], atol=1e-5)


@pytest.mark.parametrize("deployed", [False, True], ids=["as trained", "folded"])
def test_logits_and_boxes(golden_config, golden_weights, case, deployed):
    detector = load_detector(golden_config, golden_weights)
    if deployed:
        detector.deploy()
    logits, boxes = detector.network(case.pixels, case.image_sizes)
    for source in ("", "deploy/"):
        expected = case[f"{source}pred_logits"], case[f"{source}pred_boxes"]
        if case.name == "border":
            assert_equal(by_box(logits, boxes), by_box(*expected), atol=1e-4)
        else:
            assert_equal(logits, expected[0], atol=1e-4)
            assert_equal(boxes, expected[1], atol=1e-5)


def test_float64(golden_config, golden_weights, case):
    detector = load_detector(golden_config, golden_weights).double()
    logits, boxes = detector.network(case.pixels.double(), case.image_sizes)
    assert (logits.dtype, boxes.dtype) == (torch.float64, torch.float64)
    expected = case["f64/pred_logits"].double(), case["f64/pred_boxes"].double()
    if case.name == "border":
        assert_equal(by_box(logits, boxes), by_box(*expected), atol=1e-5)
    else:
        assert_equal(logits, expected[0], atol=2e-6)
        assert_equal(boxes, expected[1], atol=2e-7)


def in_pixels(case, boxes):
    return boxes * case["orig_size_wh"].float().repeat(1, 2).unsqueeze(1)


@pytest.mark.parametrize("name", ORDERED_CASES)
def test_candidates(detector, golden, name):
    case = Case(golden, name)
    boxes, scores, labels = detector(case.images, case.image_sizes)
    assert_equal(in_pixels(case, boxes), case["post/boxes"], atol=1e-5 * case["orig_size_wh"].max().item())
    assert_equal(scores, case["post/scores"], atol=1e-5)
    assert torch.equal(labels.long(), case["post/labels"])
    assert labels.dtype == torch.int32


def test_boxes_may_leave_the_picture(detector, golden):
    outside = [
        (boxes < 0).any() or (boxes > 1).any()
        for case in (Case(golden, name) for name in CASES)
        for boxes in [detector(case.images, case.image_sizes)[0]]
    ]
    assert any(outside)


@pytest.mark.parametrize("name", DISCRETE_CASES)
def test_discrete_sampling(discrete_config, golden_weights, golden, name):
    case, detector = Case(golden, name), load_detector(discrete_config, golden_weights)
    memory = detector.encode(case.pixels)
    decoded = detector.decode(memory, detector.proposals(*memory))
    assert_equal(decoded.hidden, case.list("dsp/decoder/layer{}/hidden", 3), atol=1e-4)
    assert_equal(decoded.boxes[-1], case["dsp/pred_boxes"], atol=1e-5)
    assert_equal(detector.class_head(decoded.hidden[-1]), case["dsp/pred_logits"], atol=1e-4)
    _, scores, labels = top_candidates(case["dsp/pred_logits"], case["dsp/pred_boxes"], 50)
    assert_equal(scores, case["dsp/post/scores"], atol=1e-5)
    assert torch.equal(labels.long(), case["dsp/post/labels"])


def test_order_of_a_batch_does_not_matter(detector, golden):
    case = Case(golden, "square_b2")
    swapped = detector.network(case.pixels.flip(0), case.image_sizes)
    for actual, expected in zip(swapped, detector.network(case.pixels, case.image_sizes), strict=True):
        assert_equal(actual.flip(0), expected, atol=2e-5)


def test_fused_kernels_are_upstreams(golden, golden_config, golden_weights):
    detector = copy.deepcopy(load_detector(golden_config, golden_weights)).deploy()
    expected = {key.removeprefix("sd_deploy/encoder."): golden[key] for key in golden if key.startswith("sd_deploy/")}
    assert len(expected) == 24
    for key, value in expected.items():
        block, _, part = key.rpartition(".conv.")
        conv = detector.encoder.get_submodule(block).conv1.conv
        assert_equal(getattr(conv, part), torch.from_numpy(value), atol=1e-5)
