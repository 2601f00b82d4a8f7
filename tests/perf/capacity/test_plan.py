from __future__ import annotations

from pathlib import Path

import pytest

from perf.capacity import simulation
from perf.capacity.plan import Plan, capacity_rows, cost, fewest_replicas, plan_capacity, read_service
from perf.capacity.service import Service
from perf.capacity.simulation import Prediction, simulate
from serving.errors import CodetrError

RESULTS = Path(__file__).resolve().parents[3] / "perf" / "results"
SERVICE = Service(0.0, 0.1, 0.0, 1, 0.0, instances=(1, 1, 1))


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_REQUESTS", 2000)


def prediction(replicas: int, p99: float, use: float = 0.5) -> Prediction:
    return Prediction(replicas, 10.0, 1.0, 1.0, p99, use, 0.0)


@pytest.mark.parametrize("needed", [3, 4, 5, 6, 9, 17, 100])
def test_the_fewest_are_found_in_few_tries(needed: int) -> None:
    tried = []

    def predict(replicas: int) -> Prediction:
        tried.append(replicas)
        return prediction(replicas, 50.0 if replicas >= needed else 200.0)

    enough, less = fewest_replicas(10.0, 100.0, predict, 3)
    assert enough.replicas == needed
    assert (less.replicas if less else 2) == needed - 1
    assert len(tried) == len(set(tried)) <= 16
    assert min(tried) == 3


def test_a_limit_that_no_number_keeps_is_said() -> None:
    with pytest.raises(CodetrError, match=r"p99 within 100 ms: no number of servers keeps it .* 150 ms"):
        fewest_replicas(10.0, 100.0, lambda replicas: prediction(replicas, 150.0, 1 / replicas), 1)


def test_a_plan_keeps_its_limit_and_one_server_less_does_not() -> None:
    record = plan_capacity(SERVICE, {}, Plan((5.0, 50.0), 300.0, price=2.0), lambda found: None)
    for row in record["results"]:
        assert row["p99"] <= 300
        assert row["one_less_p99"] is None or row["one_less_p99"] > 300
        assert row["cost_hour"] == 2.0 * row["replicas"]
        assert row["p99"] == simulate(SERVICE, row["replicas"], row["rate"]).p99
    assert record["results"][1]["replicas"] > 5


def test_costs() -> None:
    found = Prediction(18, 1000.0, 1.0, 1.0, 1.0, 0.9, 1.0)
    assert cost(found, 3.0) == {"cost_hour": 54.0, "cost_million": pytest.approx(15.0)}
    assert cost(found, None) == {}


def test_a_table_names_costs_where_there_is_a_price() -> None:
    plans = [plan_capacity(SERVICE, {}, Plan((5.0,), 300.0, price), lambda found: None) for price in (None, 2.0)]
    without, priced = (capacity_rows(record)[0] for record in plans)
    assert priced[: len(without)] == without
    assert len(priced) == len(without) + 2


def test_records_of_both_benches_are_read() -> None:
    server, source = read_service(RESULTS / "server-h200" / "results.json")
    assert "H200" in source["machine"]["gpus"][0]
    assert server.highest_rate == pytest.approx(58, abs=1)  # what its sweep answered at 16 requests at a time: 58.7
    cluster, _ = read_service(RESULTS / "cluster" / "results.json")
    assert cluster.max_batch == 4


def test_another_record_is_refused() -> None:
    with pytest.raises(CodetrError, match=r"holds no results of `codetr bench server` or `codetr bench cluster`"):
        read_service(RESULTS / "load" / "results.json")
    with pytest.raises(CodetrError, match="cannot read the results"):
        read_service(RESULTS / "nothing.json")
