"""The check of a plan's precision, on what TensorRT's inspector says of plans."""

from collections import Counter

import pytest
import torch
from torch import nn

from builder.engines import EngineError
from builder.engines.tensorrt.precision import (
    check_precision,
    check_products,
    check_quantised,
    check_types,
    count_plugin_layers,
    layer_types,
    product_layers,
    products_of,
    warn_of_narrowed,
)
from builder.pipeline.export import decompose_attention
from tests.builder.engines.tensorrt import windowed


def inspected(*types):
    return {"Layers": [{"Outputs": [{"Name": "x", "Format/Datatype": name}]} for name in types]}


def test_histogram_reads_both_spellings():
    found = layer_types(inspected("Row major linear FP16 format", "Half", "FP32", "Int32", "BFloat16", "BF16"))
    assert found == Counter({"float16": 2, "bfloat16": 2, "float32": 1})


def test_names_alone_cannot_be_checked():
    with pytest.raises(EngineError, match="does not tell"):
        layer_types({"Layers": ["a layer's name"]})


@pytest.mark.parametrize(
    ("histogram", "precision"),
    [({"float16": 3, "float32": 97}, "float16"), ({"float32": 5}, "float32"), ({"bfloat16": 9}, "bfloat16")],
)
def test_asked_types_pass(histogram, precision):
    check_types(histogram, precision)


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
        check_types(histogram, precision)


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
    "window plugin": layer("node_window_attention_1", "PluginV2", [HALF, HALF, HALF], [HALF]),
}
BOX_HEAD = layer("[MATRIX_MULTIPLY]-[box_head]", "MatrixMultiply", [FULL, FULL], [FULL])
OTHERS = [
    layer("__myl_MeaSubMulMea_myl0_1", "kgen", [FULL], [HALF]),  # layer norm
    layer("softmax", "kgen", [FULL], [HALF]),
    layer("top_k", "TopK", [FULL], [FULL, "Int32"]),
    layer("Reformatting CopyNode", "Reformat", [FULL], [HALF], Origin="REFORMAT"),
    layer("__myl_CastConvert", "kgen", [FULL], [HALF]),
    layer("shape", "ShapeHostToDevice", ["Int32"], ["Int32"]),
    # as 8.5.3 names them in a float16 plan of RT-DETRv2
    layer("Reformatting CopyNode for Input Tensor 0 to node_conv2d + node_relu", "Reformat", [FULL], [HALF]),
    layer("reshape_before_node_MatMul_271", "NoOp", [FULL], [FULL]),
    layer("reshape_after_node_MatMul_277", "Shuffle", [FULL], [FULL]),
    layer("node_conv2d.weight + (Unnamed Layer* 324) [Shuffle]", "Constant", [FULL], [FULL]),
]


def checked(*layers, box_heads=1, precision="float16"):
    information = {"Layers": [*layers, *OTHERS]}
    check_products(product_layers(information), {"float16": 9, "float32": box_heads}, precision)


def test_products_are_told_from_other_layers():
    found = product_layers({"Layers": [*PRODUCTS.values(), BOX_HEAD, *OTHERS]})
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
    with pytest.raises(EngineError, match="6 of its 6 convolutions and matrix products work in another type, 0 may"):
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
    assert products_of(program) == {"float16": 4, "float32": 1}


def test_a_block_of_window_attention_is_one_product():
    program = windowed.exported()
    written_out = decompose_attention(program, window_plugin=False)
    assert products_of(program)["float16"] == products_of(written_out)["float16"] - 2, "of two blocks"


INT8 = "Thirty-two wide channel vectorized row major Int8 format"
QUANTISED = {
    "int8": layer("conv1 + relu", "CaskConvolution", [INT8], [INT8], ParameterType="Convolution"),
    "fp8": layer("__myl_FcMul_myl0_3", "gemm", ["FP8", HALF], [HALF]),
}


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_plan_with_a_quantised_product_passes(precision):
    layers = [PRODUCTS["convolution"], QUANTISED[precision]]
    check_quantised({"Layers": layers}, precision)


@pytest.mark.parametrize(("precision", "other"), [("int8", "fp8"), ("fp8", "int8")])
def test_a_plan_whose_products_all_work_in_other_types_is_refused(precision, other):
    resize = layer("resize", "Resize", ["Int8", "FP8"], [HALF])
    rounded = layer("Reformatting CopyNode for Output Tensor 0 to conv1", "Reformat", ["Int8", "FP8"], [HALF])
    layers = [PRODUCTS["convolution"], QUANTISED[other], resize, rounded]
    with pytest.raises(EngineError, match=f"not built in {precision}: none of its 2 convolutions and matrix products"):
        check_quantised({"Layers": layers}, precision)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_plan_whose_types_tensorrt_withholds_is_no_fault(monkeypatch, precision):
    withheld = layer("conv1", "CaskConvolution", ["N/A due to dynamic shapes"], ["N/A due to dynamic shapes"])
    program = torch.export.export(nn.Linear(2, 2).half(), (torch.zeros(1, 2, dtype=torch.float16),))
    if precision == "int8":
        monkeypatch.setattr("builder.engines.tensorrt.precision.quantised_to", lambda program: "int8")
    with pytest.warns(UserWarning, match=f"nothing shows that it computes in {precision}"):
        check_precision({"Layers": [withheld]}, program)


