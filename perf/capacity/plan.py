"""How many servers keep a limit, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perf import plots
from perf.capacity.service import Service, measured_service
from perf.capacity.simulation import Balancer, Prediction, simulate
from perf.machine import header, summary
from perf.report import Section, read_record, write_report
from serving.errors import CodetrError

# Servers that do so little wait for nobody: what they take is what a request takes.
_IDLE_USE = 0.02
COLUMNS = (
    "images/s", "servers", "of the most they can", "p50 ms", "p99 ms", "waiting to computing", "p99 with one less",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is asked: requests a second, the highest p99 in milliseconds, and what one server costs an hour.

    max_use: the highest share of what servers can answer at most that they are planned for.
    """

    rates: tuple[float, ...]
    p99_ms: float
    price: float | None = None
    balancer: Balancer = "least-request"
    max_use: float = 0.9


def read_service(path: Path) -> tuple[Service, dict[str, Any]]:
    """Return the server that `codetr bench server` or `codetr bench cluster` has measured, and how and where.

    Raises:
        CodetrError: the file is no such record, or does not hold what is needed.
    """
    record = read_record(path)
    levels = {"server": "results", "cluster": "fit"}.get(record.get("kind", ""))
    if levels not in record:
        raise CodetrError(f"{path} holds no results of `codetr bench server` or `codetr bench cluster`")
    source = {name: record[name] for name in ("command", "time", "machine")}
    return measured_service(record[levels], record["models"]), source


def fewest_replicas(
    rate: float, p99_ms: float, predict: Callable[[int], Prediction], least: int
) -> tuple[Prediction, Prediction | None]:
    """Return the fewest servers, from `least` on, that keep a p99, and what one server less would do.

    The second is None where one server less is less than `least`. Raises CodetrError if no number of
    servers keeps it.
    """
    tried: dict[int, Prediction] = {}

    def keeps(replicas: int) -> bool:
        tried[replicas] = predict(replicas)
        return tried[replicas].p99 <= p99_ms

    step, low, high = 1, least - 1, least
    while not keeps(high):
        if tried[high].use < _IDLE_USE:
            raise CodetrError(
                f"p99 within {p99_ms:g} ms: no number of servers keeps it at {rate:g} requests/s; the p99 of servers "
                f"that are nearly idle is {tried[high].p99:.0f} ms"
            )
        low, high, step = high, high + step, step * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return tried[high], tried.get(high - 1)


def plan_capacity(
    service: Service, source: Mapping[str, Any], plan: Plan, on_result: Callable[[Prediction], object]
) -> dict[str, Any]:
    """Return the record of a plan: for each rate the fewest servers, what they cost, and what one less would do.

    Args:
        service: what one server takes.
        source: how and where that was measured, for the record.
        plan: what is asked.
        on_result: called with what the fewest servers do at each rate.

    Raises:
        CodetrError: a limit that no number of servers keeps.
    """
    rows = []
    for rate in plan.rates:

        def predict(replicas: int, rate: float = rate) -> Prediction:
            return simulate(service, replicas, rate, plan.balancer)

        least = math.ceil(rate / (service.highest_rate * plan.max_use))
        enough, less = fewest_replicas(rate, plan.p99_ms, predict, least)
        rows.append({**asdict(enough), **cost(enough, plan.price), "one_less_p99": less and less.p99})
        on_result(enough)
    described = {"measured": dict(source), "service": asdict(service), "plan": asdict(plan)}
    return {**header("capacity"), **described, "results": rows}


def cost(found: Prediction, price: float | None) -> dict[str, float]:
    """Return what servers cost an hour and for a million images; {} without a price."""
    if price is None:
        return {}
    hourly = found.replicas * price
    return {"cost_hour": hourly, "cost_million": hourly / (found.rate * 3600) * 1e6}


def write_capacity_report(record: Mapping[str, Any], output: Path) -> None:
    """Write `report.html`, `report.md` and a plot as SVG to `output`."""
    plan, service, measured = record["plan"], record["service"], record["measured"]
    text = (
        f"One server was measured by `{measured['command']}`, {measured['time'][:10]}, on "
        f"{summary(measured['machine'])}: pre-processing {1e3 * service['preprocess']:.1f} ms, the detector "
        f"{1e3 * (service['batch_seconds'] + service['image_seconds']):.1f} ms for one image, batches of up to "
        f"{service['max_batch']}, post-processing {1e3 * service['postprocess']:.1f} ms; instances "
        f"{', '.join(map(str, service['instances']))}. Wanted: 99 % of requests, which arrive at random, within "
        f"{plan['p99_ms']:g} ms behind {plan['balancer']} balancing, and no server above {plan['max_use']:.0%} of what "
        "it can answer."
    )
    columns = (*COLUMNS, *(("cost an hour", "cost of a million images") if plan["price"] is not None else ()))
    points = [(row["rate"], float(row["replicas"])) for row in record["results"]]
    figure = plots.lines({"servers": points}, f"Servers for a p99 of {plan['p99_ms']:g} ms", "servers", "images/s")
    section = Section("Servers by rate", text, columns, capacity_rows(record), [("servers", plots.svg(figure))])
    write_report("Capacity", record, [section], output)


def capacity_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's rows."""
    return [
        [
            f"{row['rate']:,g}", f"{row['replicas']:,}", f"{row['use']:.0%}", f"{row['p50']:.0f}", f"{row['p99']:.0f}",
            f"{row['ratio']:.2f}", "too few" if row["one_less_p99"] is None else f"{row['one_less_p99']:.0f}",
            *(f"{row[key]:,.2f}" for key in ("cost_hour", "cost_million") if key in row),
        ]
        for row in record["results"]
    ]  # fmt: skip
