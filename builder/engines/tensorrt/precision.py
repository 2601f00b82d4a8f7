"""Precision of a plan: its layers' types, as TensorRT's inspector tells them, against the exported program's."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram

from builder.engines import EngineError
from builder.engines.tensorrt.route import is_8
from builder.pipeline.export import uses_operator
from builder.precision import Quantised
from builder.quantise.operator import quantised_to

# What carries a detector's arithmetic: convolutions, matrix products, attention. Norms, softmax, top-k and coordinates
# are float32 in every precision; so are the products of the box heads, which the program tells.
_PRODUCTS = re.compile(
    r"\baten\.(linear|conv\w*|matmul|mm|bmm|addmm|einsum|\w*attention)\b|ms_deform_attn|window_attention"
)
# The same in the inspector's words, in a layer's type, parameters, tactic and name: CaskConvolution, gemm,
# MatrixMultiply, _gemm_mha_v2, __myl_Fc, PluginV3. "Convert" and "conversion" are none.
_PRODUCT_LAYER = re.compile(
    r"conv(?!er)|gemm|matrix_?multiply|matmul|(?<![a-z])mha|attention|ms_?deform_?attn|plugin|(?-i:Fc(?![a-z]))",
    re.IGNORECASE,
)
# A layer of such a type moves numbers only, and is often named after a product: "Reformatting CopyNode for Input Tensor
# 0 to node_conv2d", "reshape_before_node_MatMul_271". Of 253 such names in a plan of RT-DETRv2 by 8.5.3 151 are moves.
_MOVE = re.compile(r"reformat|no_?op|shuffle|constant|slice|concat|gather|shape", re.IGNORECASE)
_SPOKEN_OF = ("LayerType", "ParameterType", "TacticName", "Name")
# The inspector's names of types, in the spellings of TensorRT 10 and 11.
_TYPE = re.compile(r"\b(BF16|BFloat16|FP16|Half|FP32|Float|TF32)\b", re.IGNORECASE)
_QUANTISED_TYPE = {"int8": re.compile(r"\bInt8\b", re.IGNORECASE), "fp8": re.compile(r"\b(FP8|E4M3)", re.IGNORECASE)}
_WITHHELD = "TensorRT does not tell the types of this plan's layers, so nothing shows that it computes in {}"
_NARROWED = (
    "TensorRT {} hands on {} tensors in half precision that are float32 in the network: {}; where they are "
    "coordinates, boxes move and scores with them, which codetr verify tells"
)
_NAMED = 5  # of them
# What a layer puts out in a format of its own, before a copy brings it to the network's.
_IN_OWN_FORMAT = "Reformatted Output Tensor"
_TYPE_NAMES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "half": "float16"}


def check_precision(information: Mapping[str, Any], program: ExportedProgram) -> None:
    """Check an inspected engine (TensorRT's JSON) against the program it was built from.

    Raises:
        EngineError: a layer puts out a type, or a product works in one, that the program does not have there.
    """
    quantised = quantised_to(program)
    if quantised is not None:
        check_quantised(information, quantised)
        return
    precision = precision_of(program)
    types = layer_types(information)
    if not types and _withholds_types(information):
        warnings.warn(_WITHHELD.format(precision), stacklevel=2)
        return
    check_types(types, precision)
    products = product_layers(information)
    if not products and any(_is_region(layer) for layer in information["Layers"]):
        warnings.warn(_WITHHELD.format(precision), stacklevel=2)
        return
    check_products(products, products_of(program), precision)


def precision_of(program: ExportedProgram) -> str:
    """Return the type of the program's matrix products: the narrowest of its floating-point weights."""
    types = {tensor.dtype for tensor in program.state_dict.values() if tensor.is_floating_point()}
    return str(min(types, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")


def layer_types(information: Mapping[str, Any]) -> Counter[str]:
    """Return how many layers of an inspected engine put out each floating-point type.

    Raises:
        EngineError: the engine does not tell its layers' types.
    """
    layers = information.get("Layers", [])
    if not all(isinstance(layer, Mapping) for layer in layers) or not layers:
        raise EngineError("the plan does not tell its layers' types, so its precision cannot be checked")
    found: Counter[str] = Counter()
    for layer in layers:
        types = {type_ for output in layer.get("Outputs", []) if (type_ := _floating_type(output))}
        found.update(types)
    return found


def count_plugin_layers(information: Mapping[str, Any], program: ExportedProgram, version: str) -> int:
    """Return how many plugin layers an inspected engine has.

    Raises:
        EngineError: none, though the program has operators of ours. For releases whose words for such a layer nobody
            has seen it is a warning.
    """
    count = sum("plugin" in str(layer.get("LayerType", "")).lower() for layer in information.get("Layers", []))
    if not count and uses_operator(program):
        text = (
            f"TensorRT {version} shows no plugin layer, though the network has operators that only our plugin computes"
        )
        if is_8(version):
            raise EngineError(text)
        warnings.warn(text, stacklevel=2)
    return count


def warn_of_narrowed(information: Mapping[str, Any], types: Mapping[str, str], version: str) -> None:
    """Warn of tensors that are float32 in the network and half precision where the plan hands them on.

    TensorRT 8 takes a layer's type for a wish where it fuses a region, and coordinates need float32.

    Args:
        information: TensorRT's JSON.
        types: of the network's tensors, by the names that the plan's layers call them.
        version: of TensorRT.
    """
    if names := narrowed(information, types):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        warnings.warn(_NARROWED.format(version, len(names), ", ".join(names[:_NAMED]) + more), stacklevel=2)


def narrowed(information: Mapping[str, Any], types: Mapping[str, str]) -> list[str]:
    """Return the names of tensors that are float32 in the network and that a layer puts out in half precision."""
    found: dict[str, None] = {}
    for layer in information.get("Layers", []):
        inputs = layer.get("Inputs", []) if isinstance(layer, Mapping) else []
        brought = [_floating_type(each) for each in inputs if str(each.get("Name", "")).startswith(_IN_OWN_FORMAT)]
        for output in layer.get("Outputs", []) if isinstance(layer, Mapping) else []:
            name = str(output.get("Name", ""))
            made = next(iter(brought), None) or _floating_type(output)
            if types.get(name) == "float32" and made in _TYPE_NAMES.values():
                found[name] = None
    return list(found)


def check_types(histogram: Mapping[str, int], precision: str) -> None:
    """Check that no layer of an engine puts out a floating-point type that was not asked for.

    Raises:
        EngineError: some do, or there are none at all; gives the histogram.
    """
    strange = [name for name in histogram if name not in ("float32", precision)]
    if not histogram or strange:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(histogram.items())) or "none"
        raise EngineError(f"the plan was not built in {precision}: its layers put out {counts}")


def check_quantised(information: Mapping[str, Any], quantised: Quantised) -> None:
    """Check that products of an inspected engine work in the quantised type.

    Raises:
        EngineError: none does; gives how many there are.
    """
    layers = [layer for layer in information.get("Layers", []) if isinstance(layer, Mapping)]
    products = [layer for layer in layers if _is_product(layer)]
    if _withholds_types(information):
        warnings.warn(_WITHHELD.format(quantised), stacklevel=2)
        return
    count = sum(any(_QUANTISED_TYPE[quantised].search(_types(each)) for each in layer["Inputs"]) for layer in products)
    if not count:
        raise EngineError(
            f"the plan was not built in {quantised}: none of its {len(products)} convolutions and matrix products "
            f"takes {quantised} numbers"
        )


def products_of(program: ExportedProgram) -> Counter[str]:
    """Return how many convolutions, matrix products and attentions of the program work in each type."""
    operands = [
        node.args[0].meta["val"]
        for node in program.graph.nodes
        if node.op == "call_function" and _PRODUCTS.search(str(node.target))
    ]
    return Counter(str(operand.dtype).removeprefix("torch.") for operand in operands)


def product_layers(information: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the narrowest operand's type of each layer of an inspected engine that is such a product.

    Regions that TensorRT 8 fuses as one layer are left out: it does not tell what they compute in.
    """
    found = []
    for layer in information["Layers"]:
        types = {type_ for operand in layer.get("Inputs", []) if (type_ := _floating_type(operand))}
        if types and not _is_region(layer) and _is_product(layer):
            found.append((str(layer.get("Name", "unnamed")), min(types - {"float32"}, default="float32")))
    return found


def check_products(layers: Sequence[tuple[str, str]], expected: Mapping[str, int], precision: str) -> None:
    """Check that the products of an engine work in the asked type, but for those that are float32 in the program.

    Raises:
        EngineError: more are float32 than the program has (fusing can only lower their number), or the engine tells
            of none; names some.
    """
    if not layers:
        raise EngineError("the plan tells of no convolution or matrix product, so its precision cannot be checked")
    wide = [name for name, type_ in layers if type_ != precision]
    allowed = 0 if precision == "float32" else expected.get("float32", 0)
    if len(wide) > allowed:
        raise EngineError(
            f"the plan was not built in {precision}: {len(wide)} of its {len(layers)} convolutions and matrix products "
            f"work in another type, {allowed} may; among them {', '.join(wide[:3])}"
        )


def _withholds_types(information: Mapping[str, Any]) -> bool:
    """Return whether every type is "N/A", as in 8.5 where it does not know the shapes."""
    layers = [layer for layer in information.get("Layers", []) if isinstance(layer, Mapping)]
    tensors = [each for layer in layers for each in (*layer.get("Inputs", []), *layer.get("Outputs", []))]
    return bool(tensors) and all("N/A" in _types(each) for each in tensors)


def _is_region(layer: Mapping[str, Any]) -> bool:
    return "{ForeignNode[" in str(layer.get("Name", ""))


def _is_product(layer: Mapping[str, Any]) -> bool:
    moves = _MOVE.search(str(layer.get("LayerType", "")))
    return moves is None and _PRODUCT_LAYER.search(_words(layer)) is not None


def _words(layer: Mapping[str, Any]) -> str:
    return " ".join(str(layer.get(key, "")) for key in _SPOKEN_OF)


def _types(tensor: Mapping[str, Any]) -> str:
    return " ".join(str(value) for key, value in tensor.items() if "datatype" in key.lower())


def _floating_type(tensor: Any) -> str | None:
    match = _TYPE.search(_types(tensor))
    return None if match is None else _TYPE_NAMES.get(match[1].lower(), "float32")
