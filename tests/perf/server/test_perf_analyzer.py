from __future__ import annotations

import os
import platform
import stat
import subprocess
import time
from pathlib import Path

import pytest

from builder.cache import CACHE_VARIABLE
from perf.server import perf_analyzer
from perf.server.perf_analyzer import (
    Installation,
    Level,
    NothingFinishedError,
    arguments,
    failure_reason,
    find,
    install,
    measure,
    read,
)
from serving.errors import CodetrError

# What perf_analyzer 2.51.0 wrote at concurrency 2, and at a rate it could not keep up with.
CONCURRENCY_CSV = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,\
request/response,response wait
2,701.426,13,718,936,42,875,239,2,2525,4128,4785,5609,15,2798
"""
CONCURRENCY_OUTPUT = """\
Request concurrency: 2
  Pass [1] throughput: 828.739 infer/sec. p99 latency: 3420 usec
  Pass [2] throughput: 664.753 infer/sec. p99 latency: 5664 usec
  Pass [3] throughput: 611.198 infer/sec. p99 latency: 5991 usec
"""
RATE_OUTPUT = """\
  Pass [1] throughput: 1155.06 infer/sec. p99 latency: 6270 usec
    [WARNING] Perf Analyzer was not able to keep up with the desired request rate. 99.97% of the requests were delayed.
"""

LEVEL = Level("codetr", "concurrency", 2, batch=1, window=0.5)


def test_a_report_is_read_in_milliseconds_with_every_window() -> None:
    reading = read(CONCURRENCY_CSV, CONCURRENCY_OUTPUT)
    assert (reading.throughput, reading.p50, reading.p90, reading.p95, reading.p99) == (
        701.426, 2.525, 4.128, 4.785, 5.609,
    )  # fmt: skip
    assert reading.windows == ((828.739, 3.42), (664.753, 5.664), (611.198, 5.991))
    assert reading.delayed == 0


def test_delayed_requests_are_read() -> None:
    assert read(CONCURRENCY_CSV.replace("Concurrency", "Request Rate"), RATE_OUTPUT).delayed == pytest.approx(0.9997)


def test_a_report_without_levels_is_an_error() -> None:
    with pytest.raises(CodetrError, match="empty report"):
        read(CONCURRENCY_CSV.splitlines()[0], "")


def test_concurrency_arguments() -> None:
    command = arguments(LEVEL, "h:1", "grpc", Path("in.json"), Path("out.csv"))
    assert command[command.index("--concurrency-range") + 1] == "2:2:1"
    assert command[command.index("--measurement-interval") + 1] == "500"
    assert "--async" not in command
    assert "--request-rate-range" not in command


def test_rates_are_poisson_and_not_held_back_by_threads() -> None:
    command = arguments(Level("codetr", "rate", 12.5, 4, 2.0), "h:1", "http", Path("in.json"), Path("out.csv"))
    assert command[command.index("--request-rate-range") + 1] == "12.5:12.5:1"
    assert command[command.index("--request-distribution") + 1] == "poisson"
    assert "--async" in command
    assert command[command.index("-b") + 1] == "4"
    assert command[command.index("-i") + 1] == "http"


def test_arrivals_may_be_evenly_spaced() -> None:
    command = arguments(Level("codetr", "steady", 12.5, 1, 2.0), "h:1", "grpc", Path("in.json"), Path("out.csv"))
    assert command[command.index("--request-rate-range") + 1] == "12.5:12.5:1"
    assert command[command.index("--request-distribution") + 1] == "constant"
    assert "--async" in command


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        pytest.param(
            "WARNING: Unable to parse 'nv_gpu_utilization' metric.\nerror: failed to get model metadata: no model\n",
            "failed to get model metadata: no model",
            id="the error, not the warnings about GPUs",
        ),
        pytest.param("all well\n", "all well", id="no line looks like an error"),
        pytest.param("", "it said nothing", id="silence"),
    ],
)
def test_failure_reason(output: str, reason: str) -> None:
    assert failure_reason(output) == reason


def program(path: Path, script: str) -> Installation:
    """Return a stand-in for perf_analyzer; the CSV file is the script's $CSV, all arguments $ALL."""
    path.write_text(f'#!/bin/sh\nALL="$*"\nwhile [ "$1" != -f ]; do shift; done\nCSV=$2\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Installation(path, "")


def test_measure_keeps_the_csv(tmp_path: Path) -> None:
    (tmp_path / "ready.csv").write_text(CONCURRENCY_CSV)
    stand_in = program(tmp_path / "pa", f"cp {tmp_path}/ready.csv $CSV; printf '{CONCURRENCY_OUTPUT}'")
    reading = measure(stand_in, LEVEL, "h:1", "grpc", tmp_path / "in.json", tmp_path / "kept.csv")
    assert reading == read(CONCURRENCY_CSV, CONCURRENCY_OUTPUT)
    assert (tmp_path / "kept.csv").read_text() == CONCURRENCY_CSV


def test_no_name_server_is_asked_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ready.csv").write_text(CONCURRENCY_CSV)
    stand_in = program(tmp_path / "pa", f"cp {tmp_path}/ready.csv $CSV; echo $ALL >{tmp_path}/arguments")
    monkeypatch.setattr(perf_analyzer, "by_number", lambda address: {"localhost:81": "127.0.0.1:81"}[address])
    measure(stand_in, LEVEL, "localhost:81", "grpc", tmp_path / "in.json", tmp_path / "out.csv")
    assert "-u 127.0.0.1:81 " in (tmp_path / "arguments").read_text()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("echo 'error: no such model'; exit 99", id="exit status"),
        pytest.param("echo 'error: no such model'", id="no report"),
    ],
)
def test_measure_repeats_perf_analyzers_own_words(tmp_path: Path, script: str) -> None:
    stand_in = program(tmp_path / "pa", script)
    with pytest.raises(CodetrError, match=r"perf_analyzer failed \(\d+\): no such model"):
        measure(stand_in, LEVEL, "h:1", "grpc", tmp_path / "in.json", tmp_path / "out.csv")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            "error: Failed to obtain stable measurement. Please try to increase the --measurement-interval.",
            id="no window",
        ),
        pytest.param(
            "Pass [1] cb::Error: No valid requests recorded within time interval. Please use a larger time window.",
            id="one window",
        ),
    ],
)
def test_windows_too_short_for_a_request_are_an_error_of_their_own(tmp_path: Path, words: str) -> None:
    stand_in = program(tmp_path / "pa", f"echo '{words}'; exit 3")
    with pytest.raises(NothingFinishedError):
        measure(stand_in, LEVEL, "h:1", "grpc", tmp_path / "in.json", tmp_path / "out.csv")


