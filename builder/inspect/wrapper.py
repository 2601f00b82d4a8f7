"""The C++ source that AOTInductor writes of a package: its constants, and the kernels that it calls, in their order.

It is a list of calls of kernels that AOTInductor wrote itself and of PyTorch's own. A source of another shape gives
fewer parts, never a wrong one.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from builder.inspect.anatomy import Part, common_module

_CALL = re.compile(
    r"(?<![\w:])(?:call_)?((?:cpp|triton)_\w+|aoti_torch_(?:cpu|cuda|mkldnn|proxy_executor_call)\w*|"
    r"launchKernel|launchInlineAsmKernel)\("
)
_NOT_WORK = ("aoti_torch_empty", "aoti_torch_cpu_empty", "aoti_torch_cuda_guard")
_ARRAY = re.compile(r"const(?:expr)? int64_t (int_array_\d+)\[\] = \{([^}]*)\}")
_EMPTY = re.compile(
    r"aoti_torch_empty_strided\w*\(\d+, (int_array_\d+), \w+, cached_torch_dtype_(\w+),.*?&(\w+?)_handle\)"
)
_ALIAS = re.compile(
    r"auto&? (\w+) = (?:std::move\((\w+)\)|\w+\(reinterpret_tensor_wrapper\((\w+), \d+, (int_array_\d+))"
)
_SIZES = re.compile(r"assert_size_stride\((\w+), \{([^}]*)\}")
_SOURCES = re.compile(r"Source Nodes: \[([^\]]*)\](?:, Original ATen: \[([^\]]*)\])?")
_CONSTANT = re.compile(r"constants_info_\[(\d+)\]\.(name|original_fqn|data_size|dtype|shape|stride) = (.*);")
_DEFINITION = re.compile(r"(?:\bvoid\s+(?:C10_ALWAYS_INLINE_ATTRIBUTE\s+)?|\bdef\s+)((?:cpp|triton)_\w+)\s*\(([^)]*)\)")
UNKNOWN = "?"  # in place of the module of a call that reads no weights
_TYPES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32"}


@dataclass
class Constant:
    """A weight or another constant, as the source declares it."""

    name: str = ""  # in the source
    fqn: str = ""  # in the detector
    bytes: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def module(self) -> str:
        """The module of the detector that it is a weight of; "" is the detector itself."""
        return self.fqn.rpartition(".")[0]


@dataclass
class _Source:
    """What was read of the wrapper so far."""

    constants: Mapping[str, Constant]
    parameters: dict[str, list[str]]  # of kernels that the package has itself, their names
    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)  # the tensor that a name of the source stands for now
    whole: dict[str, str] = field(default_factory=dict)  # of a name for a piece of another tensor's memory, that one
    pieces: dict[str, list[str]] = field(default_factory=dict)  # that were written into a tensor's memory
    origins: tuple[tuple[str, ...], str] = ((), "")  # source nodes and operators, of the comment before a call
    parts: list[Part] = field(default_factory=list)


def constants_of(wrapper: str) -> dict[str, Constant]:
    """Return a wrapper's constants by their names in its source."""
    found: dict[str, Constant] = defaultdict(Constant)
    for index, key, value in _CONSTANT.findall(wrapper):
        constant = found[index]
        if key == "name":
            constant.name = value.strip('"')
        elif key == "original_fqn":
            constant.fqn = value.strip('"')
        elif key == "data_size":
            constant.bytes = int(value)
        elif key == "dtype":
            constant.dtype = _type(value.removeprefix("cached_torch_dtype_"))
        elif key == "stride":
            constant.stride = _numbers(value.strip("{}"), 1)
        else:
            constant.shape = _numbers(value.strip("{}"), 1)
    return {each.name: each for each in found.values()}


def parts_of(wrapper: str, constants: Mapping[str, Constant], sources: Iterable[str], batch: int) -> list[Part]:
    """Return the calls of a wrapper's inference as parts, in their order and without times.

    Args:
        wrapper: its source.
        constants: of it, by their names in it.
        sources: all of the package, in which kernels are defined.
        batch: that shapes of an open batch are given for.
    """
    source = _Source(constants, _parameters(sources))
    for line in _body(wrapper):
        _read(line, source, batch)
    return _with_modules(source.parts)


