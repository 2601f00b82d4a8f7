import pytest
import torch

from builder.parts.boxes import cxcywh_to_xyxy, inverse_sigmoid


def test_the_logit_is_limited_as_mmdetection_does():
    """No share, and no rest of a share to 1, counts as less than 1e-3; log(1000) is 6.907755."""
    shares = torch.tensor([-0.5, 0, 5e-4, 0.25, 0.5, 0.9995, 1, 1.5], dtype=torch.float64)
    expected = [-6.907755, -6.907755, -6.907255, -1.098612, 0, 6.907255, 6.907755, 6.907755]
    torch.testing.assert_close(inverse_sigmoid(shares), torch.tensor(expected).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.002, 0.3, 0.97])
def test_the_logit_undoes_the_sigmoid(share):
    assert torch.sigmoid(inverse_sigmoid(torch.tensor(share, dtype=torch.float64))).item() == pytest.approx(share)


def test_centre_and_size_become_corners():
    boxes = cxcywh_to_xyxy(torch.tensor([[[0.5, 0.25, 0.5, 0.125]]]))
    assert boxes.tolist() == [[[0.25, 0.1875, 0.75, 0.3125]]]
