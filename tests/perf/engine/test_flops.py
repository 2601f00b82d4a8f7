from __future__ import annotations

import pytest

pytest.importorskip("torch")

from builder.pipeline.export import InputSpec  # after the check for torch
from perf.engine.flops import SAMPLE_FLOPS, TOTAL, count_flops, ms_deform_attn_flops, window_attention_flops
from tests.perf.engine.cases import SMALL


def test_flops_of_the_operator_and_of_a_batch() -> None:
    shapes = ([2, 50, 8, 32], [2, 7, 5, 2], [2, 7, 8, 5, 4, 2], [2, 7, 8, 5, 4])
    assert ms_deform_attn_flops(*shapes, None, None, out_shape=[2, 7, 256]) == SAMPLE_FLOPS * 2 * 7 * 8 * 5 * 4 * 32
    # Two windows high and three wide, of 49 tokens with 64 channels; each pair of them is multiplied twice.
    window = window_attention_flops([3, 8, 15, 3 * 64], None, [169, 2], 7, 3, out_shape=[3, 8, 15, 64])
    assert window == 3 * (2 * 3) * (49 * 49 * 64) * 2 * 2
    one, two = (count_flops(SMALL, InputSpec(64, 96, batch)) for batch in (1, 2))
    assert {name: 2 * flops for name, flops in one.items()} == two
    assert {"backbone", "neck", "encoder", "proposals", "decoder"} < set(one)
    # The last box head belongs to no part: two hidden layers of 32 and one of 4, for 20 queries.
    assert one[TOTAL] - sum(flops for name, flops in one.items() if name != TOTAL) == 2 * 20 * (32 * 32 * 2 + 32 * 4)
