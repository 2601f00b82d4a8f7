"""Half precision against float32 on the golden inputs, with the same proposals chosen.

Which proposal comes at which rank flips with any rounding, so the float32 choice is given to the half network; what is
left is the error of its arithmetic. `codetr bench precision` reports the figures; the limits here are some eight
roundings of the type, far below what half coordinates or statistics would give.
"""

import re

import pytest
import torch

from builder import load_detector, random_detector
from perf.accuracy.precision import relative_error
from serving.contract import PIXEL_MEAN, PIXEL_STD

LIMITS = {"float16": 8 * 2**-11, "bfloat16": 8 * 2**-8}


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("case", ["full", "padded", "batch2", "wide", "few_valid"])
def test_error_is_a_few_roundings(golden, golden_config, golden_weights, precision, case):
    reference = load_detector(golden_config, golden_weights)
    half = load_detector(golden_config, golden_weights, precision)
    pixels = torch.from_numpy(golden[f"{case}/image"])
    sizes = torch.from_numpy(golden[f"{case}/valid_hw"]).int()
    memory, half_memory = reference.encode(pixels, sizes), half.encode(pixels, sizes)
    proposals = reference.proposals(*memory).boxes
    assert relative_error(half_memory.tokens, memory.tokens) < LIMITS[precision]
    (logits, boxes), (half_logits, half_boxes) = (
        reference.decode(memory, proposals),
        half.decode(half_memory, proposals),
    )
    assert half_logits.dtype == half.dtype
    assert half_boxes.dtype == torch.float32
    assert relative_error(half_logits, logits) < LIMITS[precision]
    assert relative_error(half_boxes, boxes) < LIMITS[precision]


@pytest.mark.parametrize("precision", LIMITS)
def test_norms_and_box_heads_alone_stay_float32(golden_config, golden_weights, precision):
    half = load_detector(golden_config, golden_weights, precision)
    kept = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    names = {name for name, _ in half.named_parameters()}
    # In the channel mapper a convolution is the first of its pair, its group norm the second.
    assert kept == {name for name in names if re.search(r"norm|box_head|^neck\.(extra_)?convs\.\d+\.1\.", name)}
    assert {parameter.dtype for name, parameter in half.named_parameters() if name not in kept} == {half.dtype}
    full = dict(load_detector(golden_config, golden_weights).named_parameters())
    # exactly: they have not been rounded on the way
    assert all(torch.equal(parameter, full[name]) for name, parameter in half.named_parameters() if name in kept)
    assert half.pixel_mean.flatten().tolist() == torch.tensor(PIXEL_MEAN).tolist()
    assert half.pixel_std.flatten().tolist() == torch.tensor(PIXEL_STD).tolist()


@pytest.mark.parametrize("precision", LIMITS)
def test_batch_statistics_stay_float32(precision):
    """A variance below 1e-7 is zero in float16, and one above 65504 infinite."""
    backbone = random_detector("co_dino_r50_12e", precision=precision).backbone
    assert backbone.conv1.weight.dtype != torch.float32
    assert {buffer.dtype for buffer in backbone.buffers()} == {torch.float32}
