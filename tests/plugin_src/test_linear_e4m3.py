"""How the product of E4M3 matrices asks cuBLASLt for what it wants, by a stand-in that computes on the CPU."""

import ctypes
import subprocess
import sys
from ctypes.util import find_library

import pytest
import torch

from builder.operators import linear_e4m3
from builder.operators.linear_e4m3 import ACTIVATIONS, E4M3
from plugin_src import SOURCES
from tests.plugin_src.host import shared_library

TENSORS = ("x", "weight", "bias", "x_scale", "weight_scale", "factor", "output")
HALVES = {torch.float16: 1, torch.bfloat16: 2}
ROWS, K, N = 5, 32, 16


class Call(ctypes.Structure):
    """`codetr::LinearE4m3`."""

    _fields_ = (
        ("bias_type", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in TENSORS),
        *((name, ctypes.c_int64) for name in ("rows", "in", "out", "activation")),
    )


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The path of the product's code."""
    folder = tmp_path_factory.mktemp("host")
    return shared_library(folder / "libhost.so", SOURCES / "test/linear_host.cpp", SOURCES / "linear_e4m3.cpp", "-ldl")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The path of the stand-in, which the process finds as PyTorch's once it is loaded: by the name recorded in it."""
    folder = tmp_path_factory.mktemp("stand_in")
    return shared_library(
        folder / "fake.so", SOURCES / "test/fake_cublaslt.cpp", "-Wl,-soname,libcublasLt.so.13", "-fvisibility=default"
    )


@pytest.fixture(scope="module")
def cublaslt(stand_in):
    if torch.version.cuda is not None:
        pytest.skip("PyTorch's cuBLASLt is in the process, and would be found in the stand-in's place")
    return ctypes.CDLL(str(stand_in))


@pytest.fixture(scope="module")
def library(host, cublaslt):
    loaded = ctypes.CDLL(str(host))
    loaded.linearSchema.restype = loaded.describeLinearFault.restype = loaded.runLinear.restype = ctypes.c_char_p
    return loaded


def random_inputs(half=torch.float16, rows=ROWS, k=K, n=N):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, k).to(E4M3), torch.randn(n, k).to(E4M3)
    tensors = x, weight, torch.randn(n).to(half)
    return *map(placed, tensors), torch.tensor(0.5), torch.tensor(0.25), torch.tensor(8.0)


def placed(tensor, offset=0):
    """Return a copy in memory that begins so many bytes after a multiple of 256."""
    data = tensor.contiguous().view(torch.uint8).flatten()
    memory = torch.zeros(len(data) + 512, dtype=torch.uint8)
    begin = -memory.data_ptr() % 256 + offset
    memory[begin : begin + len(data)] = data
    return memory[begin : begin + len(data)].view(tensor.dtype).view(tensor.shape)


def run(library, inputs, activation="none", device=0):
    x, weight, bias = inputs[:3]
    output = placed(torch.zeros(len(x), len(weight), dtype=torch.uint8)).view(E4M3)
    tensors = {name: each.data_ptr() for name, each in zip(TENSORS, (*inputs, output), strict=True)}
    sizes = {"rows": len(x), "in": x.shape[1], "out": len(weight), "activation": ACTIVATIONS[activation]}
    fault = library.runLinear(ctypes.byref(Call(bias_type=HALVES[bias.dtype], **tensors, **sizes)), device)
    return output, fault.decode()


@pytest.mark.parametrize("half", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cublaslt_is_asked_for_what_the_reference_computes(library, half, activation):
    inputs = random_inputs(half)
    output, fault = run(library, inputs, activation)
    assert fault == ""
    expected = torch.ops.codetr.linear_e4m3(*inputs, ACTIVATIONS[activation])  # on CPUs the reference
    assert len(expected.float().unique()) > 20
    if activation == "gelu":  # by another tanh
        torch.testing.assert_close(output.float(), expected.float(), rtol=1 / 8, atol=2**-9)
    else:
        assert torch.equal(output.float(), expected.float())


def test_what_was_chosen_for_a_shape_is_kept(library, cublaslt):
    def times_chosen(inputs, activation="relu", device=1):
        before = cublaslt.timesChosen()
        assert run(library, inputs, activation, device)[1] == ""
        return cublaslt.timesChosen() - before

    inputs = random_inputs()
    assert [times_chosen(inputs), times_chosen(inputs)] == [1, 0]
    assert times_chosen(inputs, "gelu") == 1
    assert times_chosen(inputs, device=2) == 1
    assert times_chosen(random_inputs(torch.bfloat16)) == 1
    assert times_chosen(random_inputs(rows=ROWS + 1)) == 1
    x, weight, bias, *numbers = inputs
    assert times_chosen((placed(x, 16), weight, bias, *numbers)) == 1, "cuBLASLt is told how x is aligned"
    assert times_chosen((x, weight, placed(bias, 64), *numbers)) == 1, "and looks at the bias"


def test_a_product_without_algorithm_is_named(library):
    _, fault = run(library, random_inputs(n=48), "gelu")
    assert fault == (
        "cuBLASLt has no algorithm (status 0) for [5, 32] x [48, 32] with activation 2 and an output in E4M3; build "
        "without fp8"
    )


def test_without_cublaslt_it_is_named(host):
    """In a process that has none; the error comes before anything is read."""
    if find_library("cublasLt"):
        pytest.skip("a cuBLASLt is installed, and would be found")
    program = (
        f"import ctypes; host = ctypes.CDLL({str(host)!r}); host.runLinear.restype = ctypes.c_char_p; "
        "print(host.runLinear(bytes(256), 0).decode())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "libcublasLt.so.13 and .12 cannot be loaded; PyTorch for CUDA brings one of them"


def test_the_schema_is_pythons(library):
    assert library.linearSchema().decode() == linear_e4m3.SCHEMA


USUAL = {"bias_type": 1, "rows": 4, "in": 16, "out": 32, "activation": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({}, None, id="usual"),
        pytest.param({"bias_type": 2, "activation": 2}, None, id="bfloat16 with GELU"),
        pytest.param({"bias_type": 0}, "bias must be float16 or bfloat16", id="float32"),
        pytest.param({"activation": 3}, "activation must be 0 (none), 1 (ReLU) or 2 (GELU)", id="another activation"),
        pytest.param({"activation": -1}, "activation must be 0 (none), 1 (ReLU) or 2 (GELU)", id="negative activation"),
        pytest.param({"in": 24}, "channels in and out must be positive multiples of 16", id="channels in"),
        pytest.param({"out": 8}, "channels in and out must be positive multiples of 16", id="channels out"),
        pytest.param({"in": 0}, "channels in and out must be positive multiples of 16", id="no channels"),
        pytest.param({"rows": -1}, "rows must not be negative", id="negative rows"),
        pytest.param({"rows": 2**31}, "a matrix is too large", id="many rows"),
        pytest.param({"rows": 0, "x": None}, None, id="no rows"),
        pytest.param({"factor": None}, "a tensor is a null pointer", id="no tensor"),
        pytest.param({"weight": 264}, "x, weight, bias and output must be aligned to 16 bytes", id="misaligned"),
    ],
)
def test_calls_that_cublaslt_cannot_do_are_refused(library, changes, message):
    tensors = dict.fromkeys(TENSORS, 256)
    fault = library.describeLinearFault(ctypes.byref(Call(**{**USUAL, **tensors, **changes})))
    assert (fault.decode() if fault else None) == message
