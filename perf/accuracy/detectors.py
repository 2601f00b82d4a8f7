"""What detects: a server, the PyTorch detector, or an engine in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codetr_client.client import CoDetrClient
from codetr_client.detections import Detections
from codetr_client.wire import ClassNames, Protocol
from serving.rules import DEFAULT_SUPPRESSION, Suppression

if TYPE_CHECKING:
    from builder.variants import Variant

# Detects on one encoded image.
Detect = Callable[[bytes], Detections]


def server_detect(client: CoDetrClient) -> Detect:
    """Return a `Detect` that asks a server for everything it finds, whatever its own score threshold."""
    return lambda data: client.detect(data, score_threshold=0.0)


def open_server(
    url: str | None, protocol: Protocol, timeout: float, labels: ClassNames, model: str
) -> tuple[Callable[[], Detect], tuple[str, ...]]:
    """Return a maker of `Detect`s, one for each thread, and the class names, of a server that answers now."""
    with CoDetrClient(url, protocol, timeout, labels, model) as client:
        client.check()
        names = client.class_names()
    return lambda: server_detect(CoDetrClient(url, protocol, timeout, names or None, model)), names


def pytorch_detect(
    variant: Variant | str, weights: Path, precision: str, device: str
) -> tuple[Detect, tuple[str, ...]]:
    """Return the PyTorch detector with the server's pre- and post-processing, and its class names."""
    import torch

    from builder.checkpoint import load_detector

    detector = load_detector(variant, weights, precision).to(device)  # type: ignore[arg-type]
    names = detector.variant.class_names or ()
    height, width = detector.variant.input_size

    @torch.inference_mode()
    def run(images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> tuple[Any, ...]:
        outputs = detector(torch.from_numpy(images).to(device), torch.from_numpy(image_sizes).to(device))
        return tuple(output.cpu().numpy() for output in outputs)

    return _in_process(run, height, width, names, detector.variant.suppression), names


def onnx_detect(engine: Path, class_names: tuple[str, ...], suppression: Suppression = DEFAULT_SUPPRESSION) -> Detect:
    """Return an ONNX engine with the server's pre- and post-processing."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(engine), providers=["CPUExecutionProvider"])
    height, width = session.get_inputs()[0].shape[1:3]

    def run(images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> tuple[Any, ...]:
        return tuple(session.run(["boxes", "scores", "labels"], {"images": images, "image_sizes": image_sizes}))

    return _in_process(run, height, width, class_names, suppression)


def _in_process(
    run: Callable[..., tuple[Any, ...]], height: int, width: int, names: tuple[str, ...], suppression: Suppression
) -> Detect:
    from serving.postprocess import PostprocessSettings, postprocess
    from serving.preprocess import preprocess

    def detect(data: bytes) -> Detections:
        prepared = preprocess(data, height, width)
        outputs = run(prepared.images[None], np.array([prepared.image_size], np.int32))
        boxes, scores, all_labels = (output[0] for output in outputs)
        settings = PostprocessSettings.of(suppression, len(scores))
        result = postprocess(boxes, scores, all_labels, prepared.original_size, settings)
        n = result.num_detections
        labels = result.labels[:n]
        return Detections(result.boxes[:n], result.scores[:n], labels, tuple(names[label] for label in labels))

    return detect
