"""NVIDIA's perf_analyzer: found or set up, started with the right arguments, its answers read.

One process measures one load level, so that a level that fails, or Ctrl-C, costs no other level. perf_analyzer's own
stability rule drops the figures of a level that stays unstable; here it always measures WINDOWS windows, and
`perf.server.run` judges their spread itself.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.cache import cache_folder
from codetr_client.outputs import make_folder
from serving.binary import TRITON_FOLDER
from serving.child import bound_to_us
from serving.errors import CodetrError
from serving.loopback import by_number, environment_to_ask
from serving.runtime import statistics_headers

# The last wheel that carries perf_analyzer for glibc before 2.38.
WHEEL = "tritonclient==2.51.0"
FOLDER_NAME = "perf_analyzer"
# What the binary needs and the wheel lacks; the nvidia-pytriton wheel has both under hashed names.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}
# perf_analyzer needs three windows to call a level stable; a tolerance this high (per cent) always lets it, even where
# one window has a stall of half a second and the next has none.
WINDOWS = 3
ANY_SPREAD = 1_000_000_000
# What it says of windows without a request: of all of them, and of one.
NOTHING_FINISHED = ("Please try to increase the --measurement-interval", "No valid requests recorded within time")
INSTALL_HINT = "`codetr bench install-perf-analyzer` sets it up"

Mode = Literal["concurrency", "rate", "steady"]


class NothingFinishedError(CodetrError):
    """A level whose windows were too short for a single request."""


@dataclass(frozen=True)
class Installation:
    """A perf_analyzer that can be started; `library_path` is for LD_LIBRARY_PATH, empty if it needs none."""

    binary: Path
    library_path: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment to start it in."""
        return {**os.environ, "LD_LIBRARY_PATH": self.library_path} if self.library_path else dict(os.environ)


@dataclass(frozen=True)
class Level:
    """One thing to measure: a model under one load.

    `value` is the number of concurrent requests, or arrivals a second: Poisson in mode rate, evenly spaced in mode
    steady. `window` is in seconds.
    """

    model: str
    mode: Mode
    value: float
    batch: int
    window: float


@dataclass(frozen=True)
class Reading:
    """What perf_analyzer saw of one level; latencies in milliseconds."""

    throughput: float  # images a second
    p50: float
    p90: float
    p95: float
    p99: float
    windows: tuple[tuple[float, float], ...]  # (images a second, p99 in milliseconds) of each window
    delayed: float  # share of the requests that left later than their schedule; 0 for concurrency


def find() -> Installation:
    """Return the perf_analyzer on PATH (the container's), else the one set up by `make` or in the user's cache.

    Raises CodetrError if there is none.
    """
    if on_path := shutil.which("perf_analyzer"):
        return Installation(Path(on_path), "")
    places = [parent / FOLDER_NAME for parent in (TRITON_FOLDER, cache_folder())]
    for folder in places:
        if (folder / "bin" / "perf_analyzer").exists():
            return _installation(folder)
    raise CodetrError(f"perf_analyzer is neither on PATH nor in {' or '.join(map(str, places))}; {INSTALL_HINT}")


