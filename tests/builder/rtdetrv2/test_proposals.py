import pytest
import torch

from builder.rtdetrv2.proposals import INVALID_LOGIT, anchor_logits, best_tokens

LOGITS = torch.tensor([[[0.0, 9.0], [8.0, 7.0], [6.0, 1.0]]])  # three tokens, two classes


@pytest.mark.parametrize(
    ("logits", "selection", "expected"),
    [
        pytest.param(LOGITS, "default", [0, 1], id="by the best class"),
        pytest.param(LOGITS, "one2many", [0, 1, 1, 2], id="a token once a class"),
        pytest.param(LOGITS[..., :1], "agnostic", [1, 2, 0], id="by one score"),
    ],
)
def test_best_tokens(logits, selection, expected):
    assert best_tokens(logits, len(expected), selection).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invalid_anchors_are_finite_and_the_whole_picture_whatever_a_head_adds(dtype):
    logits, valid = anchor_logits([(60, 60)], torch.device("cpu"), dtype)
    assert logits.dtype == dtype
    assert (~valid).sum() == 4 * 59  # the ring of cells at the border
    assert logits.isfinite().all()
    assert (torch.sigmoid(logits[0, ~valid] - 1000) == 1).all()
    assert torch.tensor(INVALID_LOGIT).half().isfinite()
