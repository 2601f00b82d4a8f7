"""The network as training uses it, its other settings, and half precision."""

from dataclasses import replace

import pytest
import torch

from builder import load_detector, random_detector
from builder.rtdetrv2.model import RTDETRv2
from perf.accuracy.precision import relative_error
from tests.builder.rtdetrv2.test_levels import TINY

ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}
# In roundings of the type: through the 40 convolutions before the memory they add up to some 15.
MEMORY, HIDDEN, BOXES = 24, 12, 4
SIZES = torch.tensor([[64, 96]])


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("deployed", [False, True])
def test_error_of_half_precision_is_a_few_roundings(golden_config, golden_weights, case, precision, deployed):
    """The float32 choice of tokens is given to the half network: any rounding swaps ranks."""
    reference = load_detector(golden_config, golden_weights)
    half = load_detector(golden_config, golden_weights)
    half = (half.deploy() if deployed else half).set_precision(getattr(torch, precision))
    memory, half_memory = reference.encode(case.pixels), half.encode(case.pixels)
    proposals = reference.proposals(*memory)
    assert relative_error(half_memory.tokens, memory.tokens) < MEMORY * ROUNDING[precision]
    decoded = reference.decode(memory, proposals)
    half_decoded = half.decode(half_memory, proposals._replace(tokens=proposals.tokens.to(half.dtype)))
    assert half_decoded.hidden[-1].dtype == half.dtype
    assert half_decoded.boxes[-1].dtype == torch.float32
    assert relative_error(half_decoded.hidden[-1], decoded.hidden[-1]) < HIDDEN * ROUNDING[precision]
    assert relative_error(half_decoded.boxes[-1], decoded.boxes[-1]) < BOXES * ROUNDING[precision]


def test_what_stays_float32(golden_config, golden_weights):
    half = load_detector(golden_config, golden_weights).deploy().set_precision(torch.float16)
    kept = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert {name for name, _ in half.named_parameters() if "norm" in name or "box_head" in name} < kept
    rest = {name for name in kept if "norm" not in name and "box_head" not in name}
    assert {name.rpartition(".")[0] for name in rest} == {"decoder.position_head.0", "decoder.position_head.2"}
    images = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8)
    boxes, scores, _ = half(images, torch.tensor([[96, 96]], dtype=torch.int32))
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)


def test_batch_statistics_stay_float32_before_folding():
    half = random_detector(TINY, precision="float16")
    assert {buffer.dtype for buffer in half.buffers()} == {torch.float32}


def predictions_of(network, pixels):
    """Logits and boxes of the chosen tokens and of every decoder layer, as losses read them."""
    memory = network.encode(pixels)
    proposals = network.proposals(*memory)
    decoded = network.decode(memory, proposals)
    layers = [network.predict(decoded, layer) for layer in range(len(decoded.hidden))]
    return [(proposals.logits, proposals.boxes), *layers]


def test_every_layer_is_predicted_and_trains():
    torch.manual_seed(0)
    variant = replace(TINY, decoder_layers=3, backbone=replace(TINY.backbone, frozen_norm=False))
    network = RTDETRv2(variant, auxiliary=True)
    predictions = predictions_of(network, torch.rand(2, 3, 64, 96))
    assert len(predictions) == 4  # the chosen tokens, and three layers
    assert {tuple(logits.shape) for logits, _ in predictions} == {(2, 10, 80)}
    assert {tuple(boxes.shape) for _, boxes in predictions} == {(2, 10, 4)}
    sum(logits.sigmoid().sum() + boxes.sum() for logits, boxes in predictions).backward()
    missing = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert missing == set()
    before = network.backbone.stem[0].norm.running_mean.clone()
    predictions_of(network, torch.rand(2, 3, 64, 96))
    assert not torch.equal(network.backbone.stem[0].norm.running_mean, before)


def test_a_box_trains_its_own_head_and_the_one_before():
    network = RTDETRv2(replace(TINY, decoder_layers=3), auxiliary=True)
    predictions_of(network, torch.rand(1, 3, 64, 96))[-1][1].sum().backward()
    trained = [head[0].bias.grad is not None for head in network.decoder.box_heads]
    assert trained == [False, True, True]
    assert network.proposals.box_head[0].bias.grad is None
    assert network.proposals.proj.weight.grad is None  # the decoder does not train what chooses its queries


def test_the_last_prediction_is_the_networks(detector, eval96):
    network = RTDETRv2(detector.variant, auxiliary=True).eval()
    network.load_state_dict(detector.state_dict(), strict=False)
    for actual, expected in zip(
        predictions_of(network, eval96.pixels)[-1], detector.network(eval96.pixels, eval96.image_sizes), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_predictions_need_the_heads_of_training():
    network = RTDETRv2(replace(TINY, decoder_layers=2), auxiliary=True)
    network.deploy()
    with pytest.raises(RuntimeError, match=r"layer 0.*auxiliary=True"):
        predictions_of(network, torch.rand(1, 3, 64, 96))


def test_frozen_norms_do_not_train():
    network = RTDETRv2(TINY)
    assert TINY.backbone.frozen_norm
    assert not [name for name, _ in network.backbone.named_parameters() if ".norm." in name]
    assert [name for name, _ in network.encoder.named_parameters() if ".norm." in name]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"num_levels": 5, "num_points": (2, 2, 1, 3, 2)}, id="levels beyond the backbone's"),
        pytest.param({"selection": "agnostic"}, id="one score for all classes"),
        pytest.param({"selection": "one2many"}, id="pairs"),
        pytest.param({"learned_queries": True}, id="learned queries"),
        pytest.param({"sampling": "discrete"}, id="discrete"),
        pytest.param({"backbone": replace(TINY.backbone, depth=50)}, id="bottlenecks"),
        pytest.param({"backbone": replace(TINY.backbone, out_indices=(0, 1, 2, 3)), "num_levels": 4,
                      "num_points": (1,) * 4}, id="four maps"),
        pytest.param({"encoder": replace(TINY.encoder, attended=(1, 2), num_layers=2)}, id="attention on two maps"),
        pytest.param({"encoder": replace(TINY.encoder, num_layers=0)}, id="no attention"),
    ],
)  # fmt: skip
def test_other_settings_run_the_same_when_folded(settings):
    detector = random_detector(replace(TINY, **settings)).double()
    pixels = torch.rand(2, 3, 64, 96, dtype=torch.float64, generator=torch.manual_seed(1))
    logits, boxes = detector.network(pixels, SIZES)
    assert logits.shape == (2, 10, 80)
    assert boxes.shape == (2, 10, 4)
    folded = detector.deploy().network(pixels, SIZES)
    torch.testing.assert_close(folded, (logits, boxes), atol=1e-8, rtol=1e-8)
