"""The kernel behind an encoder layer's attention, run on a stand-in of the GPU, and the formulas in float64."""

import ctypes
from dataclasses import dataclass

import pytest
import torch

from plugin_src import SOURCES
from tests.plugin_src.host import compiled
from tests.plugin_src.post_attention_layer import (
    WIDTH,
    expected_following,
    expected_tokens,
    packed_vectors,
    packed_weights,
    random_layer,
    rounded,
)

HALVES = {torch.float16: 1, torch.bfloat16: 2}
PLACES = "attended", "residual", "position", "weights", "vectors", "tokens", "value", "offsets", "logits"
GUARD, GUARD_BYTES = 0xA5, 1024


class Call(ctypes.Structure):
    """`codetr::PostAttention`."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("e4m3", ctypes.c_bool),
        ("followed", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in PLACES),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("hidden", "offset_columns", "logit_columns")),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    loaded = compiled(tmp_path_factory.mktemp("host"), SOURCES / "test/post_attention_host.cpp")
    loaded.runPostAttention.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_uint64, ctypes.c_bool)
    for name in (
        "postAttentionSchema",
        "postAttentionFollowedSchema",
        "describePostAttentionFault",
        "runPostAttention",
    ):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.countPostAttentionPieces.restype = loaded.countPostAttentionNumbers.restype = ctypes.c_int64
    return loaded


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The products are small; threads of PyTorch that wait for each other are most of the time otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """What is computed, and how the stand-in goes about it."""

    rows: int
    half: torch.dtype = torch.float16
    e4m3: bool = False
    columns: tuple[int, int] | None = None
    hidden: int = 128
    clusters: int = 1
    halves: bool = True  # the last round may be of half tiles
    seed: int = 0
    late: bool = False
    h_scale: float = 1 / 64


class Guarded:
    """A tensor between bytes that nobody may write."""

    def __init__(self, tensor):
        data = tensor.contiguous().view(torch.uint8).flatten()
        memory = torch.full((len(data) + 2 * GUARD_BYTES + 16,), GUARD, dtype=torch.uint8)
        begin = GUARD_BYTES + -memory.data_ptr() % 16
        memory[begin : begin + len(data)] = data
        self.memory, self.begin, self.end = memory, begin, begin + len(data)
        self.tensor = memory[begin : self.end].view(tensor.dtype).view(tensor.shape)

    def untouched(self):
        return bool((self.memory[: self.begin] == GUARD).all() and (self.memory[self.end :] == GUARD).all())


def random_inputs(case):
    generator = torch.Generator().manual_seed(case.seed + 1000)
    return {
        name: Guarded(torch.randn(case.rows, WIDTH, generator=generator).to(case.half))
        for name in ("attended", "residual", *(["position"] if case.columns else []))
    }


def empty_outputs(case):
    widths = {"tokens": WIDTH}
    if case.columns:
        widths.update(value=WIDTH, offsets=case.columns[0], logits=case.columns[1])
    return {name: Guarded(torch.full((case.rows, width), torch.nan, dtype=case.half)) for name, width in widths.items()}


def call_of(case, tensors):
    offsets, logits = case.columns or (0, 0)
    return Call(
        type=HALVES[case.half],
        e4m3=case.e4m3,
        followed=case.columns is not None,
        **{name: guarded.tensor.data_ptr() for name, guarded in tensors.items()},
        rows=case.rows,
        hidden=case.hidden,
        offset_columns=offsets,
        logit_columns=logits,
    )


def assert_rounded(actual, expected, half):
    """A row's error is that of rounding it once: in half of the rows to 2 %. Sums in float32 may round an operand to
    another number of `half` than sums in float64 do, which doubles a row's error at most; or to another of E4M3,
    rarely."""
    error, rounding = actual.double() - expected, rounded(expected, half) - expected
    ratios = (error.square().mean(1) / rounding.square().mean(1)).sqrt()
    assert ratios.median() < 1.02
    moved = ratios >= 2
    assert moved.double().mean() < 0.05, f"rows {moved.nonzero().flatten().tolist()}"
    assert (error.abs() / expected.abs().amax(1, keepdim=True)).max() < max(1 / 64, 4 * torch.finfo(half).eps)


def check(library, case):
    layer = random_layer(case.half, case.hidden, case.e4m3, case.columns, case.seed, case.h_scale)
    inputs, outputs = random_inputs(case), empty_outputs(case)
    weights, vectors = Guarded(packed_weights(layer)), Guarded(packed_vectors(layer))
    tensors = {**inputs, **outputs, "weights": weights, "vectors": vectors}
    call = call_of(case, tensors)
    assert library.describePostAttentionFault(ctypes.byref(call)) is None
    assert library.countPostAttentionPieces(ctypes.byref(call)) * 16384 == weights.tensor.numel()
    assert library.countPostAttentionNumbers(ctypes.byref(call)) == vectors.tensor.numel()
    fault = library.runPostAttention(ctypes.byref(call), case.clusters, case.halves, case.seed, case.late).decode()
    assert fault == "", fault
    assert all(guarded.untouched() for guarded in tensors.values())
    read = {name: guarded.tensor.double() for name, guarded in inputs.items()}
    tokens, too_large = expected_tokens(layer, read["attended"], read["residual"])
    assert_rounded(outputs["tokens"].tensor, tokens, case.half)
    if case.columns:
        following = expected_following(layer, outputs["tokens"].tensor.double(), read["position"])
        for name, expected in zip(("value", "offsets", "logits"), following, strict=True):
            assert_rounded(outputs[name].tensor, expected, case.half)
    return too_large


FP16, BF16 = HALVES
CODINO = 320, 160


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(1), id="one row"),
        pytest.param(Case(63, BF16), id="one row less than a warpgroup's"),
        pytest.param(Case(64, hidden=256, seed=1), id="a warpgroup's"),
        pytest.param(Case(65, BF16, late=True, seed=2), id="one more"),
        pytest.param(Case(127, hidden=256, late=True, seed=3), id="one row less than a block's"),
        pytest.param(Case(128, e4m3=True), id="a block's"),
        pytest.param(Case(129, BF16, e4m3=True, seed=4), id="one more than a block's"),
        pytest.param(Case(255, e4m3=True, hidden=256, late=True, seed=5), id="one less than a tile"),
        pytest.param(Case(256, hidden=256, seed=6), id="a tile"),
        pytest.param(Case(257, BF16, hidden=256, late=True, seed=7), id="a second round for one row"),
        pytest.param(Case(257, clusters=2, seed=8), id="two whole tiles at once"),
        pytest.param(Case(1, clusters=2, late=True, seed=9), id="half a tile, and nothing for the second cluster"),
        pytest.param(Case(300, clusters=2, seed=10, halves=False), id="no halves"),
        pytest.param(Case(513, clusters=2, seed=11, late=True), id="a whole tile, then half a tile, of two clusters"),
        pytest.param(Case(513, BF16, clusters=3, seed=12), id="three clusters"),
        pytest.param(Case(800, e4m3=True, clusters=3, seed=13), id="halves in the second round, a third idle"),
        pytest.param(Case(1, columns=CODINO, seed=14), id="followed, one row"),
        pytest.param(Case(64, BF16, columns=CODINO, late=True, seed=15), id="followed, a warpgroup's rows"),
        pytest.param(Case(129, columns=CODINO, clusters=2, seed=16), id="followed, halves"),
        pytest.param(Case(300, BF16, columns=CODINO, hidden=256, late=True, seed=17), id="followed, two rounds"),
        pytest.param(Case(128, e4m3=True, columns=CODINO, seed=18), id="followed, E4M3"),
        pytest.param(
            Case(300, BF16, e4m3=True, columns=CODINO, hidden=256, clusters=2, late=True, seed=19), id="all of it"
        ),
        pytest.param(Case(65, columns=(32, 32), seed=20), id="half a block of columns"),
        pytest.param(Case(65, columns=(96, 160), seed=21), id="two blocks of columns"),
        pytest.param(Case(65, columns=(256, 128), seed=22), id="three blocks of columns"),
        pytest.param(Case(33, e4m3=True, columns=(672, 352), seed=23, late=True), id="as many columns as there may be"),
        pytest.param(Case(17, BF16, hidden=2048, columns=CODINO, seed=24), id="Co-DINO's width"),
        pytest.param(Case(17, e4m3=True, hidden=2048, columns=(672, 352), seed=25, late=True), id="the fewest slots"),
    ],
)
def test_the_kernel_computes_the_formulas(library, case):
    check(library, case)


@pytest.mark.parametrize("late", [False, True], ids=["any order", "late warps"])
@pytest.mark.parametrize("e4m3", [False, True], ids=["T", "E4M3"])
def test_the_order_of_threads_does_not_matter(library, late, e4m3):
    for seed in range(100, 104):
        check(library, Case(130, FP16, e4m3, (32, 64), late=late, seed=seed))


def test_large_hidden_numbers_become_the_largest(library):
    assert check(library, Case(64, e4m3=True)) < 0.001
    assert 0.1 < check(library, Case(64, e4m3=True, h_scale=1 / 1024)) < 0.4


def test_the_schemas(library):
    assert library.postAttentionSchema().decode() == (
        "post_attention(Tensor attended, Tensor residual, Tensor weights, Tensor vectors, int hidden, bool e4m3) "
        "-> Tensor"
    )
    assert library.postAttentionFollowedSchema().decode() == (
        "post_attention_followed(Tensor attended, Tensor residual, Tensor position, Tensor weights, Tensor vectors, "
        "int hidden, bool e4m3, int offsets, int logits) -> (Tensor, Tensor, Tensor, Tensor)"
    )


USUAL = {"type": 1, "rows": 4, "hidden": 128}
FOLLOWED = {"followed": True, "offset_columns": 320, "logit_columns": 160}
HIDDEN = "hidden must be a multiple of 128 from 128 to 2048"
COLUMNS = "offsets and logits must be multiples of 32 from 32 to 1024"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({}, None, id="usual"),
        pytest.param({"type": 2, "e4m3": True, "hidden": 2048, **FOLLOWED}, None, id="bfloat16, E4M3, followed"),
        pytest.param({"position": None, "value": None, "offsets": None, "logits": None}, None, id="not followed"),
        pytest.param({"type": 0}, "attended must be float16 or bfloat16", id="float32"),
        pytest.param({"hidden": 0}, HIDDEN, id="no hidden numbers"),
        pytest.param({"hidden": 192}, HIDDEN, id="half a chunk of E4M3"),
        pytest.param({"hidden": 2176}, HIDDEN, id="wide"),
        pytest.param({**FOLLOWED, "offset_columns": 0}, COLUMNS, id="no offsets"),
        pytest.param({**FOLLOWED, "logit_columns": 48}, COLUMNS, id="logits"),
        pytest.param({**FOLLOWED, "logit_columns": -32}, COLUMNS, id="negative"),
        pytest.param(
            {**FOLLOWED, "offset_columns": 896}, "offsets and logits must be 1024 columns at most", id="many columns"
        ),
        pytest.param({"rows": -1}, "rows must not be negative", id="negative rows"),
        pytest.param({"rows": 2**23}, "there are too many rows", id="many rows"),
        pytest.param({"rows": 0, "attended": None}, None, id="no rows"),
        *(
            pytest.param({**FOLLOWED, name: None}, "a tensor is a null pointer", id=f"without {name}")
            for name in PLACES
        ),
        *(
            pytest.param({**FOLLOWED, name: 264}, "tensors must be aligned to 16 bytes", id=f"misaligned {name}")
            for name in PLACES
        ),
    ],
)
def test_calls_that_the_kernel_cannot_do_are_refused(library, changes, message):
    tensors = dict.fromkeys(PLACES, 256)
    fault = library.describePostAttentionFault(ctypes.byref(Call(**{**USUAL, **tensors, **changes})))
    assert (fault.decode() if fault else None) == message
