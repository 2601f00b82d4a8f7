import pytest
import torch

from builder import load_detector, random_detector
from builder.pipeline.export import ExportError, InputSpec, decompose_operator, export_detector

OPERATOR = torch.ops.codetr.ms_deform_attn.default


@pytest.fixture(scope="module")
def detector(golden_config, golden_weights):
    return load_detector(golden_config, golden_weights)


def random_inputs(batch, height, width):
    generator = torch.Generator().manual_seed(batch)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([(height - 7 * i, width - 11 * i) for i in range(batch)], dtype=torch.int32)
    return images, sizes


def operator_nodes(program):
    return [node for node in program.graph.nodes if node.target is OPERATOR]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dynamic_batch_gives_the_same_numbers(golden_config, golden_weights, precision):
    detector = load_detector(golden_config, golden_weights, precision)
    program = export_detector(detector, InputSpec(64, 98, max_batch_size=3))
    assert len(operator_nodes(program)) == 4  # two encoder layers, two decoder layers
    module = program.module()
    for batch in (1, 2, 3):
        inputs = random_inputs(batch, 64, 98)
        torch.testing.assert_close(tuple(module(*inputs)), tuple(detector(*inputs)), atol=0, rtol=0)


def test_static_batch_takes_no_other(detector):
    program = export_detector(detector, InputSpec(64, 64, max_batch_size=2, dynamic_batch=False))
    module = program.module()
    inputs = random_inputs(2, 64, 64)
    torch.testing.assert_close(tuple(module(*inputs)), tuple(detector(*inputs)), atol=0, rtol=0)
    with pytest.raises((AssertionError, RuntimeError), match=r"Guard failed|batch|shape"):
        module(*random_inputs(1, 64, 64))


def test_decomposed_program_has_no_operator_and_the_same_numbers(detector):
    program = decompose_operator(export_detector(detector, InputSpec(64, 98, max_batch_size=2)))
    assert not operator_nodes(program)
    inputs = random_inputs(2, 64, 98)
    torch.testing.assert_close(tuple(program.module()(*inputs)), tuple(detector(*inputs)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["co_dino_swin_l_o365", "co_dino_r50_lsj_36e"])
def test_full_size_models_export(variant):
    program = export_detector(random_detector(variant), InputSpec(768, 1152))
    assert len(operator_nodes(program)) == 12


@pytest.mark.parametrize(("kwargs", "message"), [({"height": 0}, "height=0"), ({"max_batch_size": 0}, "batch=0")])
def test_impossible_sizes_are_named(kwargs, message):
    with pytest.raises(ExportError, match=message):
        InputSpec(**{"height": 64, "width": 64, **kwargs})
