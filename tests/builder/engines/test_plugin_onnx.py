"""ONNX with plugin nodes: the nodes' form, and their meaning through an evaluation of the operator in Python."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

import plugin_src
from builder import load_detector
from builder.build import BuildOptions, write_plugin_onnx
from builder.engines import EngineError, plugin_onnx
from builder.export import InputSpec, export_detector
from builder.ms_deform_attn import ms_deform_attn, reference_ms_deform_attn
from builder.variants import get_variant

SIZES = [4, 6, 2, 3]


class CodetrMsDeformAttn(OpRun):
    op_domain = plugin_onnx.DOMAIN

    def _run(
        self, value, reference_points, offsets, logits, valid, spatial_shapes=None, plugin_version=None,
        plugin_namespace=None,
    ):  # fmt: skip  # the evaluator passes attributes by these names
        tensors = [torch.from_numpy(array.copy()) for array in (value, reference_points, offsets, logits)]
        return (reference_ms_deform_attn(*tensors, list(spatial_shapes), torch.from_numpy(valid.copy())).numpy(),)


class Attention(nn.Module):
    def forward(self, value, reference_points, offsets, logits, valid):
        return ms_deform_attn(value, reference_points, offsets, logits, SIZES, valid)


def plugin_nodes(path):
    return [node for node in onnx.load(path).graph.node if node.domain == plugin_onnx.DOMAIN]


def attributes(node):
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def creator_source():
    return (Path(plugin_src.__path__[0]) / "tensorrt_plugin.h").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["float32", "float16"])
def detector_nodes(golden_config, golden_weights, tmp_path_factory, request):
    path = tmp_path_factory.mktemp("plugin") / plugin_onnx.FILE_NAME
    detector = load_detector(golden_config, golden_weights, request.param)
    plugin_onnx.build(export_detector(detector, InputSpec(64, 96, max_batch_size=2)), path)
    return plugin_nodes(path)


def test_one_node_a_layer_with_the_levels_sizes(detector_nodes):
    assert len(detector_nodes) == 4  # two encoder layers, two decoder layers
    for node in detector_nodes:
        assert len(node.input) == 5
        assert len(node.output) == 1
        assert attributes(node) == {
            "spatial_shapes": [16, 24, 8, 12, 4, 6, 2, 3, 1, 2],
            "plugin_version": b"1",
            "plugin_namespace": b"",
        }


def test_names_are_the_creators(detector_nodes):
    constants = dict(re.findall(r'constexpr char const\* (k\w+) = "(.*)";', creator_source()))
    assert {node.op_type for node in detector_nodes} == {constants["kPluginName"]}
    given = attributes(detector_nodes[0])
    assert given.pop("plugin_version").decode() == constants["kPluginVersion"]
    assert given.pop("plugin_namespace").decode() == constants["kPluginNamespace"]
    assert list(given) == [constants["kSpatialShapesField"]]


# The exporter warns about its own use of a tree class.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
def test_node_means_the_operator(tmp_path):
    generator = torch.Generator().manual_seed(3)
    inputs = (
        torch.randn(2, 30, 2, 4, generator=generator),
        torch.rand(2, 5, 2, 4, generator=generator),
        torch.randn(2, 5, 2, 2, 3, 2, generator=generator),
        torch.randn(2, 5, 2, 2, 3, generator=generator),
        torch.tensor([[[4, 6], [2, 3]], [[2, 5], [1, 3]]], dtype=torch.int32),
    )
    path = tmp_path / "attention.onnx"
    names = ["value", "reference_points", "offsets", "logits", "valid"]
    exported = torch.onnx.export(
        torch.export.export(Attention(), inputs, strict=True),
        (),
        dynamo=True,
        opset_version=18,
        input_names=names,
        custom_translation_table=plugin_onnx.TRANSLATIONS,
        verbose=False,
    )
    exported.save(str(path))
    assert len(plugin_nodes(path)) == 1
    evaluator = ReferenceEvaluator(str(path), new_ops=[CodetrMsDeformAttn])
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    np.testing.assert_allclose(evaluator.run(None, feed)[0], Attention()(*inputs).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("engine", "existing", "message"), [("torch", False, "--engine onnx"), ("onnx", True, "exists")]
)
def test_refusals_are_named(tmp_path, engine, existing, message):
    if existing:
        (tmp_path / plugin_onnx.FILE_NAME).touch()
    options = BuildOptions(get_variant("co_dino_r50_12e"), InputSpec(64, 64), engine=engine)
    with pytest.raises(EngineError, match=message):
        write_plugin_onnx(options, tmp_path)
