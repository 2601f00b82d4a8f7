import math

import pytest
import torch

from builder.co_dino.proposals import ProposalHead, anchor_logits
from tests.smallest import SMALLEST

# Levels of more than 50 tokens a side have centres within 1 % of an edge; the last level's boxes are too large.
SHAPES = [(3, 120), (64, 2), (4, 5), (2, 3), (1, 2), (1, 1)]
VALID = [
    pytest.param(SHAPES, id="all valid"),
    pytest.param([(2, 90), (55, 1), (3, 4), (1, 2), (1, 1), (1, 1)], id="padded"),
]


def anchors_one_by_one(valid):
    """Each token's box cx cy w h, or None where mmdetection's `gen_encoder_output_proposals` masks it."""
    for level, ((h, w), (rows, columns)) in enumerate(zip(SHAPES, valid, strict=True)):
        side = 0.05 * 2**level
        for row in range(h):
            for column in range(w):
                box = ((column + 0.5) / columns, (row + 0.5) / rows, side, side)
                inside = all(0.01 < value < 0.99 for value in box)
                yield box if inside and row < rows and column < columns else None


@pytest.mark.parametrize("valid", VALID)
def test_anchors_equal_their_definition(valid):
    logits, mask = anchor_logits(SHAPES, torch.tensor([valid], dtype=torch.int32))
    expected = list(anchors_one_by_one(valid))
    assert mask[0].tolist() == [box is not None for box in expected]
    rows = [[math.inf] * 4 if box is None else [math.log(value / (1 - value)) for value in box] for box in expected]
    torch.testing.assert_close(logits[0], torch.tensor(rows), atol=1e-5, rtol=0)


def test_tokens_without_a_valid_box_score_as_an_empty_one():
    torch.manual_seed(0)
    head, tokens = ProposalHead(SMALLEST), sum(h * w for h, w in SHAPES)
    head.num_queries = tokens
    valid_shapes = torch.tensor([SHAPES], dtype=torch.int32)
    _, mask = anchor_logits(SHAPES, valid_shapes)
    memory = torch.randn(1, tokens, SMALLEST.embed_dim)
    proposals = head(memory, SHAPES, valid_shapes)
    read = torch.where(mask[..., None], memory, torch.zeros(()))
    expected = head.class_head(head.norm(head.proj(read)))[0, proposals.indices[0]]
    torch.testing.assert_close(proposals.logits[0], expected)
    assert (proposals.boxes[0][~mask[0, proposals.indices[0]]] == 1).all()
