import warnings

import pytest
import torch
import torch.nn.functional as F

from builder.operators.cuda import load_cuda_operator
from builder.operators.window_attention import (
    has_kernel,
    merge_windows,
    partition_windows,
    reference_window_attention,
    region_bias,
    relative_position_index,
    window_attention,
)
from builder.pipeline.export import decompose_attention, uses_operator

OPERATOR = torch.ops.codetr.window_attention.default
CPU = torch.device("cpu")
# Relative error against float64 that the operator promises.
LIMITS = {torch.float16: 5e-4, torch.bfloat16: 4e-3}


def random_inputs(sizes, window, bias=True, dtype=torch.float64, device="cpu", dim=32):
    """Return a projection's output, its bias, and a table of position biases that matters."""
    batch, height, width, heads = sizes
    channels = 3 * heads * dim
    qkv = torch.randn(batch, height, width, channels, device=device).to(dtype)
    table = torch.randn((2 * window - 1) ** 2, heads, device=device).to(dtype)
    return qkv, torch.randn(channels, device=device).to(dtype) if bias else None, table


def test_windows_come_back():
    x = torch.randn(2, 6, 9, 4)
    windows = partition_windows(x, 3)
    assert windows.shape == (2, 6, 9, 4)
    assert torch.equal(windows[1, 4], x[1, 3:6, 3:6].reshape(9, 4))
    assert torch.equal(merge_windows(windows, 6, 9), x)


@pytest.mark.parametrize("window", [2, 3, 7, 12])
def test_relative_position_index_numbers_offsets_row_by_row(window):
    index = relative_position_index(window, CPU)
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
    assert torch.equal(region_bias(h, w, window, window // 2, CPU)[:, 0], expected)


def mmdetection_block(qkv, qkv_bias, table, window, shift):
    """Attend as mmdetection's `ShiftWindowMSA` does, one window of one image and head after the other."""
    batch, height, width, channels = qkv.shape
    heads, channels = table.shape[1], channels // 3
    padded = torch.zeros(batch, height + -height % window, width + -width % window, 3 * channels, dtype=qkv.dtype)
    padded += 0 if qkv_bias is None else qkv_bias  # zero tokens, projected
    padded[:, :height, :width] = qkv
    regions = torch.zeros(padded.shape[1:3])
    if shift:
        cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
            regions[rows, columns] = number
        padded = torch.roll(padded, (-shift, -shift), (1, 2))
    out = torch.zeros(*padded.shape[:3], channels, dtype=qkv.dtype)
    bias = table[relative_position_index(window, CPU).flatten()].view(window**2, window**2, heads)
    for y in range(0, padded.shape[1], window):
        for x in range(0, padded.shape[2], window):
            tokens = padded[:, y : y + window, x : x + window].reshape(batch, window**2, 3, heads, -1)
            region = regions[y : y + window, x : x + window].flatten()
            strangers = -100.0 * (region[:, None] != region[None, :])
            for head in range(heads):
                query, key, value = tokens[:, :, :, head].unbind(2)
                scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 + bias[:, :, head] + strangers
                part = (F.softmax(scores, -1) @ value).reshape(batch, window, window, -1)
                width_of_head = part.shape[-1]
                out[:, y : y + window, x : x + window, head * width_of_head : (head + 1) * width_of_head] = part
    return torch.roll(out, (shift, shift), (1, 2))[:, :height, :width]


@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        pytest.param((2, 8, 12, 2), 4, id="whole windows"),
        pytest.param((1, 7, 9, 3), 4, id="padded on both sides"),
        pytest.param((1, 3, 2, 1), 5, id="less than a window"),
        pytest.param((1, 15, 7, 2), 7, id="window of 7"),
        pytest.param((1, 12, 13, 1), 12, id="window of 12"),
    ],
)
@pytest.mark.parametrize("shifted", [False, True], ids=["regular", "shifted"])
@pytest.mark.parametrize("bias", [False, True], ids=["zeros in the padding", "bias in the padding"])
def test_the_reference_is_mmdetections_block(sizes, window, shifted, bias):
    inputs = random_inputs(sizes, window, bias=bias, dim=8)
    shift = window // 2 if shifted else 0
    expected = mmdetection_block(*inputs, window, shift)
    torch.testing.assert_close(window_attention(*inputs, window, shift), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [0, 1])  # shifted, the padding of this map has windows and regions of its own
