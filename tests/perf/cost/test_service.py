"""A server around a real engine: what the figures of a run say about the goals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import perf.cost.service as service
import serving.contract as contract
from builder.pipeline.export import InputSpec
from perf.cost.cases import Case
from perf.cost.repository import write_cost_repository
from perf.server.perf_analyzer import Installation
from serving.errors import CodetrError
from tests.perf.records import DESCRIPTION, STEP, reading, result
from tests.smallest import SMALLEST

STEPS = {"codetr_detector": replace(STEP, batch=3.6)}


def levels() -> list[Any]:
    return [
        result(value=1, reading=reading(60.0, p50=17.0), steps={"codetr_detector": replace(STEP, batch=0.99)}),
        result(value=8, reading=reading(250.0), steps=STEPS),
        result(value=16, reading=reading(260.0, p50=50.0, p99=70.0), steps=STEPS),
        result(mode="rate", value=182, reading=reading(180.0, p50=20.0, p99=36.0), steps=STEPS),
        result(mode="steady", value=182, reading=reading(181.0, p50=20.0, p99=25.0), steps=STEPS),
    ]


def record_of(results: list[Any]) -> dict[str, Any]:
    floor = {
        "hot": {"waits_ms": {}, **result(reading=reading(p50=0.75)).to_json()},
        "rested": {
            "waits_ms": {"codetr_detector": 8.0, "codetr_preprocess": 2.0},
            **result(reading=reading(p50=11.25)).to_json(),
        },
    }
    record = {
        **DESCRIPTION, "engine": "torch", "precision": "float16", "width": 1152, "height": 768,
        "max_batch_size": 4, "pixels_ms": {"bare": 3.5, "step": 3.9}, "engine_ms": {"1": 12.0, "4": 15.0},
        "levels": [each.to_json() for each in results], "floor": floor,
    }  # fmt: skip
    return {**record, "verdict": service.verdict(record)}


def test_the_goals_are_judged_by_the_engine_alone_and_bare_decoding() -> None:
    record = record_of(levels())
    assert record["verdict"] == {
        "added_ms": 5.0,
        "added_to_bare_ms": 1.5,
        "floor_hot_ms": 0.75,
        "floor_rested_ms": 1.25,
        "mean_batch": 3.6,
        "share_of_engine_rate": pytest.approx(250 / (4 / 15e-3)),
        "p99_in_p50s": 1.8,
        "p99_in_p50s_unavoidable": pytest.approx(1.81, abs=0.05),
        "p99_in_p50s_steady": 1.25,
        "p99_in_p50s_at_sixteen": 1.4,
    }
    ideal = record["verdict"]["p99_in_p50s_unavoidable"]
    assert service.to_lines(record)[1:] == [
        "three empty steps: 0.75 ms; 1.25 ms where each rests as long as the step it stands for computes",
        "one request adds 5.00 ms to the engine, 1.50 ms more than bare decoding, of which three empty steps take "
        "1.25; goal 2",
        "eight at a time: 94% of the engine's own rate at their mean batch of 3.6; goal 95%",
        f"at 70% load p99 is 1.80 times p50; goal 2; it is {ideal:.2f} where nothing but bare decoding and the engine "
        "takes time; 1.25 of requests that come evenly",
        "sixteen at a time: p99 is 1.40 times p50",
    ]
    page = service.to_markdown(record)
    assert "| 182 a second | 180.00 | 20.00 | 18.00 | 36.00 |  | 1.00 + 0.50 + 8.00 + 0.50 |  |" in page
    assert "| 182 a second, evenly | 181.00 |" in page
    assert "| 1 at a time, empty steps | 100.00 | 0.75 |" in page
    assert "| 1 at a time, empty steps that rest | 100.00 | 11.25 |" in page
    assert "* one request adds 5.00 ms" in page


def test_results_of_before_empty_steps_were_measured_can_be_shown() -> None:
    record = record_of(levels())
    del record["floor"]
    record["verdict"] = {key: value for key, value in record["verdict"].items() if "floor" not in key}
    page = service.to_markdown(record)
    assert "empty" not in page
    assert "* one request adds 5.00 ms to the engine, 1.50 ms more than bare decoding; goal 2\n" in page


def test_requests_that_come_at_random_wait_whatever_the_server() -> None:
    """A queue of one engine, 10 ms each, 70 % in use: half are answered within 16.4 ms, of 100 one takes 70 (M/D/1)."""
    record = {"engine_ms": {"1": 10.0}, "pixels_ms": {"bare": 0.0}, "max_batch_size": 4}
    assert service.unavoidable(record, 70.0) == pytest.approx(4.3, rel=0.1)
    assert service.unavoidable({**record, "pixels_ms": {"bare": 20.0}}, 70.0) == pytest.approx(2.5, rel=0.1)
    assert service.unavoidable(record, 1.0) == pytest.approx(1.0, abs=0.1)


def test_what_was_not_measured_is_not_judged() -> None:
    failed = [replace(each, reading=None, error="no answer") for each in levels()]
    record = record_of(failed)
    record["floor"] = {"hot": {"waits_ms": {}, **failed[0].to_json()}}
    record["verdict"] = service.verdict(record)
    assert {value for key, value in record["verdict"].items() if key != "mean_batch"} == {None}
    assert len(service.to_lines(record)) == 1
    assert "| 16 at a time | no answer |  |  |  |" in service.to_markdown(record)


def test_a_run_times_the_engine_at_the_batches_that_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = {"engine": "torch", "precision": "float16", "height": 768, "width": 1152, "max_batch_size": 8}
    asked: list[Any] = []

    def measure_engine(repository: Path, name: str, batches: list[int], seconds: float) -> dict[str, float]:
        asked.append((repository, name, batches))
        return {str(batch): 10.0 + batch for batch in batches}

    monkeypatch.setattr(service, "read_manifest", lambda repository, name: manifest)
    monkeypatch.setattr(service, "measure_pixels", lambda manifest, seconds: {"bare": 3.0, "step": 4.0})
    monkeypatch.setattr(service, "measure_levels", lambda *arguments: iter(levels()))
    monkeypatch.setattr(service, "measure_floor", lambda *arguments: result(reading=reading(p50=0.5)))
    monkeypatch.setattr(service, "measure_engine", measure_engine)
    heard: list[Any] = []
    record = service.measure_service(Path("r"), "mine", Installation(Path("pa"), ""), 1, tmp_path, heard.append)
    assert asked == [(Path("r"), "mine", [1, 4])]
    assert heard == levels()
    assert record["verdict"]["added_ms"] == 6.0
    assert record["verdict"]["floor_hot_ms"] == 0.5
    assert json.loads((tmp_path / "service.json").read_text())["complete"]
    assert (tmp_path / "service.md").read_text() == service.to_markdown(record)


def test_levels_before_an_interrupt_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = {"engine": "torch", "precision": "float16", "height": 768, "width": 1152, "max_batch_size": 8}
    monkeypatch.setattr(service, "read_manifest", lambda repository, name: manifest)
    monkeypatch.setattr(service, "measure_pixels", lambda manifest, seconds: {"bare": 3.0, "step": 4.0})
    monkeypatch.setattr(service, "measure_levels", lambda *arguments: iter(levels()))

    def interrupt(result: Any) -> None:
        if result.level.value == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        service.measure_service(Path("r"), "mine", Installation(Path("pa"), ""), 1, tmp_path, interrupt)
    record = json.loads((tmp_path / "service.json").read_text())
    assert ([each["value"] for each in record["levels"]], record["complete"]) == ([1, 8], False)


def test_empty_steps_rest_as_long_as_the_real_ones_compute() -> None:
    steps = {name: replace(STEP, compute_infer=8.0 + index) for index, name in enumerate(contract.STEPS)}
    alone, eight = result(value=1, steps=steps), result(value=8, steps=dict.fromkeys(steps, STEP))
    waits = {"codetr_preprocess": 8.0, "codetr_detector": 9.0, "codetr_postprocess": 10.0}
    assert service.floor_waits([eight.to_json(), alone.to_json()]) == {"hot": {}, "rested": waits}
    assert service.floor_waits([result(value=1, steps={}).to_json()]) == {"hot": {}}


def test_empty_steps_that_do_not_start_cost_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def running_server(repository: Path) -> Any:
        raise CodetrError("no room in shared memory")

    monkeypatch.setattr(service, "running_server", running_server)
    repository = write_cost_repository(tmp_path / "repository", Case(96, 64), 1)
    found = service.measure_floor(repository, "codetr", (96, 64), Installation(Path("pa"), ""), 1, tmp_path, {})
    assert (found.reading, found.error) == (None, "no room in shared memory")


def test_decoding_is_timed_hot_and_rested(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("perf.cost.service.time.sleep", rests.append)
    monkeypatch.setattr(service, "spec_of", lambda manifest: InputSpec(96, 144, 1))
    monkeypatch.setattr(service, "variant_of", lambda manifest: SMALLEST)
    found = service.measure_pixels({}, 0.0)
    assert found.keys() == {"bare", "step", "rested"}
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert (rests.count(0.0), rests.count(service.REST_SECONDS)) == (20, 10)
    record = {**record_of(levels()), "pixels_ms": {"bare": 3.5, "step": 3.9, "rested": 4.7}}
    assert service.to_lines(record)[0] == (
        "engine alone 12.00 ms; bare decoding and resizing 3.50 ms, with what the step checks and fills 3.90 ms; "
        "bare after 10 ms of rest 4.70 ms"
    )
