"""What `codetr bench gpus` asks of a server, of one without a GPU."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from perf.gpus.run import ask
from perf.pictures import encoded_picture
from serving.launch import TritonServer
from tests.tiny_engine import MAX_DETECTIONS

pytestmark = pytest.mark.server


def test_answers_of_a_server_are_counted_and_compared(both: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [encoded_picture(50, 30, seed=seed) for seed in range(2)]
    none = [np.zeros(MAX_DETECTIONS, np.float32)] * 2
    monkeypatch.setattr("perf.gpus.run.WARM_UP_SECONDS", 0.2)
    looks = itertools.count()  # each a hundredth of a second after the one before, however long an answer takes
    monkeypatch.setattr("perf.gpus.run.time", SimpleNamespace(monotonic=lambda: next(looks) / 100))
    rate, difference, failures = asyncio.run(ask(both.grpc_url, "codetr", pictures, none, 4, 0.5))
    assert rate > 0
    assert failures == 0
    assert difference > 0.1, "pictures are not black"
    _, _, failures = asyncio.run(ask(both.grpc_url, "codetr", [b"no picture"], none, 1, 0.1))
    assert failures > 0
