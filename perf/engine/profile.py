"""Where the time of an inference goes: by part of the network, by kernel, and as a trace to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.utils.hooks import RemovableHandle

from perf.latency import Call

CALLS = 3  # recorded
TOP_KERNELS = 15
PART = "part:"  # begins the names of our ranges in the trace
OTHER = "other"  # what runs in no part


@dataclass(frozen=True)
class Share:
    """One kernel (on a CPU: operator) or part of the network, in one inference."""

    name: str
    ms: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """The time of one inference's kernels, which is less than its latency where the GPU waits between them."""

    total_ms: float
    parts: Sequence[Share]  # in the order they ran; none for an engine, which knows no modules
    kernels: Sequence[Share]  # the longest ones, longest first


def profile(call: Call, device: str, trace: Path, module: nn.Module | None = None) -> Profile:
    """Record a few calls, write them as a Chrome trace, and sum up the time of their kernels.

    Args:
        call: already warm.
        device: "cuda", or "cpu" for the operators that PyTorch calls there.
        trace: a .json.gz file, which https://ui.perfetto.dev shows.
        module: the detector that `call` runs; its children are the parts.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with _ranges(module), torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(CALLS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(trace))
    return summarise_events(profiler.events(), device)


@contextmanager
def _ranges(module: nn.Module | None) -> Iterator[None]:
    """Mark the forward pass of each child of `module` in the recording."""
    children = module.named_children() if module is not None else ()
    with ExitStack() as hooks:
        for name, child in children:
            for hook in _mark(child, f"{PART}{name}"):
                hooks.enter_context(hook)
        yield


def _mark(module: nn.Module, name: str) -> tuple[RemovableHandle, RemovableHandle]:
    part = torch.profiler.record_function(name)

    def begin(*_: Any) -> None:
        part.__enter__()

    def end(*_: Any) -> None:
        part.__exit__(None, None, None)

    return module.register_forward_pre_hook(begin), module.register_forward_hook(end)


def summarise_events(events: Iterable[Any], device: str) -> Profile:
    """Return the profile of the recorded `torch.autograd.profiler_util.FunctionEvent`s of `CALLS` calls."""
    events = list(events)
    kernels = [event for event in events if _is_kernel(event, device)]
    ranges = [event for event in events if event.name.startswith(PART) and event.device_type.name == "CPU"]
    by_kernel = _shares((event.name, _own_us(event, device)) for event in kernels)
    parts = _shares((event.name.removeprefix(PART), _range_us(event, device)) for event in ranges)
    total = sum(share.ms for share in by_kernel)
    if parts:
        parts.append(Share(OTHER, total - sum(part.ms for part in parts), 1))
    return Profile(total, parts, sorted(by_kernel, key=lambda share: -share.ms)[:TOP_KERNELS])


def _is_kernel(event: Any, device: str) -> bool:
    return event.device_type.name == device.upper() and not event.is_user_annotation


def _own_us(event: Any, device: str) -> float:
    return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)


def _range_us(event: Any, device: str) -> float:
    """Return the time of all kernels launched inside a range, our own ranges on the GPU not counted as kernels."""
    if device == "cpu":
        return sum(_range_us(child, device) + _own_us(child, device) for child in event.cpu_children)
    own = sum(kernel.duration for kernel in event.kernels if not kernel.name.startswith(PART))
    return float(own + sum(_range_us(child, device) for child in event.cpu_children))


def _shares(times: Iterable[tuple[str, float]]) -> list[Share]:
    """Return the milliseconds and calls in one inference for each name, by names and microseconds of all calls."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in times:
        found[name].append(microseconds)
    return [Share(name, sum(values) / 1e3 / CALLS, len(values) / CALLS) for name, values in found.items()]
