"""The manifest of an engine: what it was made from, with what, and how it compared."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from builder.engines import Device, Engine
from builder.engines.kinds import BuiltEngine, EngineKind, engine_kind
from builder.engines.tensorrt.settings import TensorRTSettings, WindowAttention
from builder.families import restore_variant
from builder.family import DetectorConfig
from builder.operators import interface
from builder.pipeline.export import INPUT_NAMES, InputSpec
from builder.pipeline.verify import Verification
from builder.reading.checkpoint_file import digest
from serving.contract import DETECTOR, model_name
from serving.errors import CodetrError
from serving.manifest import FILES, SCHEMA, compute_capabilities, cpu, manifest_path, read_manifest

# Distributions whose version can change an engine's file or its numbers; those not installed are left out.
_DISTRIBUTIONS = ("codetr-triton", "torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "torch-tensorrt")

# What a verification of an engine that exists needs, of `describe`.
_NEEDED = ("network", "engine", "precision", "height", "width", "max_batch_size", "dynamic_batch", "weights", "seed")


def describe(
    variant: DetectorConfig,
    weights: Path | None,
    seed: int,
    engine: BuiltEngine,
    precision: str,
    spec: InputSpec,
    verification: Verification | None,
) -> dict[str, Any]:
    """Return the manifest of one engine; `weights` None stands for random weights of `seed`."""
    on_gpu = torch.cuda.is_available()
    capabilities = ["{}.{}".format(*torch.cuda.get_device_capability())] if on_gpu else compute_capabilities()
    return {
        "schema": SCHEMA,
        "variant": variant.name,
        "network": {"family": variant.family, **asdict(variant)},
        "engine": engine.kind.name,
        "device": engine.device,
        "inputs": list(engine.inputs),
        "precision": precision,
        "height": spec.height,
        "width": spec.width,
        "max_batch_size": spec.max_batch_size,
        "dynamic_batch": spec.is_dynamic,
        "max_detections": variant.max_detections,
        "weights": None if weights is None else {"file": weights.name, "sha256": digest(weights)},
        "seed": seed if weights is None else None,
        "versions": {
            **versions(),
            **engine.versions,
            **({"plugin": interface.PLUGIN_VERSION} if engine.kind.name == "tensorrt" else {}),
        },
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "compute_capability": capabilities[0] if len(capabilities) == 1 else None,
        **({"cpu": _cpu()} if engine.kind.name == "torch" and engine.device == "cpu" else {}),
        "verification": None if verification is None else verification.to_dict(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu() -> dict[str, Any]:
    """Return the CPU that a package is compiled on, and so for: AOTInductor compiles with -march=native."""
    return {**cpu(), "capability": torch.backends.cpu.get_cpu_capability()}


def check_described(repository: Path, name: str) -> None:
    """Check that a manifest has what is needed to verify its engine again; raises CodetrError with the missing key."""
    manifest = read_manifest(repository, name)
    for key in _NEEDED:
        if key not in manifest:
            raise CodetrError(f"{manifest_path(repository, name)} has no {key!r}; build the repository again")


def device_of(manifest: Mapping[str, Any]) -> Device:
    """Return where a manifest's engine runs; before it was declared, a GPU's engine had a library beside it."""
    if "device" in manifest:
        return cast(Device, manifest["device"])
    return "cuda" if any(file.endswith(".so") for file in manifest[FILES]) else "cpu"


def spec_of(manifest: Mapping[str, Any]) -> InputSpec:
    """Return the input that a manifest's engine has; before it was declared, every batch was dynamic."""
    dynamic = manifest.get("dynamic_batch", True)
    return InputSpec(manifest["height"], manifest["width"], manifest["max_batch_size"], dynamic)


def inputs_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a manifest's engine reads; before it was declared, every engine had all inputs."""
    return tuple(manifest.get("inputs", INPUT_NAMES))


def engine_file(repository: Path, name: str, kind: EngineKind) -> Path:
    """Return where a repository has the file of its engine `name`."""
    return repository / model_name(DETECTOR, name) / "1" / kind.file_name


def load_engine(repository: Path, name: str, manifest: Mapping[str, Any], batch: int | None = None) -> Engine:
    """Return a repository's engine `name` of this manifest, in the interpreter that can run it.

    Args:
        repository: a folder written by `codetr build`.
        name: of the engine.
        manifest: its own.
        batch: the largest that will be run, for which a GPU gets a CUDA graph; None for the largest that it takes.

    Raises:
        EngineError: it cannot be loaded here.
    """
    kind = engine_kind(manifest["engine"])
    # before there were two frontends, torch_tensorrt built every plan
    settings = TensorRTSettings(frontend=manifest.get("frontend", "torch-tensorrt")) if kind.has_settings else None
    path = engine_file(repository, name, kind)
    spec = spec_of(manifest) if batch is None else replace(spec_of(manifest), max_batch_size=batch)
    return kind.module.load(path, spec, device_of(manifest), settings)


def window_attention_of(manifest: Mapping[str, Any]) -> WindowAttention:
    """Return the form that window attention has in a manifest's plan; before there was a plugin, it was written out."""
    return cast(WindowAttention, manifest.get("window_attention", "written-out"))


def variant_of(manifest: Mapping[str, Any]) -> DetectorConfig:
    """Return the variant that a manifest's engine was built from; raises CodetrError where it has none."""
    try:
        return restore_variant(manifest["network"])
    except (KeyError, TypeError) as error:
        raise CodetrError(f"the manifest describes no network this version knows ({error}); build it again") from error


def versions() -> dict[str, str]:
    """Return the versions of everything that decides an engine's numbers."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
