"""Sweeps over a running server: the ensemble and each step alone, under concurrency and under Poisson arrivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from codetr_client.outputs import make_folder
from perf.connection import Connection
from perf.machine import header
from perf.records import write_record
from perf.server import perf_analyzer
from perf.server.metrics import GaugeSampler, StepTime, step_times
from perf.server.perf_analyzer import WINDOWS, Level, Reading
from perf.server.requests import write_inputs
from perf.statistics import STABLE_P99, STABLE_THROUGHPUT, windows_agree
from serving import contract
from serving.errors import CodetrError

ALL_MODELS = tuple(contract.contract(1, 1))
# Fewer requests in a window give no p99 worth the name: slow services get longer windows, up to this many seconds.
MIN_REQUESTS = 20
MAX_WINDOW = 30.0
# Rates to try where none are given, as shares of the highest throughput that the concurrency sweep reached.
AUTO_RATES = (0.5, 0.7, 0.9)
# The search for the highest rate ends when its bounds are this close (share of the upper one).
SEARCH_TOLERANCE = 0.05
# More of the requests than this leaving late means that the load offered was not the load asked for.
MAX_DELAYED = 0.05


@dataclass(frozen=True)
class Plan:
    """What to measure.

    models: names in the contract; concurrencies and rates (images a second; None: AUTO_RATES) to sweep.
    p99_limit: milliseconds, for the search for the highest rate of the ensemble; None leaves it out.
    repeats: passes over everything; their spread is the error of the figures. window: seconds, WINDOWS a level.
    """

    models: tuple[str, ...] = ALL_MODELS
    concurrencies: tuple[int, ...] = (1, 2, 4, 8)
    rates: tuple[float, ...] | None = None
    p99_limit: float | None = None
    repeats: int = 3
    window: float = 2.0
    batch: int = 1
    picture_sizes: tuple[tuple[int, int], ...] = ((1920, 1080), (640, 480), (1080, 1920), (1280, 720))


@dataclass(frozen=True)
class Result:
    """One measured level: what the client saw, what the server says of each step, and what the machine did.

    `error` is why there is no reading; `search` marks levels of the search for the highest rate.
    """

    level: Level
    repeat: int
    reading: Reading | None
    steps: Mapping[str, StepTime] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    search: bool = False

    @property
    def stable(self) -> bool:
        """Whether the windows agree within STABLE_THROUGHPUT and STABLE_P99, and the load was the one asked for."""
        if self.reading is None or self.reading.delayed > MAX_DELAYED:
            return False
        return windows_agree(self.reading.windows)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        reading = asdict(self.reading) if self.reading else None
        steps = {model: asdict(step) for model, step in self.steps.items()}
        return {
            **asdict(self.level), "repeat": self.repeat, "search": self.search, "reading": reading,
            "stable": self.stable, "steps": steps, "gauges": dict(self.gauges), "error": self.error,
        }  # fmt: skip


class Bench(Protocol):
    """What measures one level: `ServerBench`, or recorded data in tests."""

    def measure(self, level: Level, repeat: int) -> Result:
        """Return the level's result; a level that fails is a result with an error."""


class ServerBench:
    """Measures levels on a running server with perf_analyzer; inputs and CSV files stay in `folder`."""

    def __init__(
        self,
        installation: perf_analyzer.Installation,
        connection: Connection,
        metrics_url: str,
        configs: Mapping[str, Any],
        picture_sizes: Sequence[tuple[int, int]],
        folder: Path,
    ) -> None:
        self._installation = installation
        self._connection = connection
        self._metrics_url = metrics_url
        self._csv = folder / "csv"
        make_folder(self._csv)
        inputs = folder / "inputs"
        make_folder(inputs)
        self._inputs = {model: write_inputs(model, configs, picture_sizes, inputs) for model in configs}

    def measure(self, level: Level, repeat: int) -> Result:
        """Return the level's result; a level that fails is a result with an error.

        Raises a `codetr_client.errors.ServiceError` if the server is gone, since every further level would fail too.
        """
        csv_file = self._csv / f"{level.model}-{level.mode}-{level.value:g}-{repeat}.csv"
        csv_file.unlink(missing_ok=True)
        before = self._connection.statistics()
        with GaugeSampler(self._metrics_url) as sampler:
            try:
                reading, error = self._read(level, csv_file), ""
            except CodetrError as failure:
                reading, error = None, str(failure)
        steps = step_times(before, self._connection.statistics())
        return Result(level, repeat, reading, steps, sampler.means(), error)

    def _read(self, level: Level, csv_file: Path) -> Reading:
        if level.mode != "concurrency":
            return self._analyze(widened(level, level.value), csv_file)
        try:
            reading = self._analyze(level, csv_file)
        except perf_analyzer.NothingFinishedError:
            return self._analyze(replace(level, window=MAX_WINDOW), csv_file)
        longer = widened(level, reading.throughput / level.batch)
        return reading if longer == level else self._analyze(longer, csv_file)

    def _analyze(self, level: Level, csv_file: Path) -> Reading:
        connection = self._connection
        served = replace(level, model=connection.served_name(level.model))
        return perf_analyzer.measure(
            self._installation, served, connection.address, connection.protocol, self._inputs[level.model], csv_file
        )


def widened(level: Level, rate: float) -> Level:
    """Return the level with windows long enough for MIN_REQUESTS at `rate` requests a second."""
    needed = min(MIN_REQUESTS / rate, MAX_WINDOW) if rate else MAX_WINDOW
    return level if needed <= level.window else replace(level, window=needed)


