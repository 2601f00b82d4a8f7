import shutil
import warnings
from pathlib import Path

import pytest
import torch

from builder.cache import CACHE_VARIABLE
from builder.operators import cuda as cuda_operator
from builder.operators.cuda import CudaOperatorError, build_command, find_nvcc, load_cuda_operator
from builder.operators.ms_deform_attn import ms_deform_attn, reference_ms_deform_attn

OPERATOR = torch.ops.codetr.ms_deform_attn.default
# Odd sizes; every level smaller than a tile of the kernel in at least one direction.
PYRAMID = [(37, 51), (19, 26), (10, 13), (5, 7), (3, 4)]
# Relative error against float64 that the operator promises.
LIMITS = {torch.float16: 6e-4, torch.bfloat16: 5e-3, torch.float32: 2e-6}
DTYPES = pytest.mark.parametrize("dtype", LIMITS, ids=["float16", "bfloat16", "float32"])


def test_command_builds_for_the_architectures_asked_for(tmp_path):
    command = build_command(Path("/cuda/bin/nvcc"), tmp_path / "op.so", ["80", "90"])
    assert command[0] == "/cuda/bin/nvcc"
    assert [part for part in command if part.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]
    assert all((Path(part)).is_file() for part in command if part.endswith((".cu", ".cpp")))


