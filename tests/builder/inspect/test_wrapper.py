"""Calls of kernels, read from sources in the manner of AOTInductor's."""

from builder.inspect.wrapper import constants_of, parts_of
from tests.builder.inspect.sources import ON_CPU, ON_GPU


def parts(source):
    return parts_of(source, constants_of(source), [source], 3)


def test_the_kernels_of_a_package_for_a_cpu():
    first, product, relu, topk = parts(ON_CPU)
    assert [part.kind for part in (first, product, relu, topk)] == [
        "fused kernel (C++)",
        "mm",
        "fused kernel (C++)",
        "topk",
    ]
    assert first.name == "0: cpp_fused_add_0"
    assert (first.inputs, first.outputs, first.shapes) == (("arg2_1",), ("buf0#0",), ("float32 3x8",))
    assert (product.module, product.weight_bytes, product.type) == ("head.0", 512, "float32")
    assert (product.inputs, product.outputs, product.shapes) == (("buf0#0",), ("buf1#1",), ("float32 6x16",))
    assert product.flops == 2 * 6 * 16 * 8
    assert product.made_of == ("linear", "view")
    assert product.details["operators"] == "view, addmm"
    assert (relu.inputs, relu.outputs) == (("buf1#1",), ("buf2#2",)), "what it changes in place it reads"
    assert (topk.inputs, topk.outputs) == (("buf2#2",), ("buf3#3", "buf4#3"))


def test_the_kernels_of_a_package_for_a_gpu():
    fused, product, operator = parts(ON_GPU)
    assert fused.kind == "fused kernel (Triton, pointwise)"
    assert (fused.inputs, fused.outputs, fused.type) == (("arg2_1",), ("buf0#0",), "float16")
    assert (product.kind, product.inputs) == ("mm", ("buf0#0",))
    assert (operator.kind, operator.inputs, operator.outputs) == ("operator", ("buf1#1",), ("buf2#2",))


def test_a_source_of_another_shape_has_no_parts():
    assert parts("int main() {}") == []
