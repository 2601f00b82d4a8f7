"""What C++ and Python both know, compared through a library that a host compiler makes of the C++ headers.

The kernel's own checks run here too: `findFault` needs no CUDA.
"""

import ctypes
import json

import pytest
import torch

from builder.operators import cuda, interface
from builder.operators.interface import Message
from builder.operators.ms_deform_attn import ms_deform_attn
from perf.operator.run import ELEMENT_TYPES, _PlainCall
from plugin_src import SOURCES
from tests.plugin_src.host import compiler, shared_library


def test_without_a_compiler_ci_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"needs g\+\+"):
        compiler("--version")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = shared_library(tmp_path_factory.mktemp("interface") / "libinterface.so", SOURCES / "test/interface_host.cpp")
    loaded = ctypes.CDLL(str(path))
    loaded.describeInterface.restype = loaded.describeFault.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(scope="module")
def described(library):
    return json.loads(library.describeInterface())


def python_name(name):
    """KMaxLevels in C++ is MAX_LEVELS in Python."""
    return "".join(f"_{letter}" if letter.isupper() else letter for letter in name).removeprefix("k_").upper()


def constants_of(place):
    return {name: value for name, value in vars(place).items() if name.isupper()}


def test_names_and_limits_are_those_of_the_header(described):
    ours = constants_of(interface)
    del ours["INPUT_NAMES"], ours["WINDOW_INPUT_NAMES"]  # below
    assert ours == {python_name(name): value for name, value in described["constants"].items()}


def test_the_inputs_come_in_the_headers_order(described):
    ours = {name: i for i, name in enumerate(interface.INPUT_NAMES)}
    assert ours == described["inputs"] == described["input_names"]
    windows = {name: i for i, name in enumerate(interface.WINDOW_INPUT_NAMES)}
    assert windows == described["window_inputs"] == described["window_input_names"]


def test_refusals_are_worded_as_in_the_header(described):
    ours = constants_of(Message)
    assert ours == {python_name(name): text for name, text in described["messages"].items()}


def test_the_schema_has_the_operators_name_and_the_inputs_but_the_sizes():
    name, arguments = interface.SCHEMA.split("(", 1)
    assert name == interface.OPERATOR_NAME
    tensors = [each.split()[1].split("=")[0] for each in arguments.split(")")[0].split(", ") if "Tensor" in each]
    assert tuple(tensors) == interface.INPUT_NAMES


def test_the_benchmark_passes_a_call_as_the_kernel_reads_it(described):
    ours = {name: getattr(_PlainCall, name).offset for name, _ in _PlainCall._fields_}
    assert {**ours, "end": ctypes.sizeof(_PlainCall)} == described["fields"]
    assert {str(dtype).removeprefix("torch."): number for dtype, number in ELEMENT_TYPES.items()} == described["types"]


def test_every_source_is_part_of_the_fingerprint():
    included = set()
    for name in cuda.SOURCES:
        # Headers of CUDA need not be there (-MG), and are left out as those of PyTorch are.
        rule = compiler("-std=c++20", "-x", "c++", "-MM", "-MG", SOURCES / name)
        included |= {path for path in rule.replace("\\\n", " ").split() if path.startswith(f"{SOURCES}/")}
    assert included == {str(SOURCES / name) for name in (*cuda.SOURCES, *cuda.HEADERS)}


USUAL = {"type": 0, "batch": 1, "queries": 2, "heads": 2, "dim": 8, "levels": 2, "points": 3, "reference_dim": 2}
SIZES = [4, 6, 2, 3]


def kernel_fault(library, sizes=SIZES, **changes):
    """Return why the kernel cannot run a call; None if it can."""
    sides = (ctypes.c_int32 * len(sizes))(*sizes)
    tensors = dict.fromkeys(("value", "reference_points", "sampling_offsets", "attention_logits", "output"), 256)
    call = _PlainCall(**{**USUAL, **tensors, **changes}, spatial_shapes=ctypes.addressof(sides))
    fault = library.describeFault(ctypes.byref(call))
    return None if fault is None else fault.decode()


def operator_fault(sizes=SIZES, **changes):
    """Return what the operator says in Python to the same call, without prefix and values; None if it takes it."""
    batch, queries, heads, dim, levels, points, reference_dim = [*{**USUAL, **changes}.values()][1:]
    types = {number: dtype for dtype, number in ELEMENT_TYPES.items()} | {3: torch.int32}
    dtype = types[changes.get("type", 0)]
    tokens = sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True))
    arguments = (
        torch.empty(batch, tokens, heads, dim, dtype=dtype, device="meta"),
        torch.empty(batch, queries, levels, reference_dim, device="meta"),
        torch.empty(batch, queries, heads, levels, points, 2, dtype=dtype, device="meta"),
        torch.empty(batch, queries, heads, levels, points, dtype=dtype, device="meta"),
        sizes,
    )
    try:
        ms_deform_attn(*arguments)
    except RuntimeError as error:
        return str(error).removeprefix("ms_deform_attn: ").split(", got ")[0]
    return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({}, None, id="usual"),
        pytest.param({"type": 2}, None, id="bfloat16"),
        pytest.param({"type": 3}, Message.VALUE_TYPE, id="no type of the kernel"),
        pytest.param({"heads": 0}, Message.HEADS_AND_POINTS, id="no heads"),
        pytest.param({"points": 0}, Message.HEADS_AND_POINTS, id="no points"),
        pytest.param({"dim": interface.CHANNEL_MULTIPLE}, None, id="fewest channels"),
        pytest.param({"dim": 0}, Message.CHANNELS, id="no channels"),
        pytest.param({"dim": interface.CHANNEL_MULTIPLE + 2}, Message.CHANNELS, id="channels between"),
        pytest.param({"sizes": [1, 1] * 8, "levels": interface.MAX_LEVELS}, None, id="most levels"),
        pytest.param({"sizes": [1, 1] * 9, "levels": interface.MAX_LEVELS + 1}, Message.LEVELS, id="a level more"),
        pytest.param({"reference_dim": 4}, None, id="boxes"),
        pytest.param({"reference_dim": 3}, Message.COORDINATES, id="coordinates between"),
        pytest.param({"sizes": [1, interface.MAX_LEVEL_SIDE, 1, 1]}, None, id="longest side"),
        pytest.param({"sizes": [1, interface.MAX_LEVEL_SIDE + 1, 1, 1]}, Message.SIDES, id="a pixel more"),
        pytest.param({"sizes": [4, 6, 0, 3]}, Message.SIDES, id="no rows"),
        pytest.param({"sizes": [2**20, 2**11 - 1, 2**20 - 1, 1]}, None, id="most tokens"),
        pytest.param({"sizes": [2**20, 2**11 - 1, 2**20, 1]}, Message.MANY_TOKENS, id="a token more"),
        pytest.param({"batch": 0}, None, id="no images"),
    ],
)
def test_kernel_and_python_take_and_refuse_the_same_calls(library, changes, message):
    assert kernel_fault(library, **changes) == message
    assert operator_fault(**changes) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": -1}, "batch and queries must not be negative"),
        ({"output": None}, "a tensor is a null pointer"),
        ({"value": 264}, "value and output must be aligned to 4 elements"),
        ({"valid_shapes": 4}, "valid_shapes must be aligned to 8 bytes"),
    ],
)
def test_the_kernel_refuses_what_no_tensor_can_be(library, changes, message):
    assert kernel_fault(library, **changes) == message
