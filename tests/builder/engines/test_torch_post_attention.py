import dataclasses
import warnings

import pytest
import torch

from builder.checkpoint import random_detector
from builder.co_dino.joined_encoder import JoinedEncoder
from builder.engines import torch as engine
from builder.engines import torch_post_attention
from builder.engines.kinds import KINDS
from builder.engines.torch_post_attention import LARGEST_ERROR, Trying, _errors
from builder.operators.cuda import CudaOperatorError
from builder.operators.post_attention import post_attention, post_attention_followed
from builder.operators.post_attention_layer import Kind
from builder.pipeline.export import InputSpec, export_detector
from tests.markers import skip_but_on_hopper
from tests.smallest import SMALLEST
from tests.toy_family import SMALL, ToyDetector

USUAL = Kind(torch.float16, 256, 256, False, 64, 32)
KINDS_OF_LAYERS = [
    USUAL, USUAL._replace(offsets=0, logits=0), USUAL._replace(e4m3=True), USUAL._replace(dtype=torch.bfloat16)
]  # fmt: skip  # one line
JOINED = "what follows the encoder's attention is not joined: "


@pytest.fixture
def here(monkeypatch):
    """A machine on which the operator works, as far as a test does not say otherwise."""
    tried = []
    monkeypatch.setattr(torch_post_attention, "load_cuda_operator", lambda: None)
    monkeypatch.setattr(torch_post_attention, "_errors", lambda kind: tried.append(kind) or [0.001, 0.002])
    return tried


def test_each_kind_is_tried_once_and_counted(here, capsys):
    trying = Trying()
    assert [trying(kind) for kind in (*KINDS_OF_LAYERS, USUAL)] == [True] * 5
    assert here == KINDS_OF_LAYERS
    assert trying.joined == 5
    assert capsys.readouterr().out == ""


def test_why_not_is_told_once(here, monkeypatch, capsys):
    def load():
        raise CudaOperatorError("nvcc was not found: install it\nor not")

    monkeypatch.setattr(torch_post_attention, "load_cuda_operator", load)
    trying = Trying()
    assert not any(trying(kind) for kind in (*KINDS_OF_LAYERS, *KINDS_OF_LAYERS))
    assert (trying.joined, here) == (0, [])
    assert capsys.readouterr().out == f"{JOINED}nvcc was not found: install it\n"


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        pytest.param([0.001, 1.4], "torch.float16 with 256 hidden numbers is 1.4 off PyTorch's result", id="wrong"),
        pytest.param([float("nan")], "torch.float16 with 256 hidden numbers is nan off PyTorch's result", id="NaN"),
        pytest.param(RuntimeError("post_attention: needs another GPU"), "post_attention: needs another", id="refused"),
    ],
)
def test_what_does_not_work_is_not_joined(here, monkeypatch, capsys, errors, words):
    def found(kind):
        if isinstance(errors, Exception):
            raise errors
        return errors

    monkeypatch.setattr(torch_post_attention, "_errors", found)
    assert not Trying()(USUAL)
    assert capsys.readouterr().out.startswith(JOINED + words)


def test_a_kind_that_no_kernel_does_is_not_tried(here, capsys):
    assert not Trying()(USUAL._replace(width=64))
    assert not here
    assert capsys.readouterr().out == f"{JOINED}tokens must have 256 channels, got 64\n"


@pytest.mark.parametrize("kind", KINDS_OF_LAYERS)
def test_errors_are_those_of_the_operator(kind, monkeypatch):
    assert _errors(kind, "cpu") == [0.0] * (4 if kind.offsets else 1)
    wrong = {
        "post_attention": lambda *inputs: post_attention(*inputs).roll(1, 1),
        "post_attention_followed": lambda *inputs: [each.roll(1, 1) for each in post_attention_followed(*inputs)],
    }
    for name, operator in wrong.items():
        monkeypatch.setattr(torch_post_attention, name, operator)
    assert min(_errors(kind, "cpu")) > 10 * LARGEST_ERROR


class OnGPU(ToyDetector):
    device = torch.device("cuda")

    def joined(self, works):
        self.asked = works(USUAL)
        return "another"


def test_detectors_on_a_gpu_are_joined(here, capsys):
    detector = OnGPU(SMALL)
    assert engine.prepared(detector) == "another"
    assert detector.asked
    assert capsys.readouterr().out == "what follows the attention of 1 encoder layers is one operator each\n"


def test_on_a_gpu_the_weights_of_convolutions_lie_as_its_library_reads_them(here):
    detector = OnGPU(SMALL)
    detector.convolutions = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3), torch.nn.Linear(8, 8))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    engine.prepared(detector)
    weight = detector.convolutions[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_other_detectors_are_exported_as_they_are(kind):
    detector = random_detector(SMALLEST, precision="float16")
    assert KINDS[kind].module.prepared(detector) is detector
    toy = ToyDetector(SMALL)
    assert toy.joined(lambda kind: True) is toy


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_an_engine_on_a_gpu_has_the_operators(tmp_path, precision):
    skip_but_on_hopper()
    variant = dataclasses.replace(
        SMALLEST, embed_dim=256, num_heads=8, num_self_heads=8, feedforward_dim=2048, encoder_layers=3
    )
    plain = random_detector(variant, precision=precision).to("cuda")
    detector = engine.prepared(plain)
    assert isinstance(detector.encoder, JoinedEncoder)
    pixels = torch.randn(2, 3, 96, 136, device="cuda")
    sizes = torch.tensor([(96, 136), (50, 70)], dtype=torch.int32, device="cuda")
    exact = random_detector(variant).to("cuda").encode(pixels, sizes).tokens
    lost = [float((each.encode(pixels, sizes).tokens - exact).norm() / exact.norm()) for each in (detector, plain)]
    assert lost[0] < 1.1 * lost[1]
    spec = InputSpec(96, 136, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compilers warn about their own deprecated calls
        built = engine.build(export_detector(detector, spec), tmp_path / "model.pt2")
    inputs = [each.numpy() for each in spec.sample_inputs()]
    found = engine.load(built.file, spec, "cuda")(*inputs)
    assert found.boxes.shape == (2, variant.max_detections, 4)
