"""Questions to a running server that only measuring asks: configurations and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codetr_client import client, wire
from codetr_client.deadline import Deadline
from codetr_client.steps import Calls
from codetr_client.wire import Ask
from perf.access import Access
from serving import contract
from serving.runtime import statistics_headers

PLAIN = Access()


class Connection:
    """A server's management side; `url` is host:port of its gRPC or HTTP endpoint. Close it, or use it as a block.

    `ensemble` is the engine's name in the repository. Models are asked for and answered about by their names in the
    contract, whatever the ensemble: `codetr_detector` stands for ENSEMBLE_detector.
    """

    def __init__(
        self,
        url: str | None,
        protocol: wire.Protocol | None,
        timeout: float = 30.0,
        ensemble: str = contract.ENSEMBLE,
        access: Access = PLAIN,
    ) -> None:
        self.ensemble = ensemble
        self._endpoint = access.endpoint(url, protocol, timeout, ensemble)
        self._calls = Calls(self._endpoint, ())
        self._connection = client.Connection(self._endpoint)

    @property
    def address(self) -> str:
        """The server's host:port."""
        return self._endpoint.address

    @property
    def protocol(self) -> wire.Protocol:
        """How it is spoken to."""
        return self._endpoint.protocol

    @property
    def is_encrypted(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self._endpoint.tls is not None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def model_configs(self, models: Sequence[str]) -> dict[str, Any]:
        """Return Triton's configuration of each model of the contract.

        Raises a one-line `codetr_client.errors.ServiceError` for a server that is away and a model that is unknown or
        not ready.
        """
        self._connection.run(self._calls.ready(self.ensemble, {}, self._deadline()))
        configs, names = {}, self._served_names()
        for model in models:
            served = names[model]
            self._connection.run(self._calls.ready(served, {}, self._deadline()))
            answer = self._ask(Ask("config", served))
            configs[model] = answer.get("config", answer)
        return configs

    def statistics(self) -> dict[str, Any]:
        """Return Triton's statistics of the ensemble's models since the server's start, as JSON."""
        shut = statistics_headers(self._endpoint.authority, self.protocol)
        answer = self._ask(Ask("statistics", self.ensemble), shut)
        names = {served: model for model, served in self._served_names().items()}
        known = [stats for stats in answer.get("model_stats", []) if stats["name"] in names]
        return {"model_stats": [{**stats, "name": names[stats["name"]]} for stats in known]}

    def served_name(self, model: str) -> str:
        """Return what a model of the contract is called on this server: steps have the names of their version."""
        return self._served_names()[model]

    def _served_names(self) -> dict[str, str]:
        answer = self._ask(Ask("config", self.ensemble))
        steps = answer.get("config", answer).get("ensemble_scheduling", {}).get("step", [])
        names = {model: contract.model_name(model, self.ensemble) for model in contract.contract(1, 1)}
        for step in (str(step["model_name"]) for step in steps):
            names |= {model: step for model in names if model != contract.ENSEMBLE and _has_role(step, model)}
        return names

    def _ask(self, ask: Ask, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self._connection.run(self._calls.ask(ask, headers or {}, self._deadline()))
        return answer

    def _deadline(self) -> Deadline:
        return Deadline(self._endpoint.timeout)


def _has_role(step: str, model: str) -> bool:
    return step.endswith(model.removeprefix(contract.ENSEMBLE))
