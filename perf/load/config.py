"""A load test's settings: made by the command line, carried to locust's process as one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from perf.access import Access
from perf.load.shapes import Profile, Shape
from serving import contract

VARIABLE = "CODETR_LOAD"
Arrival = Literal["closed", "constant-rate"]


@dataclass(frozen=True)
class LoadConfig:
    """Settings of a load test.

    closed: `peak` users, each sending, waiting for the answer, then thinking `think` seconds on average
    (exponentially distributed). constant-rate: `peak` requests a second arrive at random (Poisson) whatever the server
    does, so a slow answer delays nobody else's request. The run ends after `requests` requests if given, else after
    `seconds`. Limits decide the exit status; None: no limit. server_pid: whose memory to sample; None: that of the
    process which listens at `url`, if it is of this machine. baseline: results.json of an earlier run. command: what
    the report names as its command. access: credentials and certificates.
    """

    url: str
    protocol: Literal["grpc", "http"] = "grpc"
    model: str = contract.ENSEMBLE
    timeout: float = 30.0
    arrival: Arrival = "closed"
    shape: Shape = "constant"
    peak: float = 4.0
    seconds: float = 60.0
    requests: int | None = None
    think: float = 0.5
    bad_share: float = 0.01
    seed: int = 0
    max_p99_ms: float | None = None
    max_failures: int | None = 0
    max_memory_growth_mb: float | None = None
    server_pid: int | None = None
    baseline: str | None = None
    output: str = "runs/bench/load"
    command: str = ""
    access: Access = field(default_factory=Access)

    @property
    def profile(self) -> Profile:
        """The load over the run."""
        return Profile(self.shape, self.peak)

    def progress(self, second: float, requests: int) -> float:
        """Return the share of the run that is done after `second` seconds and `requests` requests."""
        return requests / self.requests if self.requests else second / self.seconds

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path(self.output)

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that runs this test."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}


def from_environment(environment: Mapping[str, str] = os.environ) -> LoadConfig:
    """Return the settings that `LoadConfig.environment` carried here."""
    values: dict[str, Any] = json.loads(environment[VARIABLE])
    return LoadConfig(**{**values, "access": Access(**values["access"])})
