import itertools
import subprocess

import pytest
import torch

from builder.operators import post_attention as operator
from builder.operators import post_attention_layer
from builder.operators.linear_e4m3 import E4M3
from builder.operators.post_attention_layer import (
    Kind,
    count_bytes,
    count_numbers,
    fault_of,
    kind_of,
    pack,
    unpack,
)
from plugin_src import SOURCES
from tests.builder.operators.post_attention_inputs import COLUMNS, FORMS, HALVES, random_layer
from tests.plugin_src.host import OPTIONS, compiler


def pi(n):
    return n - n % 32 + 8 * ((n % 8) // 2) + 2 * ((n % 32) // 8) + n % 2


def sigma(p):
    return p - p % 32 + 8 * (2 * ((p % 32) // 16) + (p % 4) // 2) + 2 * ((p % 16) // 4) + p % 2


def in_tile(row, byte):
    return row * 128 + ((byte // 16) ^ (row % 8)) * 16 + byte % 16


def read(packed, piece, row, position, dtype, tile=0):
    """Return one number of a piece, by its place alone."""
    byte = piece * 16384 + tile * 8192 + in_tile(row, position * dtype.itemsize)
    return packed[byte : byte + dtype.itemsize].view(dtype)[0].float()


def test_permutations_permute_each_32():
    for permutation, ours in ((pi, post_attention_layer._pi), (sigma, post_attention_layer._sigma)):
        assert sorted(map(permutation, range(32, 64))) == list(range(32, 64))
        assert ours(torch.arange(256)).tolist() == list(map(permutation, range(256)))
    assert [pi(n) for n in range(10)] == [0, 1, 8, 9, 16, 17, 24, 25, 2, 3]
    assert [sigma(p) for p in range(20)] == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 16, 17, 24, 25]


@HALVES
def test_projections_lie_where_the_kernel_reads_them(half):
    layer = random_layer(128, half, columns=COLUMNS)
    weights, _ = pack(layer)
    following = layer.following
    sampling = torch.cat([following.offsets.weight, following.logits.weight, torch.zeros(32, 256)]).to(half)
    first_piece = {0: layer.output.weight, 8 + 8: following.value.weight, 8 + 8 + 8: sampling}
    for start, weight in first_piece.items():
        for block, s in itertools.product(range(len(weight) // 128), range(4)):
            for n, p in [(0, 0), (1, 9), (77, 63), (127, 8), (40, 31)]:
                column = 64 * s + p if start else pi(64 * s + p)
                wanted = weight[pi(128 * block + n), column]
                assert read(weights, start + 4 * block + s, n, p, half) == wanted
    assert weights.numel() == (8 + 8 + 8 + 16) * 16384 == count_bytes(kind_of(layer))


@HALVES
def test_half_precision_networks_lie_where_the_kernel_reads_them(half):
    layer = random_layer(384, half)
    weights, _ = pack(layer)
    assert weights.numel() == (8 + 3 * 8) * 16384
    for c, n, p in itertools.product(range(3), (0, 5, 127), (0, 7, 33, 63)):
        for part in range(4):
            wanted = layer.first.weight[128 * c + n, 64 * part + p]
            assert read(weights, 8 + 8 * c + part, n, p, half) == wanted
        for h, b in itertools.product(range(2), range(2)):
            wanted = layer.second.weight[pi(128 * b + n), 128 * c + 64 * h + p]
            assert read(weights, 8 + 8 * c + 4 + 2 * h + b, n, p, half) == wanted


def test_e4m3_networks_lie_where_the_kernel_reads_them():
    layer = random_layer(384, e4m3=True)
    weights, _ = pack(layer)
    assert weights.numel() == (8 + 3 * 4) * 16384
    for c, n, p, half_of_it in itertools.product(range(3), (0, 5, 127), (0, 7, 33, 127), range(2)):
        wanted = layer.first.weight[128 * c + n, 128 * half_of_it + p].float()
        assert read(weights, 8 + 4 * c + half_of_it, n, p, E4M3) == wanted
        wanted = layer.second.weight[pi(128 * half_of_it + n), 128 * c + sigma(p)].float()
        assert read(weights, 8 + 4 * c + 2 + half_of_it, n, p, E4M3) == wanted


def test_vectors_lie_one_behind_the_other():
    layer = random_layer(128, e4m3=True, columns=(64, 32))
    _, vectors = pack(layer)
    parts = [layer.output.bias, layer.norm1.weight, layer.norm1.bias, layer.first.bias, layer.second.bias]
    parts += [layer.norm2.weight, layer.norm2.bias, torch.stack(layer.scales), torch.tensor([1e-5, 1e-3, 0, 0])]
    parts += [each.bias for each in layer.following]
    wanted = torch.cat([each.float() for each in parts])
    assert torch.equal(vectors[: wanted.numel()], wanted)
    assert vectors.numel() == 6 * 256 + 128 + 8 + 256 + 128 == count_numbers(kind_of(layer))
    assert vectors[wanted.numel() :].tolist() == [0] * 32
    _, vectors = pack(random_layer(128))
    assert vectors[-8:-4].tolist() == [1, 1, 1, 1], "without E4M3"


@HALVES
@FORMS
@pytest.mark.parametrize("columns", [None, COLUMNS, (32, 32), (512, 512)])
def test_what_was_packed_comes_back(half, e4m3, columns):
    layer = random_layer(256, half, e4m3, columns)
    packed = pack(layer)
    again = unpack(*packed, kind_of(layer))
    assert kind_of(again) == kind_of(layer)
    assert all(torch.equal(a, b) for a, b in zip(pack(again), packed, strict=True))
    products = [(layer.output, again.output), (layer.first, again.first), (layer.second, again.second)]
    products += zip(layer.following, again.following, strict=True) if columns else []
    for before, after in products:
        assert after.weight.dtype == before.weight.dtype
        assert torch.equal(after.weight.float(), before.weight.float())
        assert torch.equal(after.bias, before.bias.float())


# Prints what the header says of schemas, and of sizes: hidden, E4M3, followed, offsets, logits.
HEADER_HOST = """
#include "post_attention.h"
#include <cstdio>
int main() {
    using namespace codetr;
    std::printf("%s\\n%s\\n%s\\n%s\\n", kPostAttentionName, kPostAttentionSchema, kPostAttentionFollowedName,
                kPostAttentionFollowedSchema);
    for (int hidden : {128, 1920, 2048})
        for (int e4m3 : {0, 1})
            for (int columns : {0, 32, 320}) {
                PostAttention call{};
                call.type = ElementType::kFloat16;
                call.hidden = hidden;
                call.e4m3 = e4m3;
                call.followed = columns != 0;
                call.offset_columns = columns;
                call.logit_columns = columns == 320 ? 160 : columns;
                if (findFault(call) != nullptr) return 1;
                long long const bytes = countPieces(call) * post::kPieceBytes, numbers = countNumbers(call);
                std::printf("%d %d %d %d ", hidden, e4m3, call.offset_columns, call.logit_columns);
                std::printf("%lld %lld\\n", bytes, numbers);
            }
}
"""


def test_the_header_says_the_same(tmp_path):
    (tmp_path / "host.cpp").write_text(HEADER_HOST)
    compiler(*OPTIONS, f"-I{SOURCES}", tmp_path / "host.cpp", "-o", tmp_path / "host")
    lines = subprocess.run([tmp_path / "host"], capture_output=True, text=True, check=True).stdout.splitlines()
    names = [operator.OPERATOR_NAME, operator.SCHEMA, operator.FOLLOWED_NAME, operator.FOLLOWED_SCHEMA]
    assert lines[:4] == names
    assert len(lines) == 4 + 18
    for line in lines[4:]:
        hidden, e4m3, offsets, logits, size, numbers = map(int, line.split())
        kind = Kind(torch.float16, 256, hidden, bool(e4m3), offsets, logits)
        assert (count_bytes(kind), count_numbers(kind)) == (size, numbers)


def test_a_layer_that_no_kernel_does_is_not_packed():
    layer = random_layer(192)
    with pytest.raises(RuntimeError, match="post_attention: hidden must be a multiple of 128"):
        pack(layer)


def test_kinds_tell_why_no_kernel_does_them():
    usual = Kind(torch.float16, 256, 2048, False, *COLUMNS)
    assert fault_of(usual) is None
    assert fault_of(usual._replace(offsets=0, logits=0)) is None
    assert "256 channels, got 64" in fault_of(usual._replace(width=64))
