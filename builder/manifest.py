"""The manifest of an engine: what it was made from, with what, and how it compared."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from builder.co_dino.config import Variant
from builder.export import InputSpec
from builder.verify import Verification
from serving.manifest import sha256

# Distributions whose version can change an engine's file or its numbers; those not installed are left out.
_DISTRIBUTIONS = ("codetr-triton", "torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "torch-tensorrt")


def describe(
    variant: Variant,
    weights: Path | None,
    engine: str,
    precision: str,
    spec: InputSpec,
    verification: Verification | None,
) -> dict[str, Any]:
    """Return the manifest of one engine; `weights` None stands for seeded random weights."""
    return {
        "variant": variant.name,
        "engine": engine,
        "precision": precision,
        "height": spec.height,
        "width": spec.width,
        "max_batch_size": spec.max_batch_size,
        "dynamic_batch": spec.is_dynamic,
        "max_detections": variant.max_detections,
        "class_names": list(variant.class_names or ()),
        "weights": None if weights is None else {"file": weights.name, "sha256": sha256(weights)},
        "versions": versions(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "verification": None if verification is None else verification.to_dict(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


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
