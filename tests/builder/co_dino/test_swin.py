import pytest
import torch
import torch.nn.functional as F

from builder.co_dino.config import SwinConfig
from builder.co_dino.swin import (
    PatchMerging,
    SwinTransformer,
    merge_windows,
    partition_windows,
    relative_position_index,
    shifted_region_bias,
)


def test_windows_come_back():
    x = torch.randn(2, 6, 9, 4)
    windows = partition_windows(x, 3)
    assert windows.shape == (2, 6, 9, 4)
    assert torch.equal(windows[1, 4], x[1, 3:6, 3:6].reshape(9, 4))
    assert torch.equal(merge_windows(windows, 6, 9), x)


@pytest.mark.parametrize("window", [2, 3, 7, 12])
def test_relative_position_index_numbers_offsets_row_by_row(window):
    index = relative_position_index(window)
    for a, b in ((0, 0), (0, window**2 - 1), (window**2 - 1, 0), (1, window)):
        dy, dx = a // window - b // window, a % window - b % window
        assert index[a, b] == (dy + window - 1) * (2 * window - 1) + dx + window - 1


@pytest.mark.parametrize(("h", "w", "window"), [(8, 12, 4), (7, 5, 4), (3, 3, 4), (13, 6, 5)])
def test_shifted_regions_equal_a_painted_map(h, w, window):
    """Paint the nine regions of the padded map as slices, cut it into windows, compare every pair."""
    padded_h, padded_w = h + -h % window, w + -w % window
    regions = torch.zeros(1, padded_h, padded_w, 1)
    cuts = (slice(0, -window), slice(-window, -(window // 2)), slice(-(window // 2), None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
        regions[:, rows, columns] = number
    tokens = partition_windows(regions, window)[0, :, :, 0]
    expected = torch.where(tokens[:, None, :] == tokens[:, :, None], 0.0, -100.0)
    assert torch.equal(shifted_region_bias(h, w, window, torch.device("cpu"))[:, 0], expected)


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
