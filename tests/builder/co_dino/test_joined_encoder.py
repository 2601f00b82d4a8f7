"""The joined encoder on the CPU, where the operators' plain implementation computes it."""

import copy
import dataclasses

import pytest
import torch

from builder.checkpoint import random_detector
from builder.co_dino import model
from builder.co_dino.joined_encoder import JoinedEncoder, JoinedEnd, PlainEnd, joined_encoder
from builder.operators.post_attention_layer import Kind, count_bytes
from builder.parts.position import looked_up_positions
from builder.pipeline.export import InputSpec, decompose_operator, export_detector
from builder.quantise.calibration import Range
from builder.quantise.layers import Float8Linear, replace_layers
from tests.smallest import SMALLEST

LAST, FOLLOWED = torch.ops.codetr.post_attention.default, torch.ops.codetr.post_attention_followed.default
SAMPLING = torch.ops.codetr.ms_deform_attn.default
VARIANT = dataclasses.replace(
    SMALLEST, embed_dim=256, num_heads=8, num_self_heads=8, feedforward_dim=256, encoder_layers=3
)
SHAPES = [(6, 8), (3, 4)]
HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
FFN = ["layers.{}.ffn.0", "layers.{}.ffn.2"]


def always(kind):
    return True


@pytest.fixture(scope="module")
def detector():
    """In float32, with norms and biases that do something."""
    made = random_detector(VARIANT)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.encoder.named_parameters():
        if "norm" in name or "bias" in name:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return made


def in_half(detector, half):
    return copy.deepcopy(detector).set_precision(half)


def quantised(encoder, names):
    """Return the encoder with FP8 layers of these names, whose inputs go up to 5."""
    replace_layers(encoder, {name: Float8Linear(encoder.get_submodule(name), Range(-5, 5)) for name in names})
    return encoder


def feed_forward(*layers):
    return [name.format(layer) for layer in layers for name in FFN]


def random_inputs(dtype, batch=2):
    """Return tokens, position, shapes and valid shapes, of images of which the first has no padding."""
    count = sum(h * w for h, w in SHAPES)
    tokens, position = (torch.randn(batch, count, 256).to(dtype) for _ in range(2))
    valid = [[[h - i, w - 2 * i] for h, w in SHAPES] for i in range(batch)]
    return tokens, position, SHAPES, torch.tensor(valid, dtype=torch.int32)


def as_float32(inputs):
    return [each.float() if torch.is_tensor(each) and each.is_floating_point() else each for each in inputs]


def error(out, expected):
    return float((out.float() - expected).norm() / expected.norm())


@HALVES
@pytest.mark.parametrize("e4m3", [False, True], ids=["half", "E4M3"])
@pytest.mark.parametrize("batch", [1, 2])
def test_loses_no_more_than_the_encoder_in_half_precision(detector, half, e4m3, batch):
    plain = quantised(in_half(detector, half).encoder, feed_forward(0, 1, 2) if e4m3 else [])
    joined = joined_encoder(plain, always)
    assert [type(each) for each in joined.layers] == [JoinedEnd] * 3
    assert [each.kind.e4m3 for each in joined.layers] == [e4m3] * 3
    inputs = random_inputs(half, batch)
    expected = detector.encoder(*as_float32(inputs))
    out = joined(*inputs)
    assert (out.shape, out.dtype) == (inputs[0].shape, half)
    lost = error(plain(*inputs), expected)
    assert 0 < error(out, expected) < 1.1 * lost
    assert lost < (0.05 if e4m3 else 0.02), "else the limit above says nothing"
    assert error(out, plain(*inputs).float()) < 2 * lost


@HALVES
def test_layers_that_the_operator_cannot_do_stay_as_they_are(detector, half):
    """One of the second layer's two products is quantised, and the next one's projection of the value."""
    plain = quantised(in_half(detector, half).encoder, [*feed_forward(0), FFN[1].format(1)])
    joined = joined_encoder(plain, always)
    assert [type(each) for each in joined.layers] == [JoinedEnd, PlainEnd, JoinedEnd]
    assert [each.kind.e4m3 for each in joined.layers if isinstance(each, JoinedEnd)] == [True, False]
    inputs = random_inputs(half)
    expected = detector.encoder(*as_float32(inputs))
    assert error(joined(*inputs), expected) < 1.1 * error(plain(*inputs), expected) < 0.05


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        pytest.param(["layers.1.self_attn.value_proj"], [PlainEnd, JoinedEnd, JoinedEnd], id="value"),
        pytest.param(["layers.0.self_attn.value_proj"], [JoinedEnd] * 3, id="value of the first"),
        pytest.param(["layers.2.self_attn.output_proj"], [JoinedEnd, JoinedEnd, PlainEnd], id="output projection"),
        pytest.param(["layers.2.self_attn.attention_weights"], [JoinedEnd, PlainEnd, JoinedEnd], id="logits"),
    ],
)
def test_quantised_projections_stay_as_they_are(detector, names, joined):
    plain = quantised(in_half(detector, torch.float16).encoder, names)
    found = joined_encoder(plain, always)
    assert [type(each) for each in found.layers] == joined
    inputs = random_inputs(torch.float16)
    assert error(found(*inputs), plain(*inputs).float()) < 0.05


