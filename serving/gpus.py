"""Which GPUs a server gets: those it could see, or some of them by their numbers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import CodetrError
from serving.manifest import read_manifest

VISIBLE = "CUDA_VISIBLE_DEVICES"
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,compute_cap,name", "--format=csv,noheader")


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; `capability` is such as 9.0, "" where it is not told."""

    number: int
    uuid: str
    capability: str
    name: str


@dataclass(frozen=True)
class ServerGpus:
    """What a server gets: its CUDA_VISIBLE_DEVICES, None where that stays, and on how many GPUs its engines run."""

    devices: str | None = None
    count: int = 1


def installed_gpus() -> list[Gpu]:
    """Return this machine's GPUs; empty where nvidia-smi lists none or is not there."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    found = re.findall(r"^(\d+), *([^,\s]+), *([^,]*), *(.*)$", done.stdout, re.MULTILINE)
    return [
        Gpu(int(number), uuid, capability if re.fullmatch(r"\d+\.\d+", capability) else "", name)
        for number, uuid, capability, name in found
    ]


def visible_devices(wanted: str, environment: Mapping[str, str]) -> str:
    """Return CUDA_VISIBLE_DEVICES of a server that is to have the GPUs which a user names.

    Args:
        wanted: numbers such as 0,1, as nvidia-smi counts, or `all`; where the environment has CUDA_VISIBLE_DEVICES they
            count what that names.
        environment: of the server.

    Raises:
        CodetrError: that names no GPUs, one that is not there, or one twice.
    """
    if wanted != "all" and not re.fullmatch(r"\d{1,4}(,\d{1,4})*", wanted):
        raise CodetrError(f"gpus {wanted!r}: expected numbers such as 0,1, or all")
    if VISIBLE in environment:
        there = [each.strip() for each in environment[VISIBLE].split(",") if each.strip() not in ("", "-1")]
        origin, shown = f"{VISIBLE} names", there
    else:
        gpus = installed_gpus()
        there = [gpu.uuid for gpu in gpus]
        origin, shown = "nvidia-smi lists", [gpu.name for gpu in gpus]
    if not there:
        raise CodetrError(f"gpus {wanted}: {origin} no GPU here; leave it out, or serve where there is one")
    numbers = list(range(len(there))) if wanted == "all" else [int(number) for number in wanted.split(",")]
    for number in numbers:
        if number >= len(there):
            listed = ", ".join(f"{i} ({name})" for i, name in enumerate(shown))
            raise CodetrError(f"gpus {wanted}: there is no GPU {number}; {origin} {listed}")
        if numbers.count(number) > 1:
            raise CodetrError(f"gpus {wanted}: GPU {number} is named twice; several on each are instances of the build")
    return ",".join(there[number] for number in numbers)


def check_gpus(
    repository: Path, engines: Sequence[str], wanted: str | None, environment: Mapping[str, str]
) -> ServerGpus:
    """Check that the engines can run on every GPU that their server gets.

    Args:
        repository: of the engines.
        engines: what they are called.
        wanted: as of `visible_devices`; None for all that the server sees.
        environment: of the server.

    Raises:
        CodetrError: as `visible_devices`; no engine runs on a GPU, or one was built for others than these.
    """
    manifests = {engine: read_manifest(repository, engine) for engine in engines}
    on_gpu = {engine: each for engine, each in manifests.items() if _is_for_gpu(each)}
    devices = None
    if wanted is not None:
        devices = visible_devices(wanted, environment)
        if not on_gpu:
            raise CodetrError(f"gpus {wanted}: no engine of {repository} runs on a GPU; leave it out")
    gpus = _seen(devices if devices is not None else environment.get(VISIBLE)) if on_gpu else []
    for engine, manifest in on_gpu.items():
        built = manifest.get("compute_capability")
        others = [gpu for gpu in gpus if gpu.capability not in ("", built)]
        if built and others and len(others) < len(gpus) and not manifest.get("hardware_compatible", False):
            fit = ",".join(str(gpu.number) for gpu in gpus if gpu not in others)
            advice = f"take it out of {VISIBLE}" if VISIBLE in environment else f"choose the GPUs {fit}"
            raise CodetrError(
                f"the engine {engine} in {repository} was built for compute capability {built}, and GPU "
                f"{others[0].number} ({others[0].name}) has {others[0].capability}; {advice}"
            )
    return ServerGpus(devices, max(1, len(gpus)))


def _is_for_gpu(manifest: Mapping[str, object]) -> bool:
    return manifest.get("engine") == "tensorrt" or manifest.get("device") == "cuda"


def _seen(devices: str | None) -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; those that it names otherwise are left out."""
    installed = installed_gpus()
    if devices is None:
        return installed
    names = [name.strip() for name in devices.split(",")]
    return [
        gpu
        for name in names
        for gpu in installed
        if name == str(gpu.number) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
    ]
