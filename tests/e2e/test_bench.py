"""Load test and sweep against a real server: that they work, never how fast it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc

from codetr import cli
from perf.cost.cases import Case, CostPlan
from perf.cost.repository import write_cost_repository
from perf.cost.run import measure_case
from perf.cost.service import measure_floor
from perf.server.perf_analyzer import find
from serving.contract import ENSEMBLE
from serving.launch import TritonServer
from tests.markers import needs_perf_analyzer

pytestmark = pytest.mark.server

PROGRAM = [sys.executable, "-c", "from codetr.cli import main; main()", "bench"]


@dataclass(frozen=True)
class Ended:
    """How a command in this process ended."""

    status: int
    stderr: str


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs `codetr bench` as its program does, in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["codetr", "bench", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return Ended(int(end.code or 0), capsys.readouterr().err)
        return Ended(0, capsys.readouterr().err)

    return run


def answered(server: TritonServer) -> dict[str, int]:
    """Return how many images each ensemble has answered."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        return {each.name: each.inference_count for each in client.get_inference_statistics().model_stats}


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("protocol", "arrival"),
    [
        pytest.param("grpc", "closed", id="users over gRPC", marks=pytest.mark.slow),
        pytest.param("http", "constant-rate", id="arrivals, HTTP"),
    ],
)
def test_a_load_test_gets_answers_and_refusals_of_the_ensemble_it_names(
    both: TritonServer, tmp_path: Path, protocol: str, arrival: str, bench: Callable[..., Ended]
) -> None:
    before = answered(both)
    url = both.grpc_url if protocol == "grpc" else both.http_url
    options = ["--protocol", protocol, "--arrival", arrival, "--think", "0", "--bad-share", "0.3", "--seconds", "4"]
    done = bench("load", "--model", "small", "--url", url, "--output", str(tmp_path), *options)
    assert done.status == 0, done.stderr
    record = results(tmp_path)
    assert record["outcome"]["requests"] > 0
    assert record["outcome"]["failures"] == 0
    assert set(record["memory"]["processes"]) >= {"server", "small_preprocess 1", "small_detector 0"}
    assert record["memory"]["shared"]["end"] > 0
    assert (tmp_path / "locust_stats.csv").exists()
    after = answered(both)
    assert after["small"] > before["small"]
    assert after["codetr"] == before["codetr"]


@pytest.mark.slow  # the limits themselves are tested in process
def test_a_broken_limit_is_exit_status_1(server: TritonServer, tmp_path: Path, bench: Callable[..., Ended]) -> None:
    options = ["--think", "0", "--seconds", "2", "--max-p99-ms", "0.001"]
    done = bench("load", "--url", server.grpc_url, "--output", str(tmp_path), *options)
    assert done.status == 1
    assert "error: p99 of" in done.stderr
    assert "is above max_p99_ms 0.001" in done.stderr


@contextmanager
def load_test(server: TritonServer, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A load test of five minutes whose users are at work."""
    options = ["--url", server.grpc_url, "--output", str(folder), "--think", "0", "--seconds", "300"]
    # the pipe is for the process that locust runs in: both get the signal, as from a terminal
    with subprocess.Popen(
        [*PROGRAM, "load", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if b"All users spawned" in line:
                    break
            before = answered(server)[ENSEMBLE]
            while answered(server)[ENSEMBLE] < before + 20:
                assert process.poll() is None
                time.sleep(0.1)
            yield process
            process.communicate(timeout=600)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # locust too, so that nothing is left for the tests that follow
            raise


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda pid: os.killpg(pid, signal.SIGINT), id="Ctrl-C"),
        pytest.param(
            lambda pid: os.kill(pid, signal.SIGTERM), id="SIGTERM to the command alone", marks=pytest.mark.slow
        ),
    ],
)
def test_an_interrupted_load_test_keeps_what_it_measured(
    server: TritonServer, tmp_path: Path, end: Callable[[int], None]
) -> None:
    with load_test(server, tmp_path) as process:
        end(process.pid)
    assert process.returncode == 0
    assert results(tmp_path)["outcome"]["requests"] > 0


@pytest.mark.slow
def test_no_locust_outlives_a_killed_load_test(server: TritonServer, tmp_path: Path) -> None:
    with load_test(server, tmp_path) as process:
        (locust,) = psutil.Process(process.pid).children()
        process.kill()
        _, alive = psutil.wait_procs([locust], timeout=60)
        assert not alive


@needs_perf_analyzer
def test_a_sweep_of_an_ensemble_and_its_steps(both: TritonServer, tmp_path: Path, bench: Callable[..., Ended]) -> None:
    before = answered(both)
    options = ["--concurrency", "1", "--rates", "none", "--repeats", "1", "--window", "0.5", "--pictures", "64x48"]
    addresses = ["--url", both.grpc_url, "--metrics-url", both.metrics_url]
    done = bench("server", "--model", "small", *addresses, "--output", str(tmp_path), *options)
    assert done.status == 0, done.stderr
    record = results(tmp_path)
    assert record["ensemble"] == "small"
    assert [(each["model"], each["error"]) for each in record["results"]] == [
        ("codetr", ""), ("codetr_preprocess", ""), ("codetr_detector", ""), ("codetr_postprocess", ""),
    ]  # fmt: skip
    assert set(record["results"][0]["steps"]) == {each["model"] for each in record["results"]}
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "engine `small`" in (tmp_path / "report.md").read_text()
    after = answered(both)
    assert after["small"] > before["small"]
    assert after["codetr"] == before["codetr"]


@needs_perf_analyzer
@pytest.mark.slow
def test_the_server_adds_to_a_detector_of_fixed_cost(tmp_path: Path) -> None:
    case = Case(96, 64, picture=(64, 48), protocol="http", preprocess=1)
    plan = CostPlan(cost_ms=20, concurrency=2, repeats=1, window=0.5)
    results = list(measure_case(find(), plan, tmp_path, case))
    assert [(result.level.value, result.error) for result in results] == [(1, ""), (2, "")]
    assert all(result.steps["codetr_detector"].compute_infer >= 20 for result in results)


@needs_perf_analyzer
@pytest.mark.slow
def test_empty_steps_answer_with_the_tensors_of_the_real_ones(tmp_path: Path) -> None:
    repository = write_cost_repository(tmp_path / "repository", Case(96, 64, guests=1), 1)
    waits = {"codetr_preprocess": 2.0, "codetr_detector": 20.0}
    found = measure_floor(repository, "codetr", (64, 48), find(), 0.5, tmp_path / "floor", waits)
    assert found.error == ""
    assert found.steps["codetr_preprocess"].requests > 0
    assert found.steps["codetr_detector"].compute_infer >= 20
    assert found.steps["codetr_postprocess"].failures == 0