def test_it_is_asked_for_every_layer_and_may_refuse(detector):
    asked = []

    def works(kind):
        asked.append(kind)
        return kind.offsets == 0

    encoder = in_half(detector, torch.float16).encoder
    joined = joined_encoder(encoder, works)
    usual = Kind(torch.float16, 256, 256, False, 64, 32)
    assert asked == [usual, usual, usual._replace(offsets=0, logits=0)]
    assert [type(each) for each in joined.layers] == [PlainEnd, PlainEnd, JoinedEnd]
    inputs = random_inputs(torch.float16)
    assert error(joined(*inputs), encoder(*inputs).float()) < 0.01
    assert joined_encoder(encoder, lambda kind: False) is encoder


def test_a_float32_encoder_is_not_asked_for(detector):
    assert joined_encoder(detector.encoder, lambda kind: pytest.fail("it was")) is detector.encoder
    assert detector.joined(always) is detector


@HALVES
def test_a_detector_is_joined_beside_itself(detector, half):
    plain = in_half(detector, half)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    joined = plain.joined(always)
    assert isinstance(joined.encoder, JoinedEncoder)
    assert joined.decoder is plain.decoder
    assert not isinstance(plain.encoder, JoinedEncoder)
    assert plain.state_dict().keys() == before.keys()
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([(64, 96), (50, 70)], dtype=torch.int32)
    for found, expected in zip(joined(images, sizes), plain(images, sizes), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    pixels = plain.normalize(images, sizes)
    wanted = detector.encode(pixels, sizes).tokens
    assert error(joined.encode(pixels, sizes).tokens, wanted) < 1.1 * error(plain.encode(pixels, sizes).tokens, wanted)


@pytest.mark.parametrize("levels", [2, 5])
def test_positions_are_looked_up_where_that_saves_sines(levels, monkeypatch):
    plain = random_detector(dataclasses.replace(VARIANT, num_levels=levels, num_points=4), precision="float16")
    joined = plain.joined(always)
    shapes = [(24, 36), (12, 18), (6, 9), (3, 5), (2, 3)][:levels]
    valid = torch.tensor([shapes, [(1 + h // 2, w) for h, w in shapes]], dtype=torch.int32)
    expected, looks = plain._position(shapes, valid), []
    monkeypatch.setattr(model, "looked_up_positions", lambda *given: looks.append(True) or looked_up_positions(*given))
    assert torch.equal(joined._position(shapes, valid), expected)
    assert torch.equal(plain._position(shapes, valid), expected)
    assert len(looks) == (levels == 5)


def count(program, operator):
    return sum(node.target is operator for node in program.graph.nodes)


@pytest.mark.engine
@pytest.mark.parametrize(
    "e4m3",
    [
        pytest.param([1], id="both"),  # and what follows one kind of layer is the other one
        pytest.param([], id="half", marks=pytest.mark.slow),
        pytest.param([0, 1, 2], id="E4M3", marks=pytest.mark.slow),
    ],
)
def test_a_program_has_the_operators_and_their_weights_once(detector, e4m3):
    plain = in_half(detector, torch.float16)
    quantised(plain.encoder, feed_forward(*e4m3))
    joined = plain.joined(always)
    assert [each.kind.e4m3 for each in joined.encoder.layers] == [i in e4m3 for i in range(3)]
    program = export_detector(joined, InputSpec(64, 96, max_batch_size=3))
    assert [count(program, each) for each in (FOLLOWED, LAST)] == [2, 1]
    assert count(program, SAMPLING) == 3 + VARIANT.decoder_layers
    names = {name for name in program.state_dict if name.startswith("encoder.")}
    projections = ("value_proj", "sampling_offsets", "attention_weights")
    assert names == {
        *(f"encoder.projections.{each}.{kind}" for each in projections for kind in ("weight", "bias")),
        *(f"encoder.layers.{i}.{kind}" for i in range(3) for kind in ("weights", "vectors")),
    }
    constants = [each for name, each in program.constants.items() if name.startswith("encoder.")]
    assert sum(each.numel() for each in constants) < 10, "of reference points alone"
    bytes_of = [program.state_dict[f"encoder.layers.{i}.weights"].numel() for i in range(3)]
    assert bytes_of == [count_bytes(each.kind) for each in joined.encoder.layers]
    for batch in (1, 3):
        images = torch.randint(0, 256, (batch, 64, 96, 3), dtype=torch.uint8)
        sizes = torch.tensor([(64 - 9 * i, 96 - 20 * i) for i in range(batch)], dtype=torch.int32)
        for found, expected in zip(program.module()(images, sizes), joined(images, sizes), strict=True):
            assert torch.equal(found, expected)
    written_out = decompose_operator(program)
    assert [count(written_out, each) for each in (FOLLOWED, LAST, SAMPLING)] == [0, 0, 0]
    for found, expected in zip(written_out.module()(images, sizes), joined(images, sizes), strict=True):
        assert found.shape == expected.shape
