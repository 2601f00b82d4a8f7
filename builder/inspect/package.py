"""What a torch package is made of: the kernels that its wrapper calls, their times, its weights, its libraries.

A package is a zip file, in which AOTInductor leaves the sources beside the libraries.
"""

from __future__ import annotations

import itertools
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builder.engines import Device, EngineError
from builder.inspect.anatomy import Anatomy, Part
from builder.inspect.wrapper import Constant, constants_of, parts_of

NEEDLES, NEEDLE_BYTES = 40, 4096  # weights that are looked for, and how much of each


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
    wrapper = _wrapper(sources)
    constants = constants_of(wrapper)
    parts = _with_times(parts_of(wrapper, constants, sources.values(), batch), times or {})
    libraries = sum(size for name, size in sizes.items() if name.endswith((".so", ".cubin", ".o")))
    memory = {"weights": sum(each.bytes for each in constants.values()), "libraries": libraries}
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


def _wrapper(sources: Mapping[str, str]) -> str:
    return next((text for name, text in sources.items() if name.endswith("wrapper.cpp")), "")


def weights_of(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that lie in a package, by their names in the detector; empty where they cannot be found.

    They lie one after the other in the package's library, in the order of the source, which says how many bytes each
    takes: for a CPU a multiple of 64, for a GPU no more than its numbers. Where they begin is found by those that are
    as expected, so most must be.

    Args:
        file: a .pt2 of AOTInductor.
        expected: the detector's weights in the engine's precision, by name.

    Raises:
        EngineError: it is no package.
    """
    sources, sizes, _ = read_package(file)
    constants = [each for each in constants_of(_wrapper(sources)).values() if each.bytes]
    offsets = list(itertools.accumulate((each.bytes for each in constants), initial=0))
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


def _begin(
    data: bytes, constants: Sequence[Constant], offsets: Sequence[int], expected: Mapping[str, Tensor]
) -> int | None:
    """Return where a library's constants begin, by the majority of some large ones; None if they do not agree."""
    known = [(each, offset) for each, offset in zip(constants, offsets, strict=False) if each.fqn in expected]
    votes: Counter[int] = Counter()
    for constant, offset in sorted(known, key=lambda pair: -pair[0].bytes)[:NEEDLES]:
        place = data.find(_as_stored(expected[constant.fqn], constant)[:NEEDLE_BYTES])
        if place >= offset:
            votes[place - offset] += 1
    (begin, count), *_ = votes.most_common(1) or [(0, 0)]
    return begin if count > 1 else None


def _as_stored(weight: Tensor, constant: Constant) -> bytes:
    """Return a weight's bytes in the order in which a package has it."""
    weight = weight.detach().cpu()
    if weight.shape == constant.shape:
        weight = torch.empty_strided(constant.shape, constant.stride, dtype=weight.dtype).copy_(weight)
        weight = weight.as_strided((weight.numel(),), (1,))
    return weight.contiguous().view(torch.uint8).numpy().tobytes()


def _weight(data: bytes, begin: int, constant: Constant) -> Tensor:
    dtype = getattr(torch, constant.dtype)
    count = constant.bytes // dtype.itemsize
    values = torch.frombuffer(bytearray(data[begin : begin + constant.bytes]), dtype=dtype, count=count)
    return values.as_strided(constant.shape, constant.stride).contiguous()


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
