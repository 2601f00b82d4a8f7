import warnings
from dataclasses import replace

import pytest
import torch

from builder import get_variant, load_detector, random_detector
from builder.co_dino.config import SwinConfig
from builder.pipeline.export import ExportError, InputSpec, decompose_attention, decompose_operator, export_detector
from tests.toy_family import SMALL, ToyDetector

pytestmark = pytest.mark.engine
# A Swin that masks the padding, a ResNet that does not.
PUBLISHED = ["co_dino_swin_l_o365", "co_dino_r50_lsj_36e"]
OPERATOR = torch.ops.codetr.ms_deform_attn.default


@pytest.fixture(scope="module")
def shallow(shallow_config, shallow_weights):
    return load_detector(shallow_config, shallow_weights)


@pytest.fixture(scope="module")
def program(shallow):
    """For one to three images; tests must not change it."""
    return export_detector(shallow, InputSpec(64, 98, max_batch_size=3))


def random_inputs(batch, height, width):
    generator = torch.Generator().manual_seed(batch)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([(height - 7 * i, width - 11 * i) for i in range(batch)], dtype=torch.int32)
    return images, sizes


def operator_nodes(program):
    return [node for node in program.graph.nodes if node.target is OPERATOR]


def assert_any_batch_gives_the_same_numbers(program, detector):
    module = program.module()
    for batch in (1, 2, 3):
        inputs = random_inputs(batch, 64, 98)
        torch.testing.assert_close(tuple(module(*inputs)), tuple(detector(*inputs)), atol=0, rtol=0)


def test_dynamic_batch_gives_the_same_numbers(program, shallow):
    assert len(operator_nodes(program)) == 2  # an encoder layer, a decoder layer
    assert_any_batch_gives_the_same_numbers(program, shallow)


def test_dynamic_batch_gives_the_same_numbers_in_half_precision(shallow_config, shallow_weights):
    detector = load_detector(shallow_config, shallow_weights, "bfloat16")
    program = export_detector(detector, InputSpec(64, 98, max_batch_size=3))
    assert_any_batch_gives_the_same_numbers(program, detector)


class CountingDetector(ToyDetector):
    """One that makes a number of its batch."""

    def network(self, pixels, image_sizes):
        return super().network(pixels, image_sizes[: len(pixels)])


def test_a_batch_that_becomes_a_number_is_told():
    export_detector(CountingDetector(SMALL), InputSpec(64, 96, 1))
    with pytest.raises(ExportError, match=r"takes its batch for the number 3, .* take shape\[0\]"):
        export_detector(CountingDetector(SMALL), InputSpec(64, 96, 3))


def test_static_batch_takes_no_other(shallow):
    program = export_detector(shallow, InputSpec(64, 64, max_batch_size=2, dynamic_batch=False))
    module = program.module()
    inputs = random_inputs(2, 64, 64)
    torch.testing.assert_close(tuple(module(*inputs)), tuple(shallow(*inputs)), atol=0, rtol=0)
    with pytest.raises((AssertionError, RuntimeError), match=r"Guard failed|batch|shape"):
        module(*random_inputs(1, 64, 64))


def test_decomposed_program_has_no_operator_and_the_same_numbers(program, shallow):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of PyTorch's about itself too, which the tests' own filters let pass
        decomposed = decompose_operator(program)
    assert not operator_nodes(decomposed)
    inputs = random_inputs(2, 64, 98)
    torch.testing.assert_close(tuple(decomposed.module()(*inputs)), tuple(shallow(*inputs)), atol=1e-5, rtol=1e-5)


class PlainAttention(torch.nn.Module):
    def forward(self, query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def test_pytorchs_own_attention_is_written_out_for_tensorrt():
    inputs = tuple(torch.randn(2, 3, 5, 8) for _ in range(3))
    program = torch.export.export(PlainAttention(), inputs, strict=True)
    plain = decompose_attention(program)
    assert not any("attention" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(*inputs), PlainAttention()(*inputs))


def of_fewer_layers(variant):
    """The same kinds of layers at the same widths, one encoder and one decoder layer, and a shifted window."""
    backbone = variant.backbone
    if isinstance(backbone, SwinConfig):
        backbone = replace(backbone, depths=(2, 1, 1, 1))
    return replace(variant, backbone=backbone, encoder_layers=1, decoder_layers=1)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_models_of_full_width_export(variant):
    program = export_detector(random_detector(of_fewer_layers(get_variant(variant))), InputSpec(768, 1152))
    assert len(operator_nodes(program)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("variant", PUBLISHED)
def test_full_size_models_export(variant):
    program = export_detector(random_detector(variant), InputSpec(768, 1152))
    assert len(operator_nodes(program)) == 12


@pytest.mark.parametrize(("kwargs", "message"), [({"height": 0}, "height=0"), ({"max_batch_size": 0}, "batch=0")])
def test_impossible_sizes_are_named(kwargs, message):
    with pytest.raises(ExportError, match=message):
        InputSpec(**{"height": 64, "width": 64, **kwargs})
