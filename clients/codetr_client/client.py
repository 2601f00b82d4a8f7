"""The client: images in, detections out, over gRPC or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from codetr_client import contract, wire
from codetr_client.detections import Detections
from codetr_client.errors import ServiceError
from codetr_client.images import ImageInput, encode


class CoDetrClient:
    """A connection to a server that runs the `codetr` ensemble.

        with CoDetrClient("localhost:8001") as client:
            detections = client.detect("street.jpg", score_threshold=0.3)

    url: `host:port`; without it Triton's default port on this machine (8001 gRPC, 8000 HTTP).
    protocol: "grpc" or "http". An HTTP client belongs to one thread; a gRPC client may be shared.
    timeout: seconds for one call. Nothing is retried: a failed call raises, and repeating it is the caller's choice.
    class_names: "coco", or names in label order; without it the server's configuration is asked once, and where the
        server keeps that to itself the names are "class 17".
    model: the ensemble's name.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: wire.Protocol = "grpc",
        timeout: float = wire.DEFAULT_TIMEOUT,
        class_names: wire.ClassNames = None,
        model: str = contract.ENSEMBLE,
    ) -> None:
        self._endpoint = wire.endpoint(url, protocol, timeout, model)
        self._names = wire.known_names(class_names)
        options = {} if protocol == "grpc" else {"connection_timeout": timeout, "network_timeout": timeout}
        self._triton: Any = self._endpoint.library().InferenceServerClient(self._endpoint.address, **options)

    def __enter__(self) -> CoDetrClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._triton.close()

    def detect(self, image: ImageInput, score_threshold: float | None = None) -> Detections:
        """Return the detections of one image: a path, encoded bytes, a Pillow image or RGB uint8 [H, W, 3].

        `score_threshold` (0..1) replaces the server's setting for this request.
        Raises InvalidImageError for what cannot be read here, and a `codetr_client.errors.ServiceError` for the rest.
        """
        return self.detect_batch([image], score_threshold)[0]

    def detect_batch(self, images: Sequence[ImageInput], score_threshold: float | None = None) -> list[Detections]:
        """Return the detections of several images, of any sizes, sent as one request.

        The request fails as a whole. The server bounds its images by the ensemble's `max_batch_size`; arguments and
        errors otherwise as in `detect`.
        """
        if not images:
            return []
        request = self._endpoint.request([encode(image) for image in images], score_threshold)
        with self._endpoint.typed_errors():
            result = self._triton.infer(**request)
        return wire.read_detections(result, self.class_names())

    def class_names(self) -> tuple[str, ...]:
        """Return the detector's class names in label order; () where neither the caller nor the server names them."""
        if self._names is None:
            self._names = self._ask_names()
        return self._names

    def check(self) -> None:
        """Raise a `codetr_client.errors.ServiceError` unless the model can answer now."""
        with self._endpoint.typed_errors():
            if not self._triton.is_model_ready(self._endpoint.model, **self._endpoint.call_options):
                # the metadata of a model that is unknown or not loaded is an error that says which
                self._triton.get_model_metadata(self._endpoint.model, **self._endpoint.call_options)
                raise self._endpoint.not_ready()

    def _ask_names(self) -> tuple[str, ...]:
        try:
            with self._endpoint.typed_errors():
                config = self._triton.get_model_config(self._endpoint.model, **self._endpoint.config_options)
        except ServiceError as error:
            return wire.names_without_config(error)
        return wire.names_from_config(config, self._endpoint.model)
