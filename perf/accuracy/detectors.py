"""What detects: a server, the PyTorch detector, or an engine in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from builder.pipeline.served import served
from codetr_client.client import CoDetrClient
from codetr_client.detections import Detections
from codetr_client.wire import Protocol
from perf.access import Access
from perf.connection import PLAIN, Connection
from serving.contract import ENSEMBLE, POSTPROCESS, PREPROCESS
from serving.errors import CodetrError
from serving.postprocess import PostprocessSettings
from serving.preprocess import PreprocessSettings, preprocess
from serving.rules import Rules
from serving.triton import output_dims, parse_settings
from serving.versions import read_choice, versioned

if TYPE_CHECKING:
    from builder.family import DetectorConfig
    from builder.precision import Precision

# Detects on one encoded image.
Detect = Callable[[bytes], Detections]


class Setup(NamedTuple):
    """What an engine was built for beside its network: its input size in pixels, and its rules."""

    height: int
    width: int
    rules: Rules


def server_detect(client: CoDetrClient) -> Detect:
    """Return a `Detect` that asks a server for everything it finds, whatever its own score threshold."""
    return lambda data: client.detect(data, score_threshold=0.0)


def open_server(
    url: str | None,
    protocol: Protocol | None,
    timeout: float,
    model: str,
    access: Access = PLAIN,
) -> tuple[Callable[[], Detect], tuple[str, ...]]:
    """Return a maker of `Detect`s, one for each thread, and the class names, of a server that answers now."""
    with replace(access, retries=0).client(url, protocol, timeout, None, model) as client:
        client.check()  # a server that is away is said to be so at once
        names = client.class_names()
    return lambda: server_detect(access.client(url, protocol, timeout, names or None, model)), names


def server_setup(
    url: str | None, protocol: Protocol | None, timeout: float, model: str, access: Access = PLAIN
) -> Setup:
    """Return how a server's ensemble `model` is set up, from its configuration.

    Raises:
        CodetrError: the server does not tell, or is away.
    """
    with Connection(url, protocol, timeout, model, access) as connection:
        configs = connection.model_configs([PREPROCESS, POSTPROCESS])
    height, width, _ = output_dims(configs[PREPROCESS], "images")
    settings = parse_settings(PostprocessSettings, configs[POSTPROCESS])
    pixels = parse_settings(PreprocessSettings, configs[PREPROCESS]).pixels
    # A request's threshold takes the setting's place, and `server_detect` asks for everything.
    return Setup(height, width, Rules(pixels, replace(settings.suppression, score_threshold=0.0)))


def pytorch_detect(
    variant: DetectorConfig | str, weights: Path, precision: Precision, device: str, setup: Setup | None = None
) -> tuple[Detect, tuple[str, ...]]:
    """Return the PyTorch detector with the server's pre- and post-processing, and its class names.

    Args:
        variant: the network.
        weights: its checkpoint.
        precision: of weights and products; what is float32 is computed without TF32.
        device: "cuda" or "cpu".
        setup: of the engine it is compared with; the variant's usual input size and its own rules else.
    """
    from builder.checkpoint import load_detector
    from builder.engines.eager import EagerDetector

    detector = load_detector(variant, weights, precision).to(device)
    names = detector.variant.class_names or ()
    setup = setup or Setup(*detector.variant.input_size, detector.variant.rules)

    return _in_process(EagerDetector(detector), setup, names), names


def built_variant(repository: Path, name: str) -> tuple[DetectorConfig, Setup]:
    """Return the network of a repository's engine `name` and how it was built, from its manifest."""
    from builder.pipeline.manifest import variant_of
    from serving.manifest import read_manifest

    manifest = read_manifest(repository, name)
    variant = variant_of(manifest)
    return variant, Setup(manifest["height"], manifest["width"], variant.rules)


def served_engine(
    repository: Path, url: str | None, protocol: Protocol | None, timeout: float, model: str, access: Access = PLAIN
) -> str:
    """Return what the engine of a repository is called that a server answers `model` with: that version of it.

    Raises:
        CodetrError: the server's engine is another one, by what both say of it; or the server is away.
    """
    from serving.manifest import ABOUT, read_manifest

    engine = versioned(model, read_choice(repository, model).version)
    with Connection(url, protocol, timeout, model, replace(access, retries=0)) as connection:
        parameters = connection.model_configs([ENSEMBLE])[ENSEMBLE].get("parameters", {})
    told = json.loads(parameters.get(ABOUT, {}).get("string_value") or "{}")  # nothing of earlier versions' builds
    built = read_manifest(repository, engine)
    different = [f"{key} {told[key]}, not {built.get(key)}" for key in told if told[key] != built.get(key)]
    if different:
        raise CodetrError(
            f"the server's {model} is not the engine {engine} of {repository}: it says {'; '.join(different)}; name "
            "the repository that it serves, or leave it out"
        )
    return engine


def onnx_detect(repository: Path, name: str) -> tuple[Detect, tuple[str, ...]]:
    """Return a repository's ONNX engine with the server's pre- and post-processing, and its class names.

    Raises:
        CodetrError: there is no such engine, or it is of another kind.
    """
    from builder.engines.kinds import engine_kind
    from builder.pipeline.manifest import device_of, engine_file, spec_of
    from serving.manifest import read_manifest

    manifest = read_manifest(repository, name)
    if manifest.get("engine") != "onnx":
        raise CodetrError(
            f"the engine {name} in {repository} is a {manifest.get('engine')} engine, expected onnx; a server runs any "
            "that it serves"
        )
    variant, setup = built_variant(repository, name)
    kind = engine_kind(manifest["engine"])
    file = engine_file(repository, name, kind)
    if not file.is_file():
        raise CodetrError(f"no ONNX engine at {file}; build the repository again")
    engine = kind.module.load(file, spec_of(manifest), device_of(manifest))
    names = variant.class_names or ()
    return _in_process(engine, setup, names), names


def _in_process(run: Callable[..., tuple[Any, ...]], setup: Setup, names: tuple[str, ...]) -> Detect:
    def detect(data: bytes) -> Detections:
        prepared = preprocess(data, setup.height, setup.width, rule=setup.rules.pixels)
        outputs = run(prepared.images[None], np.array([prepared.image_size], np.int32))
        boxes, scores, labels = (output[0] for output in outputs)
        return served(boxes, scores, labels, prepared.original_size, setup.rules.suppression, names)

    return detect
