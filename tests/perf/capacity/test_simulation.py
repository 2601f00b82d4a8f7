"""The simulation against what queueing theory and arithmetic know; with fewer requests than plans are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from perf.capacity import simulation
from perf.capacity.service import Service, measured_service
from perf.capacity.simulation import simulate
from serving import contract

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_REQUESTS", 10_000)
    monkeypatch.setattr(simulation, "_REQUESTS_EACH", 300)


# A detector alone: one image at a time, 0.1 s.
DETECTOR = Service(0.0, 0.1, 0.0, 1, 0.0, instances=(1, 1, 1))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_waits_as_theory_says(load: float) -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) service times (Pollaczek and Khinchine)."""
    found = simulate(DETECTOR, 1, load * 10)
    assert found.use == pytest.approx(load)
    assert found.ratio == pytest.approx(load / (2 * (1 - load)), rel=0.1)


def test_a_request_that_waits_for_nobody_takes_the_sum_of_its_steps() -> None:
    service = Service(0.02, 0.1, 0.01, 4, 0.003, around=0.005)
    found = simulate(service, 3, 0.01)
    assert found.p50 == pytest.approx(1e3 * (0.005 + 0.02 + 0.11 + 0.003))
    assert found.p99 == pytest.approx(found.p50)
    assert found.ratio < 1e-3


def test_what_one_request_took_beyond_its_median_comes_back() -> None:
    service = replace(DETECTOR, beyond=(0.0, 0.02, 0.05, 0.4))
    found = simulate(service, 1, 0.001)
    assert found.p50 == pytest.approx(100, abs=0.5)
    assert found.p99 == pytest.approx(500, rel=0.05)


def test_a_full_detector_takes_batches() -> None:
    """Four images in 0.1 s are 40 a second: at 30 a detector of single images would never catch up."""
    batched = Service(0.0, 0.1, 0.0, 4, 0.0, instances=(1, 1, 1))
    assert batched.highest_rate == pytest.approx(40)
    assert simulate(batched, 1, 30.0).p99 < 500
    assert simulate(DETECTOR, 1, 30.0).p99 > 10_000


def test_a_step_before_the_detector_can_be_what_is_short() -> None:
    service = Service(0.3, 0.1, 0.0, 1, 0.0, instances=(3, 1, 2))
    assert service.highest_rate == pytest.approx(10)
    short = replace(service, instances=(2, 1, 2))
    assert short.highest_rate == pytest.approx(2 / 0.3)
    assert simulate(short, 1, 6.0).p99 > 1.2 * simulate(service, 1, 6.0).p99


def test_more_servers_of_the_same_load_wait_less_behind_least_request() -> None:
    """Alone they wait as one; the balancer finds the one that is idle."""
    one, ten = simulate(DETECTOR, 1, 8.0), simulate(DETECTOR, 10, 80.0)
    assert ten.ratio < one.ratio / 3


def test_taking_turns_waits_less_where_every_server_is_as_fast() -> None:
    """Arrivals at one of ten that take turns are as regular as the sum of ten intervals."""
    turns, least = (simulate(DETECTOR, 10, 60.0, each) for each in ("round-robin", "least-request"))
    assert turns.ratio < least.ratio / 3


def test_many_servers_are_as_fifty_with_the_same_load() -> None:
    """What lets 10,000 images a second be simulated in seconds."""
    few, all_of_them = (simulate(DETECTOR, 90, 0.85 * 900, most_servers=most) for most in (50, 90))
    assert few.p99 == pytest.approx(all_of_them.p99, rel=0.05)
    assert few.ratio == pytest.approx(all_of_them.ratio, rel=0.1)


def test_the_same_seed_says_the_same_and_another_nearly() -> None:
    assert simulate(DETECTOR, 3, 20.0) == simulate(DETECTOR, 3, 20.0)
    other = simulate(DETECTOR, 3, 20.0, seed=1)
    assert other != simulate(DETECTOR, 3, 20.0)
    assert other.p99 == pytest.approx(simulate(DETECTOR, 3, 20.0).p99, rel=0.1)


@pytest.mark.parametrize(
    ("run", "instances", "p99"),
    [pytest.param("one", 1, 1.0, id="one instance"), pytest.param("two", 2, 1.3, id="two that share an engine")],
)
def test_what_an_h100_did_is_what_its_steps_say(run: str, instances: int, p99: float) -> None:
    """A batch's time is with the wait for the other instance's, so that two are not taken for two engines."""
    file = ROOT / "perf" / "results" / "service-h100-guests" / run / "service.json"
    *closed, poisson = json.loads(file.read_text(encoding="utf-8"))["levels"]
    models = {contract.DETECTOR: {"max_batch_size": 4, "instance_group": [{"count": 1}] * instances}}
    service = measured_service(closed, models)
    assert service.highest_rate == pytest.approx(closed[-1]["reading"]["throughput"], rel=0.05)
    found = simulate(service, 1, poisson["reading"]["throughput"])
    assert found.p50 == pytest.approx(poisson["reading"]["p50"], rel=0.1)
    assert found.p99 == pytest.approx(p99 * poisson["reading"]["p99"], rel=0.1)
    step = poisson["steps"][contract.DETECTOR]
    assert found.ratio == pytest.approx(step["queue"] / step["compute_infer"], abs=0.05)
