"""What a torch package is made of: the kernels that its wrapper's source calls, its constants, its libraries.

A package is a zip file. AOTInductor leaves the C++ source of the wrapper in it, a list of calls of kernels that it
wrote itself and of PyTorch's own. A source of another shape gives fewer parts, never a wrong one.
"""

from __future__ import annotations

import itertools
import math
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builder.engines import Device, EngineError
from builder.inspect.anatomy import Anatomy, Part, common_module

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
ALIGNMENT = 64  # bytes, of constants in a library
NEEDLES, NEEDLE_BYTES = 40, 4096  # weights that are looked for, and how much of each
_TYPES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32"}


@dataclass
class _Constant:
    name: str = ""  # in the source
    fqn: str = ""
    bytes: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def module(self) -> str:
        return self.fqn.rpartition(".")[0]


@dataclass
class _Source:
    """What was read of the wrapper so far."""

    constants: dict[str, _Constant]
    parameters: dict[str, list[str]]  # of kernels that the package has itself, their names
    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)  # the tensor that a name of the source stands for now
    whole: dict[str, str] = field(default_factory=dict)  # of a name for a piece of another tensor's memory, that one
    pieces: dict[str, list[str]] = field(default_factory=dict)  # that were written into a tensor's memory
    origins: tuple[tuple[str, ...], str] = ((), "")  # source nodes and operators, of the comment before a call
    parts: list[Part] = field(default_factory=list)