def test_an_interrupted_measurement_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = program(tmp_path / "pa", f"echo $$ > {tmp_path}/pid; exec sleep 60")

    def interrupted(process, timeout):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(stand_in, LEVEL, "h:1", "grpc", tmp_path / "in.json", tmp_path / "out.csv")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_find_prefers_path_then_what_make_set_up_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(perf_analyzer, "TRITON_FOLDER", tmp_path / "made")
    with pytest.raises(CodetrError, match="`codetr bench install-perf-analyzer` sets it up"):
        find()
    for name in ("cache", "made"):
        folder = tmp_path / name / "perf_analyzer"
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "perf_analyzer").touch(mode=0o755)
        assert find().library_path == str(folder / "lib")
        assert find().environment["LD_LIBRARY_PATH"] == str(folder / "lib")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    assert find().library_path == "", "the container's needs nothing"


def test_install_links_the_libraries_under_the_names_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pip(requirement: str, target: Path) -> None:
        asked.append(requirement)
        if requirement.startswith("tritonclient"):
            (target / "bin").mkdir(parents=True)
            (target / "bin" / "perf_analyzer").write_text("#!/bin/sh\n")
        else:
            (target / "nvidia_pytriton.libs").mkdir(parents=True)
            for name in ("libb64-98cb6333.so.0d", "libcudart-09529672.so.12.6.77"):
                (target / "nvidia_pytriton.libs" / name).touch()

    monkeypatch.setattr(perf_analyzer, "_pip_install", pip)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    installation = install()
    assert installation.binary == tmp_path / "cache" / "perf_analyzer" / "bin" / "perf_analyzer"
    assert asked == ["tritonclient==2.51.0", "nvidia-pytriton==0.7.0"]
    install(tmp_path / "cache" / "again")
    assert asked[2:] == ["tritonclient==2.51.0"], "the libraries are beside it"
    links = {link.name: link.resolve().name for link in Path(installation.library_path).iterdir()}
    assert links == {"libb64.so.0d": "libb64-98cb6333.so.0d", "libcudart.so.12": "libcudart-09529672.so.12.6.77"}


@pytest.mark.parametrize("place", ["tools", "pytriton"])
def test_install_replaces_nothing_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """pip would: a `bin` of the wheel takes the place of the folder's own."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(perf_analyzer, "_pip_install", lambda *arguments: pytest.fail("something was replaced"))
    (tmp_path / place / "bin").mkdir(parents=True)
    with pytest.raises(CodetrError, match=f"{place} holds something else than an earlier set-up; name another folder"):
        install(tmp_path / "tools")


def test_install_refuses_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(CodetrError, match="SDK container"):
        install(tmp_path)
