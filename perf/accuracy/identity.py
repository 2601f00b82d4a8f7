"""What decides a detector's answers, as one value: a run goes on from results of the very same detector alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_client.errors import ModelNotFoundError
from perf.access import Access
from perf.connection import PLAIN, Connection
from serving.contract import ENSEMBLE
from serving.manifest import ABOUT, read_manifest, sha256

if TYPE_CHECKING:
    from builder.family import DetectorConfig
    from codetr_client.wire import Protocol
    from perf.accuracy.detectors import Setup


def identity_of_pytorch(variant: DetectorConfig, weights: Path, setup: Setup | None) -> str:
    """Return the identity of the PyTorch detector of a variant, of its checkpoint and of the engine's setup, if any."""
    from builder.reading.checkpoint_file import digest

    return _identity(asdict(variant), digest(weights), _setup(setup))


def identity_of_onnx(repository: Path, name: str) -> str:
    """Return the identity of a repository's ONNX engine `name`, whose file may not be the one that was built."""
    from builder.engines.kinds import engine_kind
    from builder.pipeline.manifest import engine_file

    file = engine_file(repository, name, engine_kind("onnx"))
    return _identity(read_manifest(repository, name), sha256(file))


def identity_of_server(
    url: str | None, protocol: Protocol | None, timeout: float, model: str, access: Access = PLAIN
) -> str:
    """Return the identity of a server's ensemble `model`: what it tells of its engine, its size and its rules.

    Raises:
        CodetrError: the server does not tell, or is away.
    """
    from perf.accuracy.detectors import server_setup

    with Connection(url, protocol, timeout, model, access) as connection:
        parameters = connection.model_configs([ENSEMBLE])[ENSEMBLE].get("parameters", {})
    told = [parameters.get(key, {}).get("string_value") for key in (ABOUT, "class_names")]
    try:
        setup = server_setup(url, protocol, timeout, model, access)
    except ModelNotFoundError:  # an ensemble of other steps than ours
        setup = None
    return _identity(told, _setup(setup))


def _setup(setup: Setup | None) -> list[Any] | None:
    return None if setup is None else [setup.height, setup.width, asdict(setup.rules)]


def _identity(*parts: Mapping[str, Any] | list[Any] | str | None) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