def test_gradients_are_right(shift, bias):
    inputs = random_inputs((1, 3, 4, 2), 2, bias=bias, dim=2)
    leaves = [tensor if tensor is None else tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *tensors: window_attention(*tensors, 2, shift), leaves)


def test_passes_opcheck():
    inputs = [tensor.requires_grad_() for tensor in random_inputs((1, 5, 4, 1), 3, dtype=torch.float32, dim=4)]
    torch.library.opcheck(
        OPERATOR, (*inputs, 3, 1), test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"qkv": torch.ones(2, 4, 96)}, "qkv must have 4 axes, got 3", id="axes"),
        pytest.param({"qkv": torch.ones(1, 4, 4, 100)}, "100 channels are no three times 1 heads", id="channels"),
        pytest.param({"bias_table": torch.ones(49)}, "bias_table must have 2 axes, got 1", id="table's axes"),
        pytest.param({"bias_table": torch.ones(50, 1)}, "bias_table must have 49 rows, got 50", id="rows"),
        pytest.param({"qkv_bias": torch.ones(95)}, r"qkv_bias must have shape \(96,\)", id="bias"),
        pytest.param({"window_size": 0}, "window_size must be at least 1, got 0", id="no window"),
        pytest.param({"shift": 4}, "less than window_size, got 4", id="shift"),
        pytest.param({"shift": -1}, "shift must be at least 0", id="negative shift"),
    ],
)
def test_misfits_are_refused(change, message):
    usual = {
        "qkv": torch.ones(1, 4, 4, 96),
        "qkv_bias": None,
        "bias_table": torch.ones(49, 1),
        "window_size": 4,
        "shift": 0,
    }
    with pytest.raises(RuntimeError, match=f"window_attention: .*{message}"):
        window_attention(**{**usual, **change})


@pytest.mark.parametrize(
    ("dtype", "table_dtype", "window", "dim", "expected"),
    [
        pytest.param(torch.float16, torch.float16, 12, 32, True, id="Swin-L"),
        pytest.param(torch.bfloat16, torch.bfloat16, 7, 32, True, id="Swin-T"),
        pytest.param(torch.float32, torch.float32, 12, 32, False, id="float32"),
        pytest.param(torch.float16, torch.float32, 12, 32, False, id="autocast"),
        pytest.param(torch.float16, torch.float16, 8, 32, False, id="another window"),
        pytest.param(torch.float16, torch.float16, 12, 64, False, id="wider heads"),
    ],
)
def test_the_kernel_is_for_the_published_models_in_half_precision(dtype, table_dtype, window, dim, expected):
    qkv, table = (
        torch.empty(1, 2, 2, 3 * 2 * dim, dtype=dtype),
        torch.empty((2 * window - 1) ** 2, 2, dtype=table_dtype),
    )
    assert has_kernel(qkv, table, window) is expected


