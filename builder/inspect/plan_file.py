"""What TensorRT tells of a plan: its layers as the inspector has them, with the profiler's times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.engines import EngineError
from builder.inspect.anatomy import Anatomy, Part, common_module
from codetr_client.text import printable

# What of a layer is a field of its own; all else it tells is kept as it is.
_KNOWN = ("Name", "LayerType", "Inputs", "Outputs", "TacticName", "Metadata")
_TYPES = (
    ("bfloat16", r"BF16|BFloat16"), ("float16", r"FP16|Half"), ("int8", r"Int8"), ("fp8", r"FP8|Float8"),
    ("float32", r"FP32|Float\b|TF32"), ("int64", r"Int64"), ("int32", r"Int32"), ("uint8", r"UInt8"), ("bool", r"Bool"),
)  # fmt: skip  # a table
_TYPE_BYTES = {"Half": 2, "Float": 4, "Int8": 1, "Int32": 4, "BFloat16": 2, "FP8": 1}
_ORIGIN = re.compile(r"\[(?:ONNX Layer|\w+): ([^\]]+)\]")  # in the metadata of TensorRT 10 and later


def describe_plan(
    file: Path, told: Mapping[str, Any], title: str, versions: Mapping[str, str], modules: Mapping[str, str], batch: int
) -> Anatomy:
    """Return the parts of a plan.

    Args:
        file: the plan.
        told: by `plans.inspect_plan`.
        title: of the engine.
        versions: it was built with.
        modules: of the detector by the name of the ONNX node; empty where it is not known.
        batch: that was run.

    Raises:
        EngineError: the plan does not tell its layers.
    """
    information, times = told["information"], told["times_ms"]
    layers = information.get("Layers", [])
    if not layers or not all(isinstance(layer, Mapping) for layer in layers):
        raise EngineError(f"{file} tells nothing of its layers; plans that this version builds do, so build it again")
    parts = tuple(_part(layer, times, modules) for layer in layers)
    bindings = tuple(map(str, information.get("Bindings", ())))
    given = tuple(name for name in bindings if name in ("images", "image_sizes"))
    memory = {"activations": int(told["activation_bytes"]), "weights": sum(part.weight_bytes for part in parts)}
    total = sum(times.values()) if times else None
    notes = (
        "times are those of TensorRT's profiler, waiting after each layer; their sum is more than an inference takes",
    )
    made = tuple(name for name in bindings if name not in given)
    return Anatomy(
        "tensorrt", title, str(file), file.stat().st_size, {**versions, "tensorrt": told["tensorrt"]},
        given, made, parts, memory, total, batch, notes,
    )  # fmt: skip  # in the order of the fields


def _part(layer: Mapping[str, Any], times: Mapping[str, float], modules: Mapping[str, str]) -> Part:
    name = str(layer.get("Name", "unnamed"))
    origins = origins_of(layer)
    made, given = _tensors(layer.get("Outputs", ())), _tensors(layer.get("Inputs", ()))
    details = {key: printable(_text(value)) for key, value in layer.items() if key not in _KNOWN}
    if given:
        details["inputs"] = "; ".join(f"{tensor} {text}" for tensor, text in given)
    return Part(
        name,
        str(layer.get("LayerType", "")) + (f" {layer['ParameterType']}" if _differs(layer) else ""),
        common_module([modules[each] for each in origins if each in modules]),
        tuple(tensor for tensor, _ in given),
        tuple(tensor for tensor, _ in made),
        tuple(text for _, text in made),
        type_of(made[0][1]) if made else "",
        _weight_bytes(layer),
        ms=times.get(name),
        made_of=origins if len(origins) > 1 else (),
        tactic=str(layer.get("TacticName", "")),
        details=details,
    )


def _differs(layer: Mapping[str, Any]) -> bool:
    return bool(layer.get("ParameterType")) and layer["ParameterType"] != layer.get("LayerType")


def origins_of(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the network's layers that a layer was fused of: from its metadata, or in older releases from its name."""
    found = _ORIGIN.findall(str(layer.get("Metadata", "")))
    if not found:
        text = re.sub(r"\b(?:PWN|ForeignNode)\b", "", str(layer.get("Name", "")))
        found = [part.strip() for part in re.split(r"\s\+\s|\.\.\.|[{}\[\](),]", text)]
    return tuple(dict.fromkeys(each for each in found if each))


def _tensors(described: Sequence[Any]) -> list[tuple[str, str]]:
    """Return name and description of each tensor; older releases may tell the name alone."""
    result = []
    for each in described:
        if not isinstance(each, Mapping):
            result.append((str(each), ""))
            continue
        type_ = next((str(value) for key, value in each.items() if "datatype" in key.lower()), "")
        shape = "x".join(map(str, each.get("Dimensions", ()))) or "scalar"
        result.append((str(each.get("Name", "")), f"{type_of(type_) or type_} {shape} {type_}".strip()))
    return result


def type_of(text: str) -> str:
    """Return the project's name of a type in the inspector's words; "" for none."""
    return next(
        (name for name, pattern in _TYPES if re.search(rf"(?<![A-Za-z])(?:{pattern})", text, re.IGNORECASE)), ""
    )


def _weight_bytes(layer: Mapping[str, Any]) -> int:
    """Return the bytes of a layer's weights and biases, where it tells their type and count."""
    found = 0
    for key in ("Weights", "Bias"):
        value = layer.get(key)
        if isinstance(value, Mapping) and isinstance(value.get("Count"), int):
            found += value["Count"] * _TYPE_BYTES.get(str(value.get("Type", "")), 4)
    return found


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)