def test_missing_compiler_is_named(monkeypatch):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    with pytest.raises(CudaOperatorError, match="nvcc was not found"):
        find_nvcc()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param(
            "echo note: in a header; echo 'op.cu(3): error: no type' >&2; echo '1 error detected' >&2",
            "op.cu(3): error: no type",
            id="first error",
        ),
        pytest.param(
            "echo note: in a header: cudaError_t; echo 'ld: error: no x' >&2",
            "ld: error: no x",
            id="a type's name is none",
        ),
        pytest.param("echo note: in a header; echo 'nvcc fatal   : x' >&2", "nvcc fatal   : x", id="fatal"),
        pytest.param("echo note: in a header; echo killed; echo", "killed", id="last line"),
        pytest.param("", "exit status 3", id="silent"),
    ],
)
def test_failed_build_leaves_no_library_and_one_line(script, message, monkeypatch, tmp_path, capsys):
    compiler = tmp_path / "nvcc"
    compiler.write_text(f"#!/bin/sh\n{script}\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(cuda_operator, "find_nvcc", lambda: compiler)
    with pytest.raises(CudaOperatorError) as caught:
        cuda_operator.build_cuda_operator(tmp_path / "op.so", ["90"])
    assert str(caught.value) == f"nvcc failed: {message}"
    assert list(tmp_path.iterdir()) == [compiler]
    shown = capsys.readouterr().err
    assert f"{compiler} -std=c++20" in shown, "the command"
    assert message.startswith("exit status") or "note: in a header" in shown, "all messages"


def test_no_gpu_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cuda_operator._load.cache_clear()
    with pytest.raises(CudaOperatorError, match="needs an NVIDIA GPU"):
        load_cuda_operator()


def test_named_library_must_exist(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(cuda_operator.LIBRARY_VARIABLE, str(tmp_path / "missing.so"))
    cuda_operator._load.cache_clear()
    with pytest.raises(CudaOperatorError, match=r"missing\.so, which is not a file"):
        load_cuda_operator()


def test_named_library_must_have_the_name_that_the_server_looks_for(gpu, monkeypatch, tmp_path):
    (tmp_path / "op.so").touch()
    monkeypatch.setenv(cuda_operator.LIBRARY_VARIABLE, str(tmp_path / "op.so"))
    with pytest.raises(CudaOperatorError, match=r"a file called libcodetr_ms_deform_attn\*\.so"):
        load_cuda_operator()


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU for all that asks PyTorch about it, no library, and no nvcc; returns the paths that are loaded."""
    paths = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.ops, "load_library", paths.append)
    monkeypatch.delenv(cuda_operator.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(cuda_operator, "_loaded", {})

    def no_nvcc():
        raise CudaOperatorError("nvcc was not found")

    monkeypatch.setattr(cuda_operator, "find_nvcc", no_nvcc)
    cuda_operator._load.cache_clear()
    yield paths
    cuda_operator._load.cache_clear()


def test_a_named_library_is_loaded_once_whatever_its_copies(gpu, tmp_path):
    first, copy, other = (tmp_path / f"{name}.so" for name in ("first", "copy", "other"))
    first.write_bytes(b"one")
    copy.write_bytes(b"one")
    other.write_bytes(b"another")
    assert [load_cuda_operator(path) for path in (first, copy, other, first)] == [first, first, other, first]
    assert gpu == [str(first), str(other)]


def test_a_missing_compiler_is_found_before_it_is_needed(gpu):
    with pytest.raises(CudaOperatorError, match="nvcc was not found"):
        cuda_operator.check_cuda_operator()
    library = cuda_operator._cache_path()
    library.parent.mkdir()
    library.touch()
    cuda_operator.check_cuda_operator()
    assert gpu == [], "nothing is loaded"


# ---- On a GPU ----


@pytest.fixture(scope="module")
def cuda():
    load_cuda_operator()
    return torch.device("cuda")


def random_inputs(dtype, shapes=PYRAMID, batch=2, queries=None, heads=8, dim=32, points=4, coordinates=2):
    """Return fresh inputs each time, a part of the samples far outside; `queries` None: the encoder's, one a token."""
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    queries = tokens if queries is None else queries
    reference = torch.rand(batch, queries, levels, coordinates, device="cuda")
    reference[..., :2] = reference[..., :2] * 1.6 - 0.3
    value = torch.randn(batch, tokens, heads, dim, device="cuda").to(dtype)
    offsets = (torch.randn(batch, queries, heads, levels, points, 2, device="cuda") * 5).to(dtype)
    logits = (torch.randn(batch, queries, heads, levels, points, device="cuda") * 2).to(dtype)
    return value, reference, offsets, logits, [side for shape in shapes for side in shape]


def valid_shapes_of(shapes, batch):
    """Return int32 [batch, levels, 2]: all, less and less, down to one row or column and nothing."""
    cut = [[[max(h - b * 2, 0), max(w - b * 3, 0)] for h, w in shapes] for b in range(batch)]
    return torch.tensor(cut, dtype=torch.int32, device="cuda")


def poison(shape, dtype):
    """Leave NaN in the memory that the next tensor of this size gets."""
    torch.full(shape, float("nan"), dtype=dtype, device="cuda")


def relative_error(inputs, valid_shapes=None):
    value, reference, offsets, logits, sizes = inputs
    exact = reference_ms_deform_attn(value.double(), reference, offsets.double(), logits.double(), sizes, valid_shapes)
    poison(exact.shape, value.dtype)
    out = ms_deform_attn(*inputs, valid_shapes)
    return float((out.double() - exact).norm() / exact.norm())


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="encoder"),
        pytest.param({"queries": 91}, id="decoder with points"),
        pytest.param({"queries": 77, "coordinates": 4, "batch": 3}, id="decoder with boxes"),
        pytest.param({"queries": 1, "batch": 1}, id="one query"),
        pytest.param({"shapes": PYRAMID[:4]}, id="four levels"),
        pytest.param({"shapes": PYRAMID[:3], "coordinates": 4}, id="three levels"),
        pytest.param({"shapes": [(5, 7), (19, 26), (2, 2)]}, id="levels that do not shrink"),
        pytest.param({"shapes": [*PYRAMID[:4], (1, 2)]}, id="a level of one row: general kernel"),
        pytest.param({"shapes": PYRAMID[:2], "heads": 3, "dim": 80, "points": 3, "queries": 33}, id="odd heads"),
        pytest.param({"shapes": [*PYRAMID, (1, 1)], "heads": 5, "dim": 4, "points": 1, "queries": 33}, id="six levels"),
    ],
)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_agrees_with_float64(cuda, dtype, options, masked):
    inputs = random_inputs(dtype, **options)
    valid_shapes = valid_shapes_of(options.get("shapes", PYRAMID), inputs[0].shape[0]) if masked else None
    assert relative_error(inputs, valid_shapes) <= LIMITS[dtype]


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("levels", [2, 3, 4, 5])  # 2: the general kernel
def test_softmax_of_one_head_does_not_touch_another(cuda, dtype, levels):
    value, reference, offsets, logits, sizes = random_inputs(dtype, PYRAMID[:levels], queries=31)
    expected = ms_deform_attn(value, reference, offsets, logits, sizes).unflatten(2, (8, 32))
    for head in (2, 5):
        spoiled = logits.clone()
        spoiled[:, :, head, -1, 1] = float("nan")
        out = ms_deform_attn(value, reference, offsets, spoiled, sizes).unflatten(2, (8, 32))
        assert out[:, :, head].isnan().all()
        others = [other for other in range(8) if other != head]
        assert torch.equal(out[:, :, others], expected[:, :, others])


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_a_logit_of_minus_infinity_weighs_nothing(cuda, dtype, levels):
    inputs = random_inputs(dtype, PYRAMID[:levels], queries=31)
    inputs[3][:, :, ::3, 0] = float("-inf")
    assert relative_error(inputs) <= LIMITS[dtype]


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("height_width", [(96, 152), (608, 608)])
def test_agrees_with_float64_at_real_sizes(cuda, dtype, height_width):
    shapes = [(-(-height_width[0] // s), -(-height_width[1] // s)) for s in (4, 8, 16, 32, 64)]
    assert relative_error(random_inputs(dtype, shapes, batch=1)) <= LIMITS[dtype]


@pytest.mark.gpu
def test_batch_of_large_images_needs_64_bit_offsets(cuda):
    shapes = [(320, 480), (160, 240), (80, 120), (40, 60), (20, 30)]
    inputs = random_inputs(torch.float32, shapes, batch=9)
    assert inputs[2].nbytes > 2**31
    last = ms_deform_attn(*(tensor[8:] for tensor in inputs[:4]), inputs[4])
    assert torch.equal(ms_deform_attn(*inputs)[8:], last)


@pytest.mark.gpu
def test_accepts_strided_inputs_and_no_queries(cuda):
    value, reference, offsets, logits, sizes = random_inputs(torch.float16, queries=20)
    strided = (value.transpose(1, 2).contiguous().transpose(1, 2), reference, offsets[:, ::2], logits[:, ::2], sizes)
    out = ms_deform_attn(strided[0], reference[:, ::2], *strided[2:])
    assert torch.equal(out, ms_deform_attn(value, reference, offsets, logits, sizes)[:, ::2])
    assert ms_deform_attn(value, reference[:, :0], offsets[:, :0], logits[:, :0], sizes).shape == (2, 0, 256)


@pytest.mark.gpu
def test_misfits_are_refused(cuda):
    value, reference, offsets, logits, sizes = random_inputs(torch.float16, queries=5)
    for arguments, message in [
        ((value, reference.half(), offsets, logits, sizes), "reference_points has the wrong type"),
        ((value, reference, offsets.float(), logits, sizes), "sampling_offsets has the wrong type"),
        ((value, reference, offsets, logits[:, :4], sizes), "attention_logits must have shape"),
        ((value, reference, offsets, logits, sizes[:-2]), "spatial_shapes must hold"),
        ((value[:, 1:], reference, offsets, logits, sizes), "tokens"),
        ((value, reference.cpu(), offsets, logits, sizes), "device of value"),
        ((value[..., :30], reference, offsets, logits, sizes), "multiple of 4"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            OPERATOR(*arguments)


@pytest.mark.gpu
@DTYPES
def test_same_result_from_a_cuda_graph(cuda, dtype):
    inputs = random_inputs(dtype)
    valid_shapes = valid_shapes_of(PYRAMID, 2)
    expected = ms_deform_attn(*inputs, valid_shapes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ms_deform_attn(*inputs, valid_shapes)
    for _ in range(2):
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_follows_the_current_stream(cuda):
    inputs = random_inputs(torch.float16)
    expected = ms_deform_attn(*inputs)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        out = ms_deform_attn(*inputs)
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_passes_opcheck(cuda):
    inputs = random_inputs(torch.float32, queries=7, batch=1)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(OPERATOR, inputs, test_utils=tests)
    torch.library.opcheck(OPERATOR, (*inputs, valid_shapes_of(PYRAMID, 1)), test_utils=tests)


class Layer(torch.nn.Module):
    def forward(self, value, reference, offsets, logits, valid_shapes):
        sizes = [side for shape in PYRAMID for side in shape]
        return ms_deform_attn(value * 2, reference, offsets, logits, sizes, valid_shapes) + 1


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["compile", "export", "aot"])
def test_same_result_compiled_and_exported(cuda, tmp_path, way):
    layer = Layer().eval()
    arguments = (*random_inputs(torch.float16)[:4], valid_shapes_of(PYRAMID, 2))
    expected = layer(*arguments)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the compilers warn about their own deprecated calls
        if way == "compile":
            out = torch.compile(layer, fullgraph=True)(*arguments)
        else:
            program = torch.export.export(layer, arguments)
            assert any(node.target is OPERATOR for node in program.graph.nodes)
            if way == "export":
                out = program.module()(*arguments)
            else:
                package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
                out = torch._inductor.aoti_load_package(package)(*arguments)
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=2e-3)
