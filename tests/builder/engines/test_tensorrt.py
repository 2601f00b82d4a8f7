"""What the TensorRT engine checks around the compiler, with stand-ins for it."""

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.export import Dim

from builder.build import BuildOptions
from builder.engines import EngineError
from builder.engines import tensorrt as engine
from builder.export import InputSpec
from builder.variants import get_variant


def convert_of_2_13(
    program, *, arg_inputs=None, attn_bias_is_causal=True, require_full_compilation=False, min_block_size=5,
    assume_dynamic_shape_support=False, immutable_weights=True, version_compatible=False, hardware_compatible=False,
    use_fp32_acc=False, disable_tf32=False, num_avg_timing_iters=1, optimization_level=None, timing_cache_path="",
    workspace_size=0, **kwargs,
):  # fmt: skip  # a signature
    return b""


def convert_of_2_14(program, *, output_binding_names=None, **kwargs):
    return b""


class Network(nn.Module):
    def forward(self, images, image_sizes):
        return images.float().mean((1, 2, 3)) + image_sizes.sum(1)


def export(batch, dynamic):
    dims = ({0: Dim("batch", min=1, max=batch)},) * 2 if dynamic else None
    inputs = torch.zeros(batch, 8, 6, 3, dtype=torch.uint8), torch.ones(batch, 2, dtype=torch.int32)
    return torch.export.export(Network(), inputs, dynamic_shapes=dims)


def test_every_keyword_is_one_of_the_functions():
    settings = engine.TensorRTSettings(optimization_level=4, workspace_gib=2.0, fp32_accumulation=True)
    keywords = engine.checked_keywords(convert_of_2_13, settings)
    assert keywords["attn_bias_is_causal"] is False
    assert keywords["require_full_compilation"] is True
    assert keywords["optimization_level"] == 4
    assert keywords["workspace_size"] == 2 * 2**30
    assert keywords["use_fp32_acc"] is True
    assert "use_explicit_typing" not in keywords  # gone, since there is no other typing


def test_keyword_that_would_be_swallowed_is_named():
    with pytest.raises(EngineError, match=r"does not know .*require_full_compilation"):
        engine.checked_keywords(convert_of_2_14, engine.TensorRTSettings())


@pytest.mark.parametrize(
    ("function", "names"),
    [(convert_of_2_13, ("output0", "output1", "output2")), (convert_of_2_14, ("boxes", "scores", "labels"))],
)
def test_output_names_follow_the_installed_version(monkeypatch, function, names):
    module = ModuleType("torch_tensorrt")
    module.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=function)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    assert engine.output_names() == names


def test_static_program_has_one_shape():
    images, sizes = engine.profiles(export(2, dynamic=False))
    assert images == {"shape": (2, 8, 6, 3), "dtype": torch.uint8, "name": "images"}
    assert sizes == {"shape": (2, 2), "dtype": torch.int32, "name": "image_sizes"}


def test_dynamic_program_has_a_profile():
    images, sizes = engine.profiles(export(4, dynamic=True))
    assert (images["min_shape"], images["opt_shape"], images["max_shape"]) == ((1, 8, 6, 3), (4, 8, 6, 3), (4, 8, 6, 3))
    assert (sizes["min_shape"], sizes["max_shape"]) == ((1, 2), (4, 2))


def inspected(*types):
    return {"Layers": [{"Outputs": [{"Name": "x", "Format/Datatype": name}]} for name in types]}


def test_histogram_reads_both_spellings():
    found = engine.layer_types(inspected("Row major linear FP16 format", "Half", "FP32", "Int32", "BFloat16", "BF16"))
    assert found == Counter({"float16": 2, "bfloat16": 2, "float32": 1})


def test_names_alone_cannot_be_checked():
    with pytest.raises(EngineError, match="does not tell"):
        engine.layer_types({"Layers": ["a layer's name"]})


@pytest.mark.parametrize(
    ("histogram", "precision"),
    [({"float16": 3, "float32": 97}, "float16"), ({"float32": 5}, "float32"), ({"bfloat16": 9}, "bfloat16")],
)
def test_asked_types_pass(histogram, precision):
    engine.check_types(histogram, precision)


@pytest.mark.parametrize(
    ("histogram", "precision", "message"),
    [
        ({"float16": 1, "float32": 99}, "float32", "not built in float32: its layers put out float16 1, float32 99"),
        ({"float16": 50, "bfloat16": 50}, "float16", "bfloat16 50"),
        ({}, "float32", "none"),
    ],
)
def test_types_nobody_asked_for_are_an_error_with_the_histogram(histogram, precision, message):
    with pytest.raises(EngineError, match=message):
        engine.check_types(histogram, precision)


