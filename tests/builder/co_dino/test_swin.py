import pytest
import torch
import torch.nn.functional as F

from builder.co_dino.config import SwinConfig
from builder.co_dino.swin import PatchMerging, SwinTransformer


@pytest.mark.parametrize(("h", "w"), [(4, 6), (5, 3)], ids=["even", "odd"])
def test_patch_merging_equals_unfold(h, w):
    merging = PatchMerging(8)
    x = torch.randn(2, h, w, 8)
    maps = F.pad(x.permute(0, 3, 1, 2), (0, w % 2, 0, h % 2))
    patches = F.unfold(maps, 2, stride=2).transpose(1, 2)
    expected = merging.reduction(merging.norm(patches)).unflatten(1, (-(-h // 2), -(-w // 2)))
    torch.testing.assert_close(merging(x), expected)


@pytest.mark.parametrize(
    ("size", "window", "out_indices"), [((70, 101), 7, (0, 1, 2, 3)), ((33, 35), 5, (1, 3))], ids=["odd", "two maps"]
)
def test_output_shapes(size, window, out_indices):
    backbone = SwinTransformer(SwinConfig(12, (1, 2, 1, 1), (1, 2, 3, 6), window, 2, out_indices=out_indices))
    outputs = backbone(torch.randn(1, 3, *size))
    h, w = -(-size[0] // 4), -(-size[1] // 4)
    shapes = {i: (1, 12 * 2**i, -(-h // 2**i), -(-w // 2**i)) for i in range(4)}
    assert [tuple(out.shape) for out in outputs] == [shapes[i] for i in out_indices]
