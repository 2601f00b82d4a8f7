"""The record that is kept: what the pages say of it, and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perf.cluster.report import cluster_sections, fault_rows, load_rows, write_cluster_report

RESULTS = Path(__file__).resolve().parents[3] / "perf" / "results" / "cluster"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((RESULTS / "results.json").read_text(encoding="utf-8"))


def test_no_request_failed(record: dict[str, Any]) -> None:
    assert record["complete"]
    assert {each["protocol"] for each in record["faults"]} == {"grpc", "http"}
    for each in (*record["faults"], *record["clients"]):
        assert each["failed"] == 0, each["fault"]
    killed = [each for each in record["faults"] if each["fault"] == "killed"]
    assert all(each["repeated"] > 0 for each in killed)


def test_requests_spread(record: dict[str, Any]) -> None:
    for load in record["loads"]:
        counts = load["by_server"].values()
        assert len(counts) == 3
        assert min(counts) > 0.8 * max(counts)


def test_a_slow_server_is_avoided_and_one_beyond_a_try_ejected(record: dict[str, Any]) -> None:
    slow = [each for each in record["faults"] if each["fault"].startswith("slower")]
    assert len(slow) == 4
    for each in slow:
        victim = each["by_server"]["127.0.0.3"]
        others = min(each["by_server"]["127.0.0.2"], each["by_server"]["127.0.0.4"])
        if each["fault"] == "slower than a try may take":
            assert victim < others / 10
            assert each["ejections"] >= 1
        else:
            assert victim < 0.8 * others


def test_predictions_hold_at_loads_that_were_not_fitted(record: dict[str, Any]) -> None:
    assert len(record["loads"]) == 3
    for load in record["loads"]:
        assert load["predicted"]["rate"] == pytest.approx(load["rate"], rel=0.2)
        assert load["predicted"]["p99"] == pytest.approx(load["p99"], rel=0.2)


def test_the_autoscaler_was_told_the_right_number(record: dict[str, Any]) -> None:
    (found,) = record["autoscaler"]
    assert found["desired"] == found["expected_desired"] == 6
    assert found["prometheus_ratio"] == pytest.approx(found["expected_ratio"], rel=0.1)
    assert found["rate"] == pytest.approx(found["expected_rate"], rel=0.2)


def test_the_report_has_a_row_for_each_result(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.cluster.report._CURVE", (0.1, 0.5))  # each point of the line is a simulation
    sections = {each.title: each for each in cluster_sections(record)}
    assert len(sections["Faults behind Envoy"].rows) == len(record["faults"])
    assert len(sections["Faults without Envoy"].rows) == len(record["clients"])
    assert len(sections["Loads and what was predicted"].rows) == 3
    write_cluster_report(record, tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {path.name for path in RESULTS.glob("*.svg")}


def test_what_nothing_answered_has_no_time(record: dict[str, Any]) -> None:
    nothing = {"p50": None, "p99": None}
    (row,) = fault_rows([{**record["faults"][0], **nothing}])
    assert row[-3:-1] == ["-", "-"]
    (row,) = load_rows({"loads": [{**record["loads"][0], **nothing}]})
    assert row.count("-") == 3


def test_a_run_cut_short_has_a_report(record: dict[str, Any]) -> None:
    parts = ("loads", "faults", "clients", "autoscaler")
    short = {name: value for name, value in record.items() if name not in parts} | {"complete": False}
    (method,) = cluster_sections(short)
    assert "cut short" in method.text
