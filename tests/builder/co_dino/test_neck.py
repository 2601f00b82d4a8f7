"""Two extra levels, for the golden network has one."""

import torch
import torch.nn.functional as F

from builder.co_dino.neck import ChannelMapper


def test_the_first_extra_level_reads_the_last_map_and_the_next_reads_that_level():
    torch.manual_seed(0)
    neck = ChannelMapper((6, 10), embed_dim=8, num_levels=4, num_groups=2)
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter)
    weights = dict(neck.named_parameters())

    def conv_norm(name, x, **options):
        x = F.conv2d(x, weights[f"{name}.0.weight"], **options)
        return F.group_norm(x, 2, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"], eps=1e-5)

    maps = [torch.randn(2, 6, 14, 11), torch.randn(2, 10, 7, 6)]
    first = conv_norm("extra_convs.0", maps[1], stride=2, padding=1)
    second = conv_norm("extra_convs.1", first, stride=2, padding=1)
    expected = [conv_norm("convs.0", maps[0]), conv_norm("convs.1", maps[1]), first, second]
    torch.testing.assert_close(neck(maps), expected)
    assert [tuple(level.shape[2:]) for level in expected] == [(14, 11), (7, 6), (4, 3), (2, 2)]