def test_plugin_layers_are_counted_and_missed():
    program = windowed.exported()
    plugin = layer("node_window_attention", "PluginV2", [HALF], [HALF])
    assert count_plugin_layers({"Layers": [plugin, *OTHERS, plugin]}, program, "8.5.3.1") == 2
    assert count_plugin_layers({"Layers": OTHERS}, decompose_attention(program, window_plugin=False), "8.5.3.1") == 0
    with pytest.raises(EngineError, match=r"TensorRT 8\.5\.3\.1 shows no plugin layer"):
        count_plugin_layers({"Layers": OTHERS}, program, "8.5.3.1")
    with pytest.warns(UserWarning, match=r"TensorRT 11\.1 shows no plugin layer"):
        count_plugin_layers({"Layers": OTHERS}, program, "11.1")


REGION = layer("{ForeignNode[node_linear...node_MatMul_3]}", "Myelin", ["Row major linear FP32"], [HALF])


def test_a_region_is_no_product_whose_type_is_known():
    assert product_layers({"Layers": [REGION, PRODUCTS["convolution"]]}) == product_layers(
        {"Layers": [PRODUCTS["convolution"]]}
    )


def test_a_plan_of_regions_alone_is_built_with_a_warning():
    program = torch.export.export(nn.Linear(2, 2).half(), (torch.zeros(1, 2, dtype=torch.float16),))
    with pytest.warns(UserWarning, match="nothing shows that it computes in float16"):
        check_precision({"Layers": [REGION]}, program)
    with pytest.raises(EngineError, match="the plan tells of no convolution or matrix product"):
        check_precision({"Layers": [layer("relu", "PointWise", [HALF], [HALF])]}, program)


def tensor(name, format_):
    return {"Name": name, "Format/Datatype": format_}


FUSED = "{ForeignNode[node__to_copy...node_slice_13]}"
WIDE, INTEGERS = "Row major linear FP32", "Row major linear Int32"
# As 8.5.3.1 told of Co-DINO's demo: a region that hands on some of its tensors as they are, and one through a copy.
NARROWING = {
    "Layers": [
        {"Name": FUSED, "Outputs": [tensor("div_68", HALF), tensor("slice_8", INTEGERS), tensor("linear", HALF)]},
        {
            "Name": f"Reformatting CopyNode for Output Tensor 19 to {FUSED}",
            "Inputs": [tensor(f"Reformatted Output Tensor 19 to {FUSED}", HALF)],
            "Outputs": [tensor("mul_100", WIDE)],
        },
        {
            "Name": f"Reformatting CopyNode for Output Tensor 20 to {FUSED}",
            "Inputs": [tensor(f"Reformatted Output Tensor 20 to {FUSED}", WIDE)],
            "Outputs": [tensor("softmax", WIDE)],
        },
        {"Name": "cast", "Inputs": [tensor("linear", HALF)], "Outputs": [tensor("to_float", WIDE)]},
    ]
}
NETWORK = dict.fromkeys(("div_68", "mul_100", "softmax", "to_float"), "float32") | {"linear": "float16"}


def test_tensors_that_a_plan_narrows_are_named():
    with pytest.warns(
        UserWarning, match=r"TensorRT 8\.5\.3 hands on 2 tensors in half .*: div_68, mul_100; where they"
    ):
        warn_of_narrowed(NARROWING, NETWORK, "8.5.3")


def test_of_many_tensors_some_are_named():
    layers = [{"Name": f"l{i}", "Outputs": [tensor(f"t{i}", HALF)]} for i in range(7)]
    with pytest.warns(UserWarning, match=r"hands on 7 tensors .*: t0, t1, t2, t3, t4 and 2 more;"):
        warn_of_narrowed({"Layers": layers}, {f"t{i}": "float32" for i in range(7)}, "8.5.3")


@pytest.mark.parametrize("information", [{}, {"Layers": ["a name alone"]}, {"Layers": NARROWING["Layers"][2:]}])
def test_a_plan_that_narrows_nothing_warns_of_nothing(information, recwarn):
    warn_of_narrowed(information, NETWORK, "8.5.3")
    assert not recwarn.list