def install(folder: Path | None = None) -> Installation:
    """Set up perf_analyzer from wheels: the binary from tritonclient, its libraries from nvidia-pytriton.

    Args:
        folder: where to; in the user's cache if not given. The wheel of nvidia-pytriton goes beside it, if it is not
            there.

    Raises:
        CodetrError: the wheel has no binary for this machine, the folder holds something else, or pip fails.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise CodetrError("perf_analyzer's wheel is for x86-64 Linux; elsewhere use the one in Triton's SDK container")
    folder = folder or cache_folder() / FOLDER_NAME
    pytriton = folder.parent / "pytriton"
    for place, sign in ((folder, "bin/perf_analyzer"), (pytriton, "nvidia_pytriton.libs")):
        make_folder(place)
        # pip replaces every folder that a wheel has too: bin, for example
        if any(place.iterdir()) and not (place / sign).exists():
            raise CodetrError(f"{place} holds something else than an earlier set-up; name another folder")
    _pip_install(WHEEL, folder)
    if not list(pytriton.glob("nvidia_pytriton.libs/*")):
        _pip_install("nvidia-pytriton==0.7.0", pytriton)
    (folder / "lib").mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        found = sorted(pytriton.glob(f"nvidia_pytriton.libs/{pattern}"))
        if not found:
            raise CodetrError(
                f"no {pattern} in {pytriton}/nvidia_pytriton.libs: expected the nvidia-pytriton wheel there"
            )
        link = folder / "lib" / name
        link.unlink(missing_ok=True)
        link.symlink_to(found[0].resolve())
    (folder / "bin" / "perf_analyzer").chmod(0o755)
    installation = _installation(folder)
    _check_starts(installation)
    return installation


def _installation(folder: Path) -> Installation:
    return Installation((folder / "bin" / "perf_analyzer").resolve(), str((folder / "lib").resolve()))


def _pip_install(requirement: str, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(target)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CodetrError(f"pip could not install {requirement}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def _check_starts(installation: Installation) -> None:
    command = [str(installation.binary), "--version"]
    done = subprocess.run(command, env=installation.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CodetrError(f"perf_analyzer does not start: {(done.stdout + done.stderr).strip()}")


def arguments(level: Level, url: str, protocol: str, inputs: Path, csv_file: Path) -> list[str]:
    """Return perf_analyzer's arguments for one level; `inputs` is its JSON of requests."""
    load = f"{level.value:g}:{level.value:g}:1"
    if level.mode == "concurrency":
        traffic = ["--concurrency-range", load]
    else:
        # without --async at most --max-threads requests are in flight, which would hide a queue
        distribution = "poisson" if level.mode == "rate" else "constant"
        traffic = ["--request-rate-range", load, "--request-distribution", distribution, "--async"]
    return [
        "-m", level.model, "-u", url, "-i", protocol, "-b", str(level.batch), "--input-data", str(inputs), *traffic,
        "--percentile", "99", "--measurement-interval", f"{level.window * 1000:.0f}",
        "--stability-percentage", str(ANY_SPREAD), "--max-trials", str(WINDOWS), "-v", "-f", str(csv_file),
        "--verbose-csv",
    ]  # fmt: skip


def measure(installation: Installation, level: Level, url: str, protocol: str, inputs: Path, csv_file: Path) -> Reading:
    """Run one level, keep its CSV, and return what was read.

    Raises CodetrError with perf_analyzer's own words if it fails or takes far longer than its windows, and
    NothingFinishedError. At Ctrl-C the process is ended before the exception goes on.
    """
    # it asks for the statistics too
    headers = [word for header in statistics_headers(url, protocol).items() for word in ("-H", ":".join(header))]
    command = [str(installation.binary), *arguments(level, by_number(url), protocol, inputs, csv_file), *headers]
    # a session of its own: the terminal's Ctrl-C must reach it through us only
    process = subprocess.Popen(
        bound_to_us(command),
        env=environment_to_ask(url, installation.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=60 + 10 * WINDOWS * level.window)
    except subprocess.TimeoutExpired as error:
        raise CodetrError(f"perf_analyzer did not finish within {error.timeout:.0f} s") from error
    finally:
        _end(process)
    if any(words in output for words in NOTHING_FINISHED):
        raise NothingFinishedError(f"no request finished within a window of {level.window:g} s")
    if process.returncode or not csv_file.exists():
        raise CodetrError(f"perf_analyzer failed ({process.returncode}): {failure_reason(output)}")
    return read(csv_file.read_text(encoding="utf-8"), output)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout:
        process.stdout.close()


def failure_reason(output: str) -> str:
    """Return the line of perf_analyzer's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|fail|cannot|unable", line, re.IGNORECASE)]
    telling = [line for line in telling if "Unable to parse" not in line]
    return (telling or lines or ["it said nothing"])[0].removeprefix("error: ")


def read(csv_text: str, output: str) -> Reading:
    """Return the figures of the one level in a CSV report and its verbose output.

    Raises CodetrError if the report holds no level.
    """
    rows = list(csv.DictReader(csv_text.splitlines()))
    if not rows:
        raise CodetrError("perf_analyzer wrote an empty report")
    row = rows[0]
    p50, p90, p95, p99 = (float(row[f"p{percentile} latency"]) / 1e3 for percentile in (50, 90, 95, 99))
    delayed = re.search(r"([\d.]+)% of the requests were delayed", output)
    return Reading(
        throughput=float(row["Inferences/Second"]),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        windows=read_windows(output),
        delayed=float(delayed[1]) / 100 if delayed else 0.0,
    )


def read_windows(output: str) -> tuple[tuple[float, float], ...]:
    """Return (images a second, p99 in milliseconds) of every window that the verbose output lists."""
    pattern = r"Pass \[\d+\] throughput: ([\d.]+) infer/sec\. p99 latency: (\d+) usec"
    return tuple((float(rate), int(p99) / 1e3) for rate, p99 in re.findall(pattern, output))
