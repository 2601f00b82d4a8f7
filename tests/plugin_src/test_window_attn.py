"""Where the kernel finds the tokens of a window: its own index arithmetic, compiled for the host."""

import ctypes

import pytest
import torch

from builder.operators import window_attention
from builder.operators.window_attention import partition_windows, region_bias, relative_position_index
from plugin_src import SOURCES
from tests.plugin_src.host import shared_library

MAPS = [(12, 24, 0), (12, 24, 6), (30, 41, 6), (30, 41, 3), (5, 3, 3), (84, 84, 1), (1, 40, 6), (13, 12, 5)]


class Call(ctypes.Structure):
    """`codetr::WindowAttn`."""

    _fields_ = (
        ("type", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("qkv", "qkv_bias", "bias_table", "output")),
        *((name, ctypes.c_int32) for name in ("batch", "height", "width", "heads", "window", "shift")),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = shared_library(tmp_path_factory.mktemp("window") / "libwindow.so", SOURCES / "test/window_host.cpp")
    loaded = ctypes.CDLL(str(path))
    loaded.windowSchema.restype = loaded.describeWindowFault.restype = ctypes.c_char_p
    return loaded


def described(library, height, width, window, shift):
    """Return token, region, and row and column of the bias table, each [windows, positions]."""
    windows = -(-height // window) * -(-width // window)
    places = torch.full((windows, window**2, 4), -7, dtype=torch.int32)
    library.describeWindows(height, width, window, shift, ctypes.c_void_p(places.data_ptr()))
    return places.unbind(-1)


@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize(("height", "width", "shift"), MAPS)
def test_tokens_are_those_of_a_map_that_is_padded_rolled_and_cut(library, window, height, width, shift):
    tokens = torch.full((1, height + -height % window, width + -width % window, 1), -1)
    tokens[0, :height, :width, 0] = torch.arange(height * width).view(height, width)
    expected = partition_windows(tokens.roll((-shift, -shift), (1, 2)), window)[0, :, :, 0]
    assert torch.equal(described(library, height, width, window, shift)[0].long(), expected)


@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize(("height", "width", "shift"), MAPS)
def test_regions_differ_where_the_references_do(library, window, height, width, shift):
    regions = described(library, height, width, window, shift)[1]
    differ = regions[:, :, None] != regions[:, None, :]
    expected = region_bias(height, width, window, shift, torch.device("cpu"))[:, 0] != 0
    assert torch.equal(differ, expected if shift else torch.zeros_like(expected))


@pytest.mark.parametrize("window", [7, 12])
def test_pairs_have_the_references_place_in_the_bias_table(library, window):
    _, _, rows, columns = described(library, window, window, window, 0)
    assert torch.equal((rows[0, :, None] - columns[0]).long(), relative_position_index(window, torch.device("cpu")))


def test_the_schema_is_pythons(library):
    assert library.windowSchema().decode() == window_attention.SCHEMA


USUAL = {"type": 1, "batch": 1, "height": 4, "width": 5, "heads": 2, "window": 12, "shift": 6}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({}, None, id="usual"),
        pytest.param({"type": 2, "window": 7, "qkv_bias": None}, None, id="bfloat16 without bias"),
        pytest.param({"type": 0}, "qkv must be float16 or bfloat16", id="float32"),
        pytest.param({"window": 8}, "window_size must be 7 or 12", id="window between"),
        pytest.param({"shift": 12}, "shift must be at least 0 and less than window_size", id="shift"),
        pytest.param({"shift": -1}, "shift must be at least 0 and less than window_size", id="negative shift"),
        pytest.param({"heads": 0}, "there must be at least one head", id="no heads"),
        pytest.param({"batch": -1}, "sizes must not be negative", id="negative batch"),
        pytest.param({"batch": 0, "qkv": None}, None, id="no images"),
        pytest.param({"batch": 16384}, None, id="most images"),
        pytest.param({"batch": 16385}, "batch is more than 16384", id="an image more"),
        pytest.param({"height": 12 * 255, "width": 12 * 257}, None, id="most windows"),
        pytest.param({"height": 12 * 256, "width": 12 * 256}, "a map has more than 65535 windows", id="a window more"),
        pytest.param({"height": 12 * 255, "width": 12 * 257, "heads": 48}, "qkv is too large", id="many channels"),
        pytest.param({"qkv": None}, "a tensor is a null pointer", id="no tensor"),
        pytest.param({"output": 264}, "qkv, qkv_bias and output must be aligned to 16 bytes", id="misaligned"),
    ],
)
def test_calls_that_the_kernel_cannot_do_are_refused(library, changes, message):
    tensors = dict.fromkeys(("qkv", "qkv_bias", "bias_table", "output"), 256)
    fault = library.describeWindowFault(ctypes.byref(Call(**{**USUAL, **tensors, **changes})))
    assert (fault.decode() if fault else None) == message