class Layer(torch.nn.Module):
    """Window attention with and without a shift."""

    def __init__(self, window):
        super().__init__()
        self.window = window

    def forward(self, qkv, qkv_bias, table):
        out = window_attention(qkv * 2, qkv_bias, table, self.window, 0)
        return out + window_attention(qkv, qkv_bias, table, self.window, self.window // 2)


def test_an_export_has_it_as_a_node_that_can_be_written_out():
    inputs = random_inputs((1, 5, 9, 2), 4, dtype=torch.float32, dim=8)
    program = torch.export.export(Layer(4), inputs, strict=True)
    assert [node.target for node in program.graph.nodes].count(OPERATOR) == 2
    assert uses_operator(program)
    plain = decompose_attention(program)
    assert not uses_operator(plain)
    assert decompose_attention(plain) is plain, "nothing to do"
    torch.testing.assert_close(plain.module()(*inputs), Layer(4)(*inputs))


def count(program):
    return [node.target for node in program.graph.nodes].count(OPERATOR)


class Two(torch.nn.Module):
    """Windows that the kernel has, and others."""

    def forward(self, qkv, qkv_bias, table, other_table):
        ours = window_attention(qkv, qkv_bias, table, 7, 3)
        return ours, window_attention(qkv, None, other_table, 5, 2)


def test_what_the_plugin_does_stays_a_node_unless_it_is_to_be_written_out():
    inputs = (
        *random_inputs((1, 6, 9, 2), 7, dtype=torch.float16),
        random_inputs((1, 1, 1, 2), 5, dtype=torch.float16)[2],
    )
    program = torch.export.export(Two(), inputs, strict=True)
    kept, written_out = decompose_attention(program), decompose_attention(program, window_plugin=False)
    assert (count(program), count(kept), count(written_out)) == (2, 1, 0)
    assert decompose_attention(kept) is kept, "nothing to do"
    assert uses_operator(kept)
    for each in (kept, written_out):
        torch.testing.assert_close(each.module()(*inputs), Two()(*inputs))


# ---- On a GPU ----


@pytest.fixture(scope="module")
def cuda():
    load_cuda_operator()
    return torch.device("cuda")


def relative_error(inputs, window, shift):
    qkv, qkv_bias, table = inputs
    wide = [None if tensor is None else tensor.double() for tensor in inputs]
    exact = reference_window_attention(*wide, window, shift)
    torch.full_like(exact, float("nan"), dtype=qkv.dtype)  # in the memory that the result gets
    out = window_attention(qkv, qkv_bias, table, window, shift)
    return float((out.double() - exact).norm() / exact.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LIMITS, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 12, 12, 1), id="one window, or padded"),
        pytest.param((2, 84, 84, 3), id="whole windows of both"),
        pytest.param((3, 25, 33, 4), id="padded on both sides"),
        pytest.param((2, 5, 3, 2), id="less than a window"),
        pytest.param((1, 1, 40, 6), id="one row"),
        pytest.param((1, 152, 152, 6), id="608x608"),
        pytest.param((1, 24, 36, 48), id="last stage of 1152x768"),
    ],
)
@pytest.mark.parametrize("shift", [0, 1, 3, 6])
@pytest.mark.parametrize("bias", [False, True], ids=["zeros", "bias"])
def test_agrees_with_float64(cuda, dtype, window, sizes, shift, bias):
    inputs = random_inputs(sizes, window, bias=bias, dtype=dtype, device=cuda)
    assert relative_error(inputs, window, shift) <= LIMITS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("window", [7, 12])
def test_large_scores_do_not_overflow(cuda, window):
    qkv, qkv_bias, table = random_inputs((1, 30, 30, 2), window, dtype=torch.float16, device=cuda)
    assert relative_error((qkv * 40, qkv_bias, table), window, 3) <= 2e-3


@pytest.mark.gpu
def test_what_the_kernel_does_not_do_runs_in_pytorch(cuda):
    inputs = random_inputs((1, 9, 9, 2), 4, dtype=torch.float32, device=cuda)
    assert relative_error(inputs, 4, 2) <= 1e-5
    with pytest.raises(RuntimeError, match="qkv must be float16 or bfloat16"):
        OPERATOR(*random_inputs((1, 12, 12, 2), 12, dtype=torch.float32, device=cuda), 12, 0)


@pytest.mark.gpu
def test_an_input_with_gaps_is_read_right(cuda):
    qkv, qkv_bias, table = random_inputs((2, 14, 15, 2), 7, dtype=torch.float16, device=cuda)
    expected = window_attention(qkv, qkv_bias, table, 7, 3)
    gaps = torch.stack([qkv, qkv], -1)[..., 0]
    assert torch.equal(window_attention(gaps, qkv_bias, table.t().contiguous().t(), 7, 3), expected)
    assert window_attention(qkv[:0], qkv_bias, table, 7, 3).shape == (0, 14, 15, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [7, 12])
def test_same_result_from_a_cuda_graph_and_on_another_stream(cuda, window):
    inputs = random_inputs((2, 40, 50, 3), window, dtype=torch.float16, device=cuda)
    expected = window_attention(*inputs, window, 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = window_attention(*inputs, window, 3)
    for _ in range(2):
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(window_attention(*inputs, window, 3), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["export", "aot"])
def test_same_result_exported(cuda, tmp_path, way):
    inputs, layer = random_inputs((1, 20, 30, 2), 7, dtype=torch.float16, device=cuda), Layer(7).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the compilers warn about their own deprecated calls
        program = torch.export.export(layer, inputs)
        assert uses_operator(program)
        if way == "export":
            out = program.module()(*inputs)
        else:
            package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
            out = torch._inductor.aoti_load_package(package)(*inputs)
    torch.testing.assert_close(out, layer(*inputs), rtol=2e-3, atol=2e-3)