def layer(name, kind, inputs, outputs, **more):
    """One layer as TensorRT's inspector describes it at detailed verbosity."""

    def tensors(types):
        return [{"Name": f"{name}_{i}", "Dimensions": [1, 64], "Format/Datatype": text} for i, text in enumerate(types)]

    return {"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs), **more}


HALF, FULL = "Row major linear FP16 format", "Float"
PRODUCTS = {
    "convolution": layer("[CONVOLUTION]-[patch_embed]", "CaskConvolution", [HALF], [HALF], ParameterType="Convolution"),
    "fused matrix product": layer("__myl_FcAdd_myl0_7", "kgen", [HALF, FULL], [FULL]),
    "tactic": layer("__myl_Mul_myl0_8", "kgen", [HALF], [HALF], TacticName="sm90_xmma_gemm_f16f16_f16f32_tn"),
    "attention": layer("_gemm_mha_v2_myl0_5", "gemm", [HALF, HALF, HALF], [HALF]),
    "plugin": layer("ms_deform_attn", "PluginV3", [HALF, FULL, HALF, HALF, "Int32"], [HALF]),
}
BOX_HEAD = layer("[MATRIX_MULTIPLY]-[box_head]", "MatrixMultiply", [FULL, FULL], [FULL])
OTHERS = [
    layer("__myl_MeaSubMulMea_myl0_1", "kgen", [FULL], [HALF]),  # layer norm
    layer("softmax", "kgen", [FULL], [HALF]),
    layer("top_k", "TopK", [FULL], [FULL, "Int32"]),
    layer("Reformatting CopyNode", "Reformat", [FULL], [HALF], Origin="REFORMAT"),
    layer("__myl_CastConvert", "kgen", [FULL], [HALF]),
    layer("shape", "ShapeHostToDevice", ["Int32"], ["Int32"]),
]


def checked(*layers, box_heads=1, precision="float16"):
    information = {"Layers": [*layers, *OTHERS]}
    engine.check_products(engine.product_layers(information), {"float16": 9, "float32": box_heads}, precision)


def test_products_are_told_from_other_layers():
    found = engine.product_layers({"Layers": [*PRODUCTS.values(), BOX_HEAD, *OTHERS]})
    names = [each["Name"] for each in PRODUCTS.values()]
    assert found == [*((name, "float16") for name in names), (BOX_HEAD["Name"], "float32")]


def test_half_products_with_float32_box_heads_pass():
    checked(*PRODUCTS.values(), BOX_HEAD)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_one_product_in_float32_is_an_error_that_names_it(kind):
    wrong = {**PRODUCTS[kind], "Inputs": [{"Format/Datatype": FULL}]}
    name = wrong["Name"].replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(EngineError, match=rf"not built in float16: 2 of its 2 .* 1 may; among them .*{name}"):
        checked(BOX_HEAD, wrong)


def test_an_engine_of_the_wrong_half_type_is_an_error():
    with pytest.raises(EngineError, match="5 of its 5 convolutions and matrix products work in another type, 0 may"):
        checked(*PRODUCTS.values(), box_heads=0, precision="bfloat16")


def test_a_float32_engine_has_no_half_product():
    checked(BOX_HEAD, precision="float32")
    with pytest.raises(EngineError, match="not built in float32: 1 of its 2"):
        checked(BOX_HEAD, PRODUCTS["convolution"], precision="float32")


def test_an_engine_that_tells_of_no_product_cannot_be_checked():
    with pytest.raises(EngineError, match="tells of no convolution or matrix product"):
        checked()


class Head(nn.Module):
    """Half-precision arithmetic with a float32 box head, as a detector has."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 1).half(), nn.Linear(4, 4).half()
        self.box_head = nn.Linear(4, 4)

    def forward(self, images):
        features = self.conv(images).flatten(2).transpose(1, 2)
        attention = (features @ features.transpose(1, 2)).float().softmax(-1)
        return self.box_head((attention.half() @ self.linear(features)).float())


def test_the_programs_products_are_counted_by_type():
    program = torch.export.export(Head(), (torch.zeros(1, 3, 2, 2, dtype=torch.float16),))
    assert engine.products_of(program) == {"float16": 4, "float32": 1}


def test_unconverted_operators_are_listed():
    inner = RuntimeError("Conversion of function torch._ops.aten.aten::all.dim not currently supported!")
    outer = RuntimeError("Conversion of module ...")
    outer.__cause__ = inner
    assert engine.explain(outer) == "no converter for torch._ops.aten.aten::all.dim"
    assert engine.explain(ValueError("first line\nsecond")) == "first line"


@pytest.mark.parametrize("name", ["tensorrt", "torch_tensorrt"])
def test_missing_library_is_one_line(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for each in ("tensorrt", "torch_tensorrt"):
        monkeypatch.setitem(sys.modules, each, None if each == name else ModuleType(each))
    with pytest.raises(EngineError, match=rf"needs {name}, which cannot be imported") as caught:
        engine.device()
    assert "\n" not in str(caught.value)


def test_no_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        engine.device()


@pytest.mark.parametrize(
    ("name", "message"), [("absent.so", "no TensorRT plugin at"), ("other.so", "called libcodetr")]
)
def test_plugin_library_is_looked_for(monkeypatch, tmp_path, name, message):
    (tmp_path / "other.so").touch()
    monkeypatch.setenv(engine.PLUGIN_VARIABLE, str(tmp_path / name))
    with pytest.raises(EngineError, match=message):
        engine.plugin_library()


@pytest.mark.parametrize("kwargs", [{"optimization_level": 6}, {"workspace_gib": 0.0}, {"average_timings": 0}])
def test_impossible_settings_are_refused(kwargs):
    with pytest.raises(EngineError, match="expected"):
        engine.TensorRTSettings(**kwargs)


def test_settings_are_not_dropped_by_other_engines():
    with pytest.raises(EngineError, match="--engine tensorrt"):
        BuildOptions(
            get_variant("co_dino_r50_12e"), InputSpec(64, 64), tensorrt=engine.TensorRTSettings(optimization_level=5)
        )
