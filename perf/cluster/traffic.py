"""Requests to a cluster, each with its time: at random (Poisson), or so many under way at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codetr_client import AsyncCoDetrClient
from codetr_client.errors import ServiceError
from codetr_client.wire import Protocol


@dataclass(frozen=True)
class Answer:
    """A request: seconds of the clock `time.monotonic` when it was sent and answered, and its error or ''."""

    began: float
    ended: float
    error: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


@dataclass(frozen=True)
class Load:
    """What is sent: `rate` requests a second at random, or `users` under way at any time, for so many seconds."""

    seconds: float
    rate: float = 0.0
    users: int = 0
    protocol: Protocol = "grpc"
    retries: int = 0
    timeout: float = 30.0
    seed: int = 0


def send(url: str, image: bytes, load: Load) -> list[Answer]:
    """Send a load over one client and return every answer, in the order of their ends."""
    return asyncio.run(_send(url, image, load))


async def _send(url: str, image: bytes, load: Load) -> list[Answer]:
    answers: list[Answer] = []
    client = AsyncCoDetrClient(url, load.protocol, timeout=load.timeout, class_names=(), retries=load.retries)
    async with client:
        end = time.monotonic() + load.seconds

        async def ask() -> None:
            began, error = time.monotonic(), ""
            try:
                await client.detect(image)
            except ServiceError as fault:
                error = f"{type(fault).__name__}: {fault}"
            answers.append(Answer(began, time.monotonic(), error))

        async def user() -> None:
            while time.monotonic() < end:
                await ask()

        if load.users:
            await asyncio.gather(*(user() for _ in range(load.users)))
        else:
            await _arrive(ask, load, end)
    return answers


async def _arrive(ask: Callable[[], Coroutine[Any, Any, None]], load: Load, end: float) -> None:
    generator, tasks = random.Random(load.seed), []
    due = end - load.seconds  # or a pause before this line would cost requests
    while (due := due + generator.expovariate(load.rate)) < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(ask()))
    await asyncio.gather(*tasks)


def percentile(answers: Sequence[Answer], share: float) -> float:
    """Return a percentile of the seconds of good answers; NaN if there is none."""
    good = [each.seconds for each in answers if not each.error]
    return float(np.percentile(good, share)) if good else float("nan")
