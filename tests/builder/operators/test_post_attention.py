import itertools
import math
import shutil
import subprocess
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from builder.operators import post_attention as operator
from builder.operators.cuda import load_cuda_operator
from builder.operators.linear_e4m3 import E4M3, E4M3_MAX, to_e4m3
from builder.operators.post_attention import (
    Following,
    Kind,
    Layer,
    Norm,
    Product,
    Scales,
    count_bytes,
    count_numbers,
    kind_of,
    pack,
    post_attention,
    post_attention_followed,
    unpack,
)
from builder.pipeline.export import decompose_operator, uses_operator
from plugin_src import SOURCES
from tests.markers import missing

HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
FORMS = pytest.mark.parametrize("e4m3", [False, True], ids=["half", "E4M3"])
FOLLOWED = pytest.mark.parametrize("followed", [False, True], ids=["last", "followed"])
COLUMNS = (320, 160)  # of offsets and logits: Co-DINO's
# Relative error of the worst row against float64 on the same inputs: rounding of what lies between, and of the result.
# PyTorch's plain implementation reaches a third of them, and with E4M3 two thirds.
LIMITS = {torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
LIMIT_E4M3 = 7e-2  # two roundings to three bits, of a branch that is about as large as the residual
NAMES = ("tokens", "value", "offsets", "logits")


def product(out, columns, half, device, std=1.0):
    weight = torch.randn(out, columns, device=device) * std / columns**0.5
    return Product(weight.to(half), torch.randn(out, device=device).to(half) * 0.1)


def norm(device, eps=1e-5):
    return Norm(1 + 0.1 * torch.randn(256, device=device), 0.1 * torch.randn(256, device=device), eps)


def in_e4m3(made):
    scale = made.weight.float().abs().amax() / E4M3_MAX
    return Product(to_e4m3(made.weight.float() / scale), made.bias), scale


def random_layer(hidden=256, half=torch.float16, e4m3=False, columns=None, device="cpu"):
    """Return a layer, followed if there are `columns`."""
    first, second, scales = product(hidden, 256, half, device), product(256, hidden, half, device, 1.5), None
    if e4m3:
        x_scale, hidden_scale = (torch.tensor(each / E4M3_MAX, device=device) for each in (5.0, 4.0))
        (first, scale1), (second, scale2) = in_e4m3(first), in_e4m3(second)
        scales = Scales(1 / x_scale, x_scale * scale1, 1 / hidden_scale, hidden_scale * scale2)
    following = columns and Following(*(product(each, 256, half, device) for each in (256, *columns)))
    output = product(256, 256, half, device)
    return Layer(output, norm(device), first, second, norm(device, 1e-3), scales, following)


def random_tokens(rows, half, device="cpu"):
    """Return `attended`, `residual` and `position`."""
    return [torch.randn(rows, 256, device=device).to(half) for _ in range(3)]


def run(layer, inputs, packed=None):
    """Return what the operator that does `layer` returns, as a list."""
    kind, packed = kind_of(layer), packed or pack(layer)
    if layer.following is None:
        return [post_attention(*inputs[:2], *packed, kind.hidden, kind.e4m3)]
    return list(post_attention_followed(*inputs, *packed, kind.hidden, kind.e4m3, kind.offsets, kind.logits))


def exact(layer, inputs, rounded=None):
    """Compute a layer in float64; E4M3 numbers are `rounded`, where that is given."""

    def times(x, product):
        return x @ product.weight.double().t() + product.bias.double()

    def normed(x, norm):
        return F.layer_norm(x, (256,), norm.weight.double(), norm.bias.double(), float(norm.eps))

    attended, residual, position = (each.double() for each in inputs)
    x = normed(residual + times(attended, layer.output), layer.norm1)
    if layer.scales is None:
        y = times(F.relu(times(x, layer.first)), layer.second)
    else:
        x_factor, first, hidden_factor, second = (each.double() for each in layer.scales)
        units = (rounded or (lambda each: each))(x * x_factor)
        hidden = F.relu(first * (units @ layer.first.weight.double().t()) + layer.first.bias.double())
        units = (rounded or (lambda each: each))(hidden * hidden_factor)
        y = second * (units @ layer.second.weight.double().t()) + layer.second.bias.double()
    tokens = normed(x + y, layer.norm2)
    if layer.following is None:
        return [tokens]
    value, offsets, logits = layer.following
    return [tokens, times(tokens, value), times(tokens + position, offsets), times(tokens + position, logits)]


def nearest_e4m3(x):
    return to_e4m3(x.float()).double()


def errors(out, wanted):
    """Return the relative error of the worst row of each tensor."""
    pairs = zip(out, wanted, strict=True)
    return [float(((a.double() - b).norm(dim=1) / b.norm(dim=1)).max()) for a, b in pairs]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# ---- Packing ----


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
    for permutation, ours in ((pi, operator._pi), (sigma, operator._sigma)):
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
                wanted = weight[pi(128 * block + n), pi(64 * s + p)]
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


def test_packing_a_real_layer_takes_no_time():
    layer = random_layer(2048, columns=COLUMNS)
    pack(layer)
    start = time.perf_counter()
    pack(layer)
    assert time.perf_counter() - start < 1  # about 0.03 s


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
    if not shutil.which("g++"):
        missing("needs g++")
    (tmp_path / "host.cpp").write_text(HEADER_HOST)
    command = ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{SOURCES}", "host.cpp", "-o", "host"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = subprocess.run([tmp_path / "host"], capture_output=True, text=True, check=True).stdout.splitlines()
    names = [operator.OPERATOR_NAME, operator.SCHEMA, operator.FOLLOWED_NAME, operator.FOLLOWED_SCHEMA]
    assert lines[:4] == names
    assert len(lines) == 4 + 18
    for line in lines[4:]:
        hidden, e4m3, offsets, logits, size, numbers = map(int, line.split())
        kind = Kind(torch.float16, 256, hidden, bool(e4m3), offsets, logits)
        assert (count_bytes(kind), count_numbers(kind)) == (size, numbers)


# ---- The implementation of every device ----


@HALVES
@FORMS
@FOLLOWED
@pytest.mark.parametrize("rows", [1, 200])
def test_agrees_with_float64(half, e4m3, followed, rows):
    layer = random_layer(256, half, e4m3, COLUMNS if followed else None)
    inputs = random_tokens(rows, half)
    out = run(layer, inputs)
    assert [each.shape for each in out] == [(rows, each) for each in (256, 256, *COLUMNS)][: len(out)]
    assert {each.dtype for each in out} == {half}
    for name, error in zip(NAMES, errors(out, exact(layer, inputs)), strict=False):
        assert error < (LIMIT_E4M3 if e4m3 else LIMITS[half]), name


def test_e4m3_rounds_where_it_should_and_saturates():
    """Against float64 with the same two roundings nearly all of E4M3's error is gone."""
    layer, inputs = random_layer(256, e4m3=True), random_tokens(300, torch.float16)
    median = [
        float(((run(layer, inputs)[0].double() - each).norm(dim=1) / each.norm(dim=1)).median())
        for each in (exact(layer, inputs, nearest_e4m3)[0], exact(layer, inputs)[0])
    ]
    assert median[0] < 1e-3 < 1e-2 < median[1]
    scales = layer.scales
    too_fine = layer._replace(scales=scales._replace(x_factor=scales.x_factor * 9, first=scales.first / 9))
    assert run(too_fine, inputs)[0].isfinite().all()
    assert errors(run(too_fine, inputs), exact(too_fine, inputs, nearest_e4m3))[0] < 2e-2


def test_no_rows_give_no_rows():
    layer = random_layer(columns=COLUMNS)
    assert [tuple(each.shape) for each in run(layer, random_tokens(0, torch.float16))] == [
        (0, each) for each in (256, 256, *COLUMNS)
    ]


HALF = torch.float16
PACKED = "must be {} numbers of {}, as pack returns them"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"attended": torch.zeros(3, 2, 256).half()}, "attended must be a matrix", id="axes"),
        pytest.param({"attended": torch.zeros(3, 256)}, "attended must be float16 or bfloat16", id="type"),
        pytest.param({"attended": torch.zeros(3, 128).half()}, "tokens must have 256 channels, got 128", id="width"),
        pytest.param({"residual": torch.zeros(4, 256).half()}, "residual must have the type and shape", id="residual"),
        pytest.param({"position": torch.zeros(3, 256)}, "position must have the type and shape", id="position"),
        pytest.param({"hidden": 192}, "hidden must be a multiple of 128 from 128 to 2048", id="hidden"),
        pytest.param({"hidden": 0}, "hidden must be a multiple of 128 from 128 to 2048", id="no hidden"),
        pytest.param({"hidden": 2176}, "hidden must be a multiple of 128 from 128 to 2048", id="wide"),
        pytest.param({"hidden": 256}, "weights must be .* numbers of uint8, as pack returns them", id="other hidden"),
        pytest.param({"e4m3": True}, "weights must be .* numbers of uint8, as pack returns them", id="other form"),
        pytest.param({"vectors": torch.zeros(8)}, "vectors must be .* numbers of float32", id="vectors"),
        pytest.param({"vectors": torch.zeros(2312).half()}, "vectors must be .* numbers of float32", id="their type"),
        pytest.param({"offsets": 48}, "offsets and logits must be multiples of 32 from 32 to 1024", id="offsets"),
        pytest.param({"logits": 0}, "offsets and logits must be multiples of 32 from 32 to 1024", id="no logits"),
        pytest.param({"offsets": 0, "logits": 0}, "offsets and logits must be multiples of 32", id="neither"),
        pytest.param({"offsets": 1024}, "offsets and logits must be 1024 columns at most", id="many columns"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_misfits_are_refused(device, changes, message):
    weights, vectors = pack(random_layer(128, columns=COLUMNS))
    arguments = dict(zip(("attended", "residual", "position"), random_tokens(3, HALF), strict=True))
    arguments |= {"weights": weights, "vectors": vectors, "hidden": 128, "e4m3": False}
    arguments |= {"offsets": 320, "logits": 160} | changes
    moved = [each.to(device) if isinstance(each, torch.Tensor) else each for each in arguments.values()]
    with pytest.raises(RuntimeError, match=f"^post_attention_followed: {message}"):
        post_attention_followed(*moved)
    if changes.keys() & {"position", "offsets", "logits"}:
        return
    weights, vectors = pack(random_layer(128))
    last = {"weights": weights, "vectors": vectors} | changes
    last = arguments | last
    moved = [last[key] for key in ("attended", "residual", "weights", "vectors", "hidden", "e4m3")]
    moved = [each.to(device) if isinstance(each, torch.Tensor) else each for each in moved]
    with pytest.raises(RuntimeError, match=f"^post_attention: {message}"):
        post_attention(*moved)


def test_a_layer_that_no_kernel_does_is_not_packed():
    layer = random_layer(192)
    with pytest.raises(RuntimeError, match="post_attention: hidden must be a multiple of 128"):
        pack(layer)


@FORMS
def test_opcheck(e4m3):
    layer = random_layer(128, e4m3=e4m3, columns=(32, 32))
    arguments = (*random_tokens(5, HALF), *pack(layer), 128, e4m3, 32, 32)
    torch.library.opcheck(torch.ops.codetr.post_attention_followed.default, arguments)
    weights, vectors = pack(layer._replace(following=None))
    torch.library.opcheck(torch.ops.codetr.post_attention.default, (*arguments[:2], weights, vectors, 128, e4m3))


class Tail(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.kind = kind_of(layer)
        weights, vectors = pack(layer)
        self.register_buffer("weights", weights)
        self.register_buffer("vectors", vectors)

    def forward(self, attended, residual, position):
        _, _, hidden, e4m3, offsets, logits = self.kind
        packed = (self.weights, self.vectors, hidden, e4m3)
        if not offsets:
            return [post_attention(attended * 1, residual, *packed) + 1]
        return [each + 1 for each in post_attention_followed(attended, residual, position, *packed, offsets, logits)]


@FORMS
@FOLLOWED
def test_a_program_with_it_alone_wants_the_library_and_can_do_without(e4m3, followed):
    tail = Tail(random_layer(128, e4m3=e4m3, columns=(64, 32) if followed else None))
    inputs = random_tokens(7, HALF)
    program = torch.export.export(tail, tuple(inputs), strict=True)
    assert uses_operator(program)
    written_out = decompose_operator(program)
    assert not uses_operator(written_out)
    expected = tail(*inputs)
    for each in (program, written_out):
        for a, b in zip(each.module()(*inputs), expected, strict=True):
            assert torch.equal(a, b)


# ---- On a GPU ----

# Around a tile of 128 rows and a pair of them, and the tokens of 608x608 and 768x1152.
ROWS = (1, 64, 127, 128, 129, 255, 257, 1000, 30785, 73656)
CHECKED = 2000  # rows, of many


@pytest.fixture(scope="module")
def cuda():
    load_cuda_operator()
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    return torch.device("cuda")


def assert_close(layer, inputs, out, half, e4m3):
    """Look at some rows, the first and the last among them."""
    rows = len(inputs[0])
    chosen = torch.randint(rows, (CHECKED,), device=inputs[0].device) if rows > CHECKED else torch.arange(rows)
    chosen[:1], chosen[-1:] = 0, rows - 1
    chosen = chosen.to(inputs[0].device)
    some = [each[chosen] for each in inputs]
    for name, error in zip(NAMES, errors([each[chosen] for each in out], exact(layer, some)), strict=False):
        assert error < (LIMIT_E4M3 if e4m3 else LIMITS[half]), name
    if e4m3:  # but for rows where a sum of another order rounds to the next number
        out, wanted = out[0][chosen].double(), exact(layer, some, nearest_e4m3)[0]
        assert float(((out - wanted).norm(dim=1) / wanted.norm(dim=1)).median()) < 3 * LIMITS[half]


@pytest.mark.gpu
@HALVES
@FORMS
@FOLLOWED
@pytest.mark.parametrize("rows", ROWS)
def test_agrees_with_float64_on_a_gpu(cuda, half, e4m3, followed, rows):
    layer = random_layer(2048, half, e4m3, COLUMNS if followed else None, cuda)
    inputs, packed = random_tokens(rows, half, cuda), pack(layer)
    out = run(layer, inputs, packed)
    assert_close(layer, inputs, out, half, e4m3)
    for _ in range(2):
        again = run(layer, inputs, packed)
        assert all(torch.equal(a, b) for a, b in zip(out, again, strict=True)), "the same twice, to the bit"


@pytest.mark.gpu
@HALVES
@FORMS
@pytest.mark.parametrize("hidden", [128, 256, 1024, 1920])
@pytest.mark.parametrize("columns", [(32, 32), (64, 96), (128, 128), (512, 512), (992, 32)])
def test_agrees_with_float64_at_other_widths(cuda, half, e4m3, hidden, columns):
    layer = random_layer(hidden, half, e4m3, columns, cuda)
    inputs = random_tokens(300, half, cuda)
    assert_close(layer, inputs, run(layer, inputs), half, e4m3)


@pytest.mark.gpu
@HALVES
@FORMS
@FOLLOWED
def test_nothing_is_written_beside_the_results(cuda, half, e4m3, followed):
    """Rows behind the last one of a part of a tensor stay as they are, and what lies there is not read."""
    layer = random_layer(256, half, e4m3, COLUMNS if followed else None, cuda)
    inputs = random_tokens(129 + 128, half, cuda)
    for each in inputs:
        each[129:] = math.nan
    out = run(layer, [each[:129] for each in inputs])
    assert all(each.isfinite().all() for each in out)
    assert_close(layer, [each[:129] for each in inputs], out, half, e4m3)


@pytest.mark.gpu
@FORMS
@FOLLOWED
def test_same_result_from_a_cuda_graph_and_on_another_stream(cuda, e4m3, followed):
    layer = random_layer(2048, HALF, e4m3, COLUMNS if followed else None, cuda)
    inputs, other, packed = random_tokens(3000, HALF, cuda), random_tokens(3000, HALF, cuda), pack(layer)
    expected, expected_of_other = run(layer, inputs, packed), run(layer, other, packed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(layer, inputs, packed)
    for wanted, given in ((expected, inputs), (expected_of_other, other)):
        for a, b in zip(inputs, given, strict=True):
            a.copy_(b)
        for each in out:
            each.fill_(127)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(out, wanted, strict=True))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        assert all(torch.equal(a, b) for a, b in zip(run(layer, other, packed), expected_of_other, strict=True))


@pytest.mark.gpu
def test_strides_and_no_rows_on_a_gpu(cuda):
    layer = random_layer(256, HALF, columns=COLUMNS, device=cuda)
    inputs, packed = random_tokens(300, HALF, cuda), pack(layer)
    expected = run(layer, inputs, packed)
    strided = [each.t().contiguous().t() for each in inputs]
    assert all(torch.equal(a, b) for a, b in zip(run(layer, strided, packed), expected, strict=True))
    assert [len(each) for each in run(layer, [each[:0] for each in inputs], packed)] == [0] * 4


@pytest.mark.gpu
def test_misfits_are_refused_on_a_gpu(cuda):
    weights, vectors = pack(random_layer(128, columns=COLUMNS, device=cuda))
    x, residual, position = random_tokens(3, HALF, cuda)
    good = {
        "attended": x, "residual": residual, "position": position, "weights": weights, "vectors": vectors,
        "hidden": 128, "e4m3": False, "offsets": 320, "logits": 160,
    }  # fmt: skip  # names and values side by side
    for changes, message in [
        ({"attended": x.float()}, "attended must be float16 or bfloat16"),
        ({"attended": x[:, :128]}, "tokens must have 256 channels"),
        ({"attended": x[0]}, "attended must be a matrix"),
        ({"residual": residual[:2]}, "residual must have the type and shape of attended"),
        ({"position": position.bfloat16()}, "position must have the type and shape of attended"),
        ({"position": position.cpu()}, "position must lie on the device of attended"),
        ({"weights": weights[1:]}, "weights must be .* numbers of uint8"),
        ({"vectors": vectors.half()}, "vectors must be .* numbers of float32"),
        ({"vectors": vectors.cpu()}, "vectors must lie on the device of attended"),
        ({"hidden": 192}, "hidden must be a multiple of 128"),
        ({"offsets": 48}, "offsets and logits must be multiples of 32"),
        ({"offsets": 1024}, "offsets and logits must be 1024 columns at most"),
    ]:
        with pytest.raises(RuntimeError, match=f"post_attention_followed: {message}"):
            torch.ops.codetr.post_attention_followed(*(good | changes).values())


@pytest.mark.gpu
@FORMS
@FOLLOWED
@pytest.mark.parametrize("way", ["export", "aot"])
def test_same_result_exported(cuda, tmp_path, way, e4m3, followed):
    tail = Tail(random_layer(256, HALF, e4m3, COLUMNS if followed else None, cuda)).eval()
    inputs = tuple(random_tokens(300, HALF, cuda))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compilers warn about their own deprecated calls
        program = torch.export.export(tail, inputs)
        if way == "export":
            out = program.module()(*inputs)
        else:
            package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "tail.pt2"))
            out = torch._inductor.aoti_load_package(package)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(out, tail(*inputs), strict=True))


def test_kinds_tell_why_no_kernel_does_them():
    usual = Kind(HALF, 256, 2048, False, *COLUMNS)
    assert operator.fault_of(usual) is None
    assert operator.fault_of(usual._replace(offsets=0, logits=0)) is None
    assert "256 channels, got 64" in operator.fault_of(usual._replace(width=64))
