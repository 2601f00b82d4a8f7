"""Questions to a running server that only measuring asks: configurations and statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from codetr_client import wire
from serving import contract
from serving.runtime import statistics_headers


class Connection:
    """A server's management side; `url` is host:port of its gRPC or HTTP endpoint. Close it, or use it as a block.

    `ensemble` is the engine's name in the repository. Models are asked for and answered about by their names in the
    contract, whatever the ensemble: `codetr_detector` stands for ENSEMBLE_detector.
    """

    def __init__(
        self, url: str | None, protocol: wire.Protocol, timeout: float = 30.0, ensemble: str = contract.ENSEMBLE
    ) -> None:
        self.ensemble = ensemble
        self._endpoint = wire.endpoint(url, protocol, timeout, ensemble)
        self._triton: Any = self._endpoint.library().InferenceServerClient(self._endpoint.address)

    @property
    def address(self) -> str:
        """The server's host:port."""
        return self._endpoint.address

    @property
    def protocol(self) -> wire.Protocol:
        """How it is spoken to."""
        return self._endpoint.protocol

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._triton.close()

    def model_configs(self, models: Sequence[str]) -> dict[str, Any]:
        """Return Triton's configuration of each model of the contract.

        Raises a one-line `codetr_client.errors.ServiceError` for a server that is away and a model that is unknown or
        not ready.
        """
        configs = {}
        for model in models:
            served = self.served_name(model)
            with self._asking_about(served) as endpoint:
                answer = self._triton.get_model_config(served, **endpoint.config_options)
            configs[model] = answer.get("config", answer)
        return configs

    def statistics(self) -> dict[str, Any]:
        """Return Triton's statistics of the ensemble's models since the server's start, as JSON."""
        with self._endpoint.typed_errors():
            answer: dict[str, Any] = self._triton.get_inference_statistics(
                headers=statistics_headers(self.address, self.protocol), **self._endpoint.config_options
            )
        names = {self.served_name(model): model for model in contract.contract(1, 1)}
        known = [stats for stats in answer.get("model_stats", []) if stats["name"] in names]
        return {"model_stats": [{**stats, "name": names[stats["name"]]} for stats in known]}

    def served_name(self, model: str) -> str:
        """Return what a model of the contract is called on this server."""
        return contract.model_name(model, self.ensemble)

    @contextlib.contextmanager
    def _asking_about(self, model: str) -> Iterator[wire.Endpoint]:
        endpoint = wire.endpoint(self.address, self.protocol, self._endpoint.timeout, model)
        with endpoint.typed_errors():
            if not self._triton.is_model_ready(model, **endpoint.call_options):
                self._triton.get_model_metadata(model, **endpoint.call_options)
                raise endpoint.not_ready()
            yield endpoint