def describe_package(
    file: Path,
    title: str,
    versions: Mapping[str, str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    batch: int,
    times: Mapping[str, Sequence[float]] | None = None,
    total_ms: float | None = None,
    notes: Sequence[str] = (),
) -> Anatomy:
    """Return the parts of a package.

    Args:
        file: a .pt2 of AOTInductor.
        title: of the engine.
        versions: it was built with.
        inputs: that it reads.
        outputs: what it returns is called.
        batch: that shapes of an open batch are given for.
        times: milliseconds of each call by the kernel's name, in the order in which it is called.
        total_ms: of one inference.
        notes: to keep.

    Raises:
        EngineError: it is no such package.
    """
    sources, sizes, metadata = read_package(file)
    wrapper = next((text for name, text in sources.items() if name.endswith("wrapper.cpp")), "")
    source = _Source(constants_of(wrapper), _parameters(sources.values()))
    for line in _body(wrapper):
        _read(line, source, batch)
    parts = _with_modules(_with_times(source.parts, times or {}))
    libraries = sum(size for name, size in sizes.items() if name.endswith((".so", ".cubin", ".o")))
    memory = {"weights": sum(each.bytes for each in source.constants.values()), "libraries": libraries}
    found = list(notes)
    if not parts:
        found.append(
            "its wrapper's source is not in the package, or of another shape, so that its kernels are not known"
        )
    cubins = sum(name.endswith(".cubin") for name in sizes)
    if cubins:
        found.append(f"{cubins} kernels for the GPU lie in it")
    return Anatomy(
        "torch", title, str(file), file.stat().st_size, {**versions, **metadata}, tuple(inputs), tuple(outputs),
        tuple(parts), memory, total_ms, batch, tuple(found),
    )  # fmt: skip  # in the order of the fields


def read_package(file: Path) -> tuple[dict[str, str], dict[str, int], dict[str, str]]:
    """Return a package's sources by name, the bytes of all its files, and what it says of the machine it is for.

    Raises:
        EngineError: it is no zip file, or of another kind.
    """
    import json

    sources, metadata = {}, {}
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {each.filename: each.file_size for each in archive.infolist()}
            for name in sizes:
                if name.endswith((".cpp", ".py")):
                    sources[name] = archive.read(name).decode(errors="replace")
                elif name.endswith("wrapper_metadata.json"):
                    known = json.loads(archive.read(name))
                    metadata = {str(key): str(value) for key, value in known.items() if value != ""}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise EngineError(f"{file} is no package of AOTInductor: {error}") from error
    if not any("aotinductor" in name for name in sizes):
        raise EngineError(f"{file} is no package of AOTInductor: it has no folder aotinductor")
    return sources, sizes, metadata


def constants_of(wrapper: str) -> dict[str, _Constant]:
    """Return a wrapper's constants by their names in its source."""
    found: dict[str, _Constant] = defaultdict(_Constant)
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


def weights_of(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that lie in a package, by their names in the detector; empty where they cannot be found.

    They lie one after the other in the package's library, in the order of the source, each at a multiple of 64 bytes.
    Where they begin is found by those that are as expected, so most must be.

    Args:
        file: a .pt2 of AOTInductor.
        expected: the detector's weights in the engine's precision, by name.

    Raises:
        EngineError: it is no package.
    """
    sources, sizes, _ = read_package(file)
    wrapper = next((text for name, text in sources.items() if name.endswith("wrapper.cpp")), "")
    constants = [each for each in constants_of(wrapper).values() if each.bytes]
    offsets = list(itertools.accumulate((_aligned(each.bytes) for each in constants), initial=0))
    with zipfile.ZipFile(file) as archive:
        for name in (name for name, size in sizes.items() if size >= offsets[-1] > 0 and not name.endswith(".cpp")):
            data = archive.read(name)
            begin = _begin(data, constants, offsets, expected)
            if begin is not None:
                return {
                    each.fqn: _weight(data, begin + offset, each)
                    for each, offset in zip(constants, offsets, strict=False)
                    if each.fqn in expected
                    and each.shape == tuple(expected[each.fqn].shape)
                    and each.dtype == str(expected[each.fqn].dtype).removeprefix("torch.")
                }
    return {}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _begin(
    data: bytes, constants: Sequence[_Constant], offsets: Sequence[int], expected: Mapping[str, Tensor]
) -> int | None:
    """Return where a library's constants begin, by the majority of some large ones; None if they do not agree."""
    known = [(each, offset) for each, offset in zip(constants, offsets, strict=False) if each.fqn in expected]
    votes: Counter[int] = Counter()
    for constant, offset in sorted(known, key=lambda pair: -pair[0].bytes)[:NEEDLES]:
        needle = expected[constant.fqn].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()[:NEEDLE_BYTES]
        place = data.find(needle)
        if place >= offset:
            votes[place - offset] += 1
    (begin, count), *_ = votes.most_common(1) or [(0, 0)]
    return begin if count > 1 else None


def _weight(data: bytes, begin: int, constant: _Constant) -> Tensor:
    dtype = getattr(torch, constant.dtype)
    count = constant.bytes // dtype.itemsize
    values = torch.frombuffer(bytearray(data[begin : begin + constant.bytes]), dtype=dtype, count=count)
    return values.as_strided(constant.shape, constant.stride).contiguous()


def _parameters(sources: Any) -> dict[str, list[str]]:
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
    words = re.findall(r"&?\b(?:buf\d+(?:_handle)?|arg\d+_\d+|\w+)\b", arguments)
    names = [word.lstrip("&").removesuffix("_handle") for word in words]
    tensors = [name for name in names if name in source.constants or re.fullmatch(r"buf\d+|arg\d+_\d+", name)]
    parameters = source.parameters.get(function)
    if function in ("launchKernel", "launchInlineAsmKernel"):
        kernel = next((name for name in names if name.startswith("triton_")), function)
        function, parameters = kernel, None
    reads, writes = _roles(function, arguments, tensors, parameters, source)
    weights = [source.constants[name] for name in dict.fromkeys(reads) if name in source.constants]
    modules = [each.module for each in weights if each.module]  # the detector's own constants tell nothing
    given = [name for name in reads if name not in source.constants]
    inputs = tuple(
        dict.fromkeys(each for name in given for each in (source.made.get(name, name), *source.pieces.get(name, ())))
    )
    index = len(source.parts)
    outputs = []
    for name in writes:
        source.made[name] = f"{name}#{index}"  # memory is used again and again: the n-th content of a buffer
        outputs.append(source.made[name])
        if name in source.whole:
            source.pieces.setdefault(source.whole[name], []).append(source.made[name])
        else:
            source.pieces.pop(name, None)
    shapes = tuple(_described(source, name) for name in writes if source.shapes.get(name))
    nodes, operators = source.origins
    details = {"operators": operators} if operators else {}
    if weights:
        details["weights"] = ", ".join(each.fqn for each in weights)
    type_ = next((source.types[name] for name in writes if source.types.get(name)), "")
    type_ = type_ or next((each.dtype for each in weights if each.dtype), "")
    type_ = type_ or next((source.types[name] for name in reads if source.types.get(name)), "")
    source.parts.append(
        Part(
            f"{index}: {function}",
            _kind(function),
            common_module(modules) if modules else "?",
            inputs,
            tuple(outputs),
            shapes,
            type_,
            sum(each.bytes for each in weights),
            _flops(function, reads, writes, source, arguments),
            made_of=nodes if len(nodes) > 1 else (),
            details=details,
        )
    )
    source.origins = (), ""


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


def _with_times(parts: Sequence[Part], times: Mapping[str, Sequence[float]]) -> list[Part]:
    """Return the parts with the times of their calls."""
    counted: dict[str, int] = defaultdict(int)
    result = []
    for part in parts:
        function = part.name.split(": ", 1)[1]
        known = times.get(function, ())
        number, counted[function] = counted[function], counted[function] + 1
        result.append(replace(part, ms=known[number]) if number < len(known) else part)
    return result


def _with_modules(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with a module for those that read no weights: what the parts before and after have in common."""
    result = list(parts)
    for i, part in enumerate(parts):
        if part.module == "?":
            before = next((each.module for each in reversed(parts[:i]) if each.module != "?"), "")
            after = next((each.module for each in parts[i + 1 :] if each.module != "?"), "")
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


def kernel_times(run: Callable[[], object], place: Device, runs: int) -> dict[str, list[float]]:
    """Return the milliseconds of each kernel's calls in one inference, by its name in the package's source.

    On a CPU the package must have been compiled for a profiler; on a GPU every one can be seen.
    """
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place == "cuda" else [])]
    run()
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(runs):
            run()
        if place == "cuda":
            torch.cuda.synchronize()
    return times_of(sorted(profiler.events(), key=lambda event: event.time_range.start), place, runs)


def times_of(events: Sequence[Any], place: Device, runs: int) -> dict[str, list[float]]:
    """Return the mean milliseconds of each call from a profiler's events in the order of their begin."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        on_gpu = event.device_type.name == "CUDA"
        name = re.sub(r"^graph_\d+_", "", event.name)
        ours = name.startswith(("cpp_", "aoti_torch_", "triton_"))
        if place == "cuda" and ours and on_gpu:
            found[name].append(event.device_time_total / 1e3)
        elif ours and not on_gpu and (place == "cpu" or name.startswith("aoti_torch_")):
            microseconds = event.device_time_total if place == "cuda" else event.cpu_time_total
            found[name].append(microseconds / 1e3)
    result = {}
    for name, values in found.items():
        calls = len(values) // runs
        if calls and len(values) == calls * runs:
            result[name] = [sum(values[i::calls]) / runs for i in range(calls)]
    return result
