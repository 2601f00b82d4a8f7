"""Requests that arrive at random at servers behind a balancer, step by step, in simulated time (SimPy)."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simpy

from perf.capacity.service import Service

Balancer = Literal["least-request", "round-robin"]
# Of the requests, the first are left out: the servers were empty.
_WARM_UP = 0.2
# Of a server's requests, so many give its p99; of few servers, so many in all.
_REQUESTS_EACH, _REQUESTS = 1000, 20_000
# Two servers are drawn whatever their number: more than this many are simulated as this many with the same load each.
MOST_SERVERS = 50
# What `Service.beyond` stands at.
_SHARES = (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Prediction:
    """What clients see of `replicas` servers at `rate` requests a second; milliseconds.

    use: the share of what they can answer at most. ratio: seconds waited for a detector for each second that it
    computes, which the autoscaler asks for.
    """

    replicas: int
    rate: float
    p50: float
    p95: float
    p99: float
    use: float
    ratio: float


def simulate(
    service: Service,
    replicas: int,
    rate: float,
    balancer: Balancer = "least-request",
    seed: int = 0,
    most_servers: int = MOST_SERVERS,
) -> Prediction:
    """Return what so many servers do with requests that arrive at random (Poisson) at a rate.

    least-request: of two servers drawn at random the one with fewer requests under way, as the Envoy of
    `deploy/envoy` does; round-robin: one after the other, as the clients do of a `dns:///` address.
    """
    environment = simpy.Environment()
    generator = random.Random(seed)
    servers = [_Server(environment, service) for _ in range(min(replicas, most_servers))]
    share = len(servers) / replicas
    requests = max(_REQUESTS, _REQUESTS_EACH * len(servers))
    choose = _chooser(servers, balancer, generator)
    times = np.zeros((requests, 2))  # arrival, answer

    def request(index: int) -> Generator[Any, Any, None]:
        times[index, 0] = environment.now
        yield from choose().answer(_beyond(service, generator))
        times[index, 1] = environment.now

    def arrivals() -> Generator[Any, Any, None]:
        for index in range(requests):
            environment.process(request(index))
            yield environment.timeout(generator.expovariate(rate * share))

    environment.process(arrivals())
    environment.run()
    kept = times[int(requests * _WARM_UP) :]
    p50, p95, p99 = np.percentile(kept[:, 1] - kept[:, 0], [50, 95, 99]) * 1e3
    waited, computed = (sum(getattr(server, name) for server in servers) for name in ("waited", "computed"))
    return Prediction(
        replicas=replicas,
        rate=rate,
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        use=rate / (replicas * service.highest_rate),
        ratio=waited / computed if computed else 0.0,
    )


class _Instances:
    """Instances of a step, which take requests in their order, each for the same time."""

    def __init__(self, count: int, seconds: float) -> None:
        self._free = [0.0] * count  # from when on, a heap
        self._seconds = seconds

    def until_done(self, now: float) -> float:
        """Give a request that comes now to the instance that is free first, and return the seconds until it is done."""
        done = max(now, self._free[0]) + self._seconds
        heapq.heapreplace(self._free, done)
        return done - now


class _Server:
    """One server: a queue and instances for each step; the detector takes what waits as one batch."""

    def __init__(self, environment: simpy.Environment, service: Service) -> None:
        self.under_way = 0
        self.waited = self.computed = 0.0
        self._environment, self._service = environment, service
        preprocess, detectors, postprocess = service.instances
        self._preprocess = _Instances(preprocess, service.preprocess)
        self._postprocess = _Instances(postprocess, service.postprocess)
        self._waiting: deque[tuple[float, simpy.Event]] = deque()
        self._idle = detectors

    def answer(self, beyond: float) -> Generator[Any, Any, None]:
        """Take one request through all steps; `beyond`: seconds that this one spends on top of them."""
        self.under_way += 1
        yield self._environment.timeout(self._service.around + beyond)
        yield self._environment.timeout(self._preprocess.until_done(self._environment.now))
        detected = self._environment.event()
        self._waiting.append((self._environment.now, detected))
        if self._idle:
            self._idle -= 1
            self._environment.process(self._detect())
        yield detected
        yield self._environment.timeout(self._postprocess.until_done(self._environment.now))
        self.under_way -= 1

    def _detect(self) -> Generator[Any, Any, None]:
        """One instance of the detector, until nothing waits."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._service.max_batch))]
            seconds = self._service.detector(len(batch))
            self.waited += sum(self._environment.now - since for since, _ in batch)
            self.computed += seconds * len(batch)  # Triton counts a batch's time for each of its requests
            yield self._environment.timeout(seconds)
            for _, detected in batch:
                detected.succeed()
        self._idle += 1


def _chooser(servers: list[_Server], balancer: Balancer, generator: random.Random) -> Callable[[], _Server]:
    if balancer == "round-robin":
        turn = iter(range(10**12))
        return lambda: servers[next(turn) % len(servers)]

    def fewer() -> _Server:
        one, two = generator.choice(servers), generator.choice(servers)  # perhaps the same, as Envoy draws
        return two if two.under_way < one.under_way else one

    return fewer


def _beyond(service: Service, generator: random.Random) -> float:
    values = (0.0, *service.beyond, service.beyond[-1])
    return float(np.interp(generator.random(), _SHARES, values))
