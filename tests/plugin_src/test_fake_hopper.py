"""The stand-in on which Hopper kernels are tested: its numbers, and that it finds the mistakes of asynchronous code."""

import ctypes
import re

import pytest
import torch

from plugin_src import SOURCES
from tests.plugin_src.host import compiled
from tests.plugin_src.post_attention_layer import E4M3, tile

PIECES = 6
TYPES = [torch.float16, torch.bfloat16, E4M3]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    loaded = compiled(tmp_path_factory.mktemp("host"), SOURCES / "test/fake_hopper_host.cpp")
    pointer = ctypes.c_void_p
    loaded.runSmallKernel.argtypes = pointer, pointer, pointer, ctypes.c_int32, ctypes.c_uint64, ctypes.c_bool
    loaded.runSmallKernel.restype = ctypes.c_char_p
    loaded.packNumbers.argtypes = ctypes.c_int32, pointer
    loaded.packNumbers.restype = ctypes.c_uint32
    loaded.unpackNumbers.argtypes = ctypes.c_int32, ctypes.c_uint32, pointer
    return loaded


# ---- Numbers ----


def special_numbers():
    """Of every size, ties between two numbers of each type, what is too large or too small, infinity, NaN."""
    torch.manual_seed(0)
    sizes = torch.randn(4000) * 2.0 ** torch.randint(-30, 20, (4000,))
    ties = [
        (torch.randint(2**12, (1000,)) * 2.0 ** torch.randint(-30, 6, (1000,))),
        torch.tensor(
            [0.0, 448, 464, 465, 480, 65504, 65519, 65520, 65536, 3.4e38, torch.inf, torch.nan, 2**-25, 2**-10]
        ),
    ]
    x = torch.cat([sizes, *ties])
    return torch.cat([x, -x])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_numbers_are_rounded_as_pytorch_does(library, dtype):
    numbers, of_word = special_numbers(), 4 if dtype == E4M3 else 2
    assert len(numbers) % 4 == 0
    parts = numbers.split(of_word)
    words = torch.tensor(
        [library.packNumbers(TYPES.index(dtype), part.data_ptr()) for part in parts], dtype=torch.int64
    )
    packed = words.to(torch.uint32).view(dtype)
    expected = (numbers.clamp(-448, 448) if dtype == E4M3 else numbers).to(dtype)
    torch.testing.assert_close(packed.float(), expected.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_numbers_are_read_as_pytorch_does(library, dtype):
    bits = torch.arange(2**16)
    numbers = torch.zeros(2**16)
    for pair in range(2**15):
        library.unpackNumbers(TYPES.index(dtype), (2 * pair + 1) << 16 | 2 * pair, numbers.data_ptr() + 8 * pair)
    expected = bits.to(torch.uint16).view(dtype).float()
    torch.testing.assert_close(numbers, expected, rtol=0, atol=0, equal_nan=True)


# ---- A kernel with a ring of two slots, which two blocks fill for each other ----


def run(library, mistake="none", seed=0, late=False):
    """Return the fault, and whether the numbers are right."""
    torch.manual_seed(1)
    a, pieces = torch.randn(64, 64).half(), torch.randn(PIECES, 64, 64).half()
    tiles = torch.cat([torch.from_numpy(tile(piece)) for piece in pieces])
    memory = torch.zeros(2 * 128 * 32 + 4)
    output = memory[-memory.data_ptr() % 16 // 4 :][: 2 * 128 * 32]
    numbers = MISTAKES.index(mistake), seed, late
    fault = library.runSmallKernel(a.data_ptr(), tiles.data_ptr(), output.data_ptr(), *numbers).decode()
    expected = a.double() @ pieces.sum(0, dtype=torch.float64).T
    t, i = torch.arange(128)[:, None], torch.arange(32)
    rows, columns = 16 * (t // 32) + t % 32 // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (t % 4) + i % 2
    right = all(torch.allclose(block.double(), expected[rows, columns], atol=1e-4) for block in output.view(2, 128, 32))
    return fault, right


@pytest.mark.parametrize("late", [False, True], ids=["any order", "late warps"])
def test_a_kernel_without_mistake_runs(library, late):
    for seed in range(20):
        assert run(library, seed=seed, late=late) == ("", True)


FOUND = {
    "what was stored is not shown to products": "thread 1[0-9]{2} has stored and not shown to products",
    "no barrier between stores and the product": "stored and not shown|a product that nobody has waited for",
    "a slot is given back before the wait": "copies to byte .* a product that nobody has waited for may still read",
    "sums are read before the wait": "wrong numbers",
    "an operand is overwritten before the wait": "writes byte .* a product that nobody has waited for may still read",
    "a wait is a phase late": r"threads 205 to 205: waitFor\(the barrier at byte 24576, parity 1\)",
    "an arrival is missing": r"(?s)nothing can go on.*waitFor.*lacks 2 of 2 arrivals",
    "an arrival too many": "counts 1 arrivals, and has had them",
    "fewer bytes are expected than come": "while a copy writes there|may still read|nothing can go on",
    "barriers are not shown to the cluster": "has not been shown to the cluster",
    "barriers are used before the cluster has them": "no barrier has been set up",
    "a block is gone while the other uses it": "ends while other threads|block . has ended|ends its block",
    "a load is out of bounds": "loadGlobal: 16 bytes out of bounds, at byte 8192 of a, which has 8192",
    "a prefetch is misaligned": "prefetch: 1000 bytes",
    "registers are given twice": "gives registers a second time",
    "more registers are taken than there are": "takeRegisters: more registers than are free",
    "a warp is divided": "calls (sumOfQuad|warpgroupInBlock) where other threads of its warp call",
    "half a warpgroup multiplies": "products that not all threads of the warpgroup have begun",
    "two warpgroups use one barrier": "where threads of another warpgroup wait",
}
MISTAKES = ["none", *FOUND]


@pytest.mark.parametrize("mistake", FOUND)
def test_a_mistake_is_found(library, mistake):
    """Wherever it shows; in some orders of the threads it does no harm."""
    results = [run(library, mistake, seed, late) for seed in range(12) for late in (False, True)]
    found = [fault or "wrong numbers" for fault, right in results if fault or not right]
    assert found
    assert all(re.search(FOUND[mistake], fault) for fault in found), found