def sweep(bench: Bench, plan: Plan) -> Iterator[Result]:
    """Yield every level of the plan as it is measured: concurrency, then rates, pass by pass; last, the search."""
    best: dict[str, float] = {}
    rates: list[Level] = []
    for repeat in range(plan.repeats):
        for level in concurrency_levels(plan):
            result = bench.measure(level, repeat)
            if result.reading:
                best[level.model] = max(best.get(level.model, 0.0), result.reading.throughput)
            yield result
        # chosen once: later passes must repeat the same levels
        rates = rates or rate_levels(plan, best)
        for level in rates:
            yield bench.measure(level, repeat)
    if plan.p99_limit is not None and best.get(contract.ENSEMBLE):
        yield from search_highest_rate(bench, plan, best[contract.ENSEMBLE])


def check_batch(batch: int, configs: Mapping[str, Any]) -> None:
    """Check that each model, by its Triton configuration, takes requests of so many images.

    perf_analyzer would only see that none of them is answered. Raises CodetrError.
    """
    for model, config in configs.items():
        most = int(config.get("max_batch_size", batch))
        if batch > most:
            raise CodetrError(f"batch {batch}: {model} takes at most {most} images in a request")


def concurrency_levels(plan: Plan) -> list[Level]:
    """Return the levels of one pass of the concurrency sweep."""
    return [
        Level(model, "concurrency", value, plan.batch, plan.window)
        for model in plan.models
        for value in plan.concurrencies
    ]


def rate_levels(plan: Plan, best: Mapping[str, float]) -> list[Level]:
    """Return the levels of one pass of the rate sweep; only the ensemble has users who arrive on their own."""
    if contract.ENSEMBLE not in plan.models:
        return []
    top = best.get(contract.ENSEMBLE, 0.0)
    rates = plan.rates if plan.rates is not None else tuple(_three_digits(top * share) for share in AUTO_RATES if top)
    # perf_analyzer counts requests, not images
    return [Level(contract.ENSEMBLE, "rate", rate / plan.batch, plan.batch, plan.window) for rate in rates]


def search_highest_rate(bench: Bench, plan: Plan, throughput: float) -> Iterator[Result]:
    """Yield the levels of a bisection for the highest Poisson rate whose p99 stays within the plan's limit.

    A rate is good if its p99 is within the limit and its requests left on time. Starts between 0 and `throughput`
    (images a second, the concurrency sweep's highest) and ends at SEARCH_TOLERANCE.
    """
    low, high = 0.0, throughput / plan.batch
    while high - low > SEARCH_TOLERANCE * high and high > 0.1:
        rate = _three_digits((low + high) / 2)
        level = Level(contract.ENSEMBLE, "rate", rate, plan.batch, plan.window)
        # numbered after the sweep's passes, whose CSV files it would else replace
        result = replace(bench.measure(level, plan.repeats), search=True)
        yield result
        low, high = (rate, high) if within_limit(result, plan.p99_limit) else (low, rate)


def within_limit(result: Result, p99_limit: float | None) -> bool:
    """Tell whether a level kept its p99 (milliseconds) within the limit and offered the load asked for."""
    reading = result.reading
    return bool(reading and p99_limit and reading.p99 <= p99_limit and reading.delayed <= MAX_DELAYED)


def highest_rate(results: Sequence[Result], p99_limit: float) -> float:
    """Return the highest rate (requests a second) that the search found good; 0 if it found none.

    No more than what was answered counts: a short schedule of random arrivals can hold fewer than were asked for.
    """
    good = [r for r in results if r.search and within_limit(r, p99_limit)]
    return max((min(r.level.value, r.reading.throughput / r.level.batch) for r in good if r.reading), default=0.0)


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def run(
    bench: Bench,
    plan: Plan,
    output: Path,
    description: Mapping[str, Any],
    on_result: Callable[[Result], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure the plan and return the content of `output`/results.json, which is rewritten after every level.

    Ctrl-C ends the measuring and keeps what was measured; the record then says that it is not complete.
    """
    results: list[Result] = []
    record = to_record(plan, results, description, complete=False)
    try:
        for result in sweep(bench, plan):
            results.append(result)
            record = to_record(plan, results, description, complete=False)
            write_record(record, output)
            on_result(result)
        record = to_record(plan, results, description, complete=True)
    except KeyboardInterrupt:
        print("interrupted: keeping what was measured")
    if not any(result.reading for result in results):
        raise CodetrError(next((result.error for result in results), "nothing was measured"))
    write_record(record, output)
    return record


def to_record(plan: Plan, results: Sequence[Result], description: Mapping[str, Any], complete: bool) -> dict[str, Any]:
    """Return the content of results.json; JSON-ready."""
    limit = plan.p99_limit
    return {
        **description,
        "complete": complete,
        "plan": asdict(plan),
        "criteria": {
            "windows": WINDOWS, "window_seconds": plan.window, "stable_throughput": STABLE_THROUGHPUT,
            "stable_p99": STABLE_P99, "max_delayed": MAX_DELAYED, "search_tolerance": SEARCH_TOLERANCE,
            "min_requests": MIN_REQUESTS,
        },
        "highest_rate": highest_rate(results, limit) if limit and any(r.search for r in results) else None,
        "results": [result.to_json() for result in results],
    }  # fmt: skip


def describe(connection: Connection, configs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says besides its figures: machine, server, and each model's batching and instances."""
    models = {
        name: {
            "max_batch_size": config.get("max_batch_size", 0),
            "dynamic_batching": config.get("dynamic_batching"),
            "instance_group": config.get("instance_group", []),
            "backend": config.get("backend") or config.get("platform"),
        }
        for name, config in configs.items()
    }
    return {
        **header("server"), "url": connection.address, "protocol": connection.protocol,
        "ensemble": connection.ensemble, "models": models,
    }  # fmt: skip