def _parameters(sources: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the parameters of each kernel that a package has the source of."""
    found = {}
    for text in sources:
        for name, words in _DEFINITION.findall(text):
            found[name] = [
                word.split(":")[0].split("=")[0].split()[-1].lstrip("*&") for word in words.split(",") if word.strip()
            ]
    return found


def _body(wrapper: str) -> list[str]:
    """Return the lines of the wrapper's inference."""
    start = wrapper.find("::run_impl(")
    return wrapper[start:].splitlines() if start >= 0 else []


def _read(line: str, source: _Source, batch: int) -> None:
    """Take in one line."""
    for name, numbers in _ARRAY.findall(line):
        source.arrays[name] = _numbers(numbers, batch)
    if match := _SOURCES.search(line):
        nodes = tuple(each.strip() for each in match[1].split(",") if each.strip())
        source.origins = (
            nodes,
            ", ".join(dict.fromkeys(each.strip().removeprefix("aten.") for each in (match[2] or "").split(","))),
        )
        return
    if match := _EMPTY.search(line):
        shape, dtype, name = match.groups()
        source.shapes[name], source.types[name] = source.arrays.get(shape, ()), _type(dtype)
        return
    if match := _SIZES.search(line):
        _set_shape(source, match[1], _numbers(match[2], batch))
        return
    if match := _ALIAS.search(line):
        name, other = match[1], match[2] or match[3]
        if not _CALL.search(line):
            source.made[name] = source.made.get(other, other)
            if "// reuse" not in line:
                source.whole[name] = other
            source.types[name] = source.types.get(other, "")
            source.shapes[name] = source.arrays.get(match[4], ()) if match[4] else source.shapes.get(other, ())
            return
    if (match := _CALL.search(line)) and not match[1].startswith(_NOT_WORK):
        _add(match[1], line[match.end() :], source)


def _set_shape(source: _Source, name: str, shape: tuple[int, ...]) -> None:
    """Note the shape that the source checks a tensor for, in the part too that made it last."""
    source.shapes[name] = shape
    if source.parts and not source.parts[-1].shapes and source.made.get(name) in source.parts[-1].outputs:
        type_ = source.types.get(name) or source.parts[-1].type
        part = replace(source.parts[-1], shapes=(f"{type_} {'x'.join(map(str, shape))}".strip(),))
        weights = [
            each for each in source.constants.values() if each.fqn in part.details.get("weights", "").split(", ")
        ]
        kernel = next((each.shape for each in weights if len(each.shape) == 4), None)
        if "convolution" in part.kind and kernel is not None:
            part = replace(part, flops=2 * math.prod(shape) * math.prod(kernel[1:]))
        source.parts[-1] = part


def _add(function: str, arguments: str, source: _Source) -> None:
    """Take in a call."""
    function, reads, writes = _called(function, arguments, source)
    weights = [source.constants[name] for name in dict.fromkeys(reads) if name in source.constants]
    modules = [each.module for each in weights if each.module]  # the detector's own constants tell nothing
    given = [name for name in reads if name not in source.constants]
    inputs = [each for name in given for each in (source.made.get(name, name), *source.pieces.get(name, ()))]
    index = len(source.parts)
    outputs = [_written(source, name, index) for name in writes]
    nodes, operators = source.origins
    details = {"operators": operators} if operators else {}
    if weights:
        details["weights"] = ", ".join(each.fqn for each in weights)
    source.parts.append(
        Part(
            f"{index}: {function}",
            _kind(function),
            common_module(modules) if modules else UNKNOWN,
            tuple(dict.fromkeys(inputs)),
            tuple(outputs),
            tuple(_described(source, name) for name in writes if source.shapes.get(name)),
            _type_of(source, reads, writes, weights),
            sum(each.bytes for each in weights),
            _flops(function, reads, writes, source, arguments),
            made_of=nodes if len(nodes) > 1 else (),
            details=details,
        )
    )
    source.origins = (), ""


def _called(function: str, arguments: str, source: _Source) -> tuple[str, list[str], list[str]]:
    """Return the kernel that a call runs, and the names of the tensors that it reads and that it writes."""
    words = re.findall(r"&?\b(?:buf\d+(?:_handle)?|arg\d+_\d+|\w+)\b", arguments)
    names = [word.lstrip("&").removesuffix("_handle") for word in words]
    tensors = [name for name in names if name in source.constants or re.fullmatch(r"buf\d+|arg\d+_\d+", name)]
    parameters = source.parameters.get(function)
    if function in ("launchKernel", "launchInlineAsmKernel"):
        kernel = next((name for name in names if name.startswith("triton_")), function)
        function, parameters = kernel, None
    return function, *_roles(function, arguments, tensors, parameters, source)


def _written(source: _Source, name: str, index: int) -> str:
    """Note that the call of this index writes a tensor; return what the graph calls the tensor from then on."""
    made = source.made[name] = f"{name}#{index}"  # memory is used again and again: the n-th content of a buffer
    if name in source.whole:
        source.pieces.setdefault(source.whole[name], []).append(made)
    else:
        source.pieces.pop(name, None)
    return made


def _type_of(source: _Source, reads: Sequence[str], writes: Sequence[str], weights: Sequence[Constant]) -> str:
    """Return the type of what a call writes, or else of its weights, or of what it reads; "" if none is known."""
    written, read = ([source.types.get(name, "") for name in names] for names in (writes, reads))
    return next(filter(None, [*written, *(each.dtype for each in weights), *read]), "")


def _roles(
    function: str, arguments: str, tensors: Sequence[str], parameters: Sequence[str] | None, source: _Source
) -> tuple[list[str], list[str]]:
    """Return what a call reads and what it writes."""
    handles = [name.removesuffix("_handle") for name in re.findall(r"&(buf\d+_handle)", arguments)]
    if handles:
        return [name for name in tensors if name not in handles], handles
    if function.startswith("aoti_torch"):  # what is written comes first
        return list(tensors[1:]), list(tensors[:1])
    casts = re.findall(r"\((const )?[\w:]+\*\)\((\w+)\.data_ptr", arguments)
    if parameters and casts:
        roles = list(zip(casts, parameters, strict=False))
        reads = [name for (constant, name), parameter in roles if constant or parameter.startswith("in_")]
        return reads, [name for (constant, name), _ in roles if not constant]
    if parameters and len(tensors) <= len(parameters):
        roles = list(zip(tensors, parameters, strict=False))
        reads = [name for name, parameter in roles if parameter.startswith("in_")]
        return reads, [name for name, parameter in roles if parameter.startswith(("out_", "in_out_"))]
    known = [name for name in tensors if name in source.made or name in source.constants or name.startswith("arg")]
    return known, [name for name in tensors if name not in known]


def _kind(function: str) -> str:
    if function.startswith("aoti_torch_proxy"):
        return "operator"
    name = re.sub(r"^aoti_torch_(cpu|cuda|mkldnn)_+", "", function).removesuffix("_out")
    if name != function:
        return name
    if function.startswith("cpp_"):
        return "fused kernel (C++)"
    family = re.match(r"triton_(poi|red|per|tem|for)_", function)
    words = {"poi": "pointwise", "red": "reduction", "per": "reduction", "tem": "template", "for": "foreach"}
    return f"fused kernel (Triton, {words[family[1]]})" if family else "fused kernel (Triton)"


def _flops(function: str, reads: Sequence[str], writes: Sequence[str], source: _Source, arguments: str) -> int | None:
    """Return the operations of a matrix product, from the shapes at its call."""
    if not re.search(r"_(addmm|bmm|mm|baddbmm)(_out)?$", function) or not writes:
        return None
    made = source.shapes.get(writes[0], ())
    views = re.findall(r"reinterpret_tensor_wrapper\(\w+, \d+, (int_array_\d+)", arguments)
    operands = [source.arrays[name] for name in views if name in source.arrays]
    operands = operands or [source.shapes[name] for name in reads if len(source.shapes.get(name, ())) > 1]
    return 2 * math.prod(made) * operands[0][-1] if made and operands else None


def _described(source: _Source, name: str) -> str:
    return f"{source.types.get(name, '')} {'x'.join(map(str, source.shapes[name]))}".strip()


def _with_modules(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with a module for those that read no weights: what the parts before and after have in common."""
    result = list(parts)
    for i, part in enumerate(parts):
        if part.module == UNKNOWN:
            before = next((each.module for each in reversed(parts[:i]) if each.module != UNKNOWN), "")
            after = next((each.module for each in parts[i + 1 :] if each.module != UNKNOWN), "")
            result[i] = replace(part, module=common_module([before, after]))
    return result


def _numbers(text: str, batch: int) -> tuple[int, ...]:
    """Return the sizes of a shape; a name of the source stands for the batch, or a product with it."""
    result = []
    for word in filter(None, (each.strip() for each in text.split(","))):
        factors = [
            batch if not factor.strip().rstrip("L").isdigit() else int(factor.strip().rstrip("L"))
            for factor in word.split("*")
        ]
        result.append(math.prod(factors))
    return tuple(result)


def _type(word: str) -> str:
    return _TYPES.get(word, word)
