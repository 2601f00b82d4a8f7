"""The cluster's record as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf import plots
from perf.capacity.service import Service
from perf.capacity.simulation import simulate
from perf.report import Section, write_report

FAULT_COLUMNS = (
    "fault", "protocol", "requests", "failed", "under way", "repeated", "ejections", "p50 ms", "p99 ms",
    "answered by each server",
)  # fmt: skip
LOAD_COLUMNS = (
    "of the most", "requests/s", "answered/s", "p50 ms", "predicted", "p99 ms", "predicted", "p99 off by",
    "waiting to computing", "predicted", "answered by each server",
)  # fmt: skip
# Shares of the most that servers can answer, at which the prediction's line is drawn.
_CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def write_cluster_report(record: Mapping[str, Any], output: Path) -> None:
    """Write `report.html`, `report.md` and the plots as SVG files to `output`."""
    write_report("Three servers behind Envoy", record, cluster_sections(record), output)


def cluster_sections(record: Mapping[str, Any]) -> list[Section]:
    """Return the report's sections; parts that a run did not come to are left out."""
    sections = [Section("How it was measured", _method(record))]
    if record.get("loads"):
        sections.append(_load_section(record))
    if record.get("faults"):
        text = (
            "Clients of Envoy that repeat nothing themselves. The fault of 127.0.0.3 comes after a third of the load; "
            "under way: requests without an answer at that moment, of all servers. Repeated: by Envoy. A slower server "
            "is so from the start. What a server answered before it ended is not known."
        )
        sections.append(_fault_section("Faults behind Envoy", text, record["faults"], "envoy"))
    if record.get("clients"):
        text = "The same without Envoy: clients of `dns:///`, which repeat up to five times themselves."
        sections.append(_fault_section("Faults without Envoy", text, record["clients"], "dns"))
    for found in record.get("autoscaler", []):
        sections.append(_autoscaler_section(found))
    return sections


def load_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of the loads: what was measured beside what was predicted."""
    return [
        [
            f"{load['share']:.0%}", f"{load['offered']:.1f}", f"{load['rate']:.1f}",
            _ms(load["p50"]), f"{load['predicted']['p50']:.0f}",
            _ms(load["p99"]), f"{load['predicted']['p99']:.0f}",
            "-" if load["p99"] is None else f"{load['predicted']['p99'] / load['p99'] - 1:+.0%}",
            f"{load['ratio']:.2f}", f"{load['predicted']['ratio']:.2f}", _by_server(load),
        ]
        for load in record["loads"]
    ]  # fmt: skip


def fault_rows(faults: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of faults."""
    return [
        [
            each["fault"], each["protocol"], str(each["requests"]), str(each["failed"]), str(each["under_way"]),
            *("-" if each[key] is None else str(each[key]) for key in ("repeated", "ejections")),
            _ms(each["p50"]), _ms(each["p99"]), _by_server(each),
        ]
        for each in faults
    ]  # fmt: skip


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"  # nothing was answered


def _by_server(seen: Mapping[str, Any]) -> str:
    return ", ".join(str(count) for _, count in sorted(seen["by_server"].items()))


def _method(record: Mapping[str, Any]) -> str:
    plan = record["plan"]
    cut = "" if record["complete"] else " The run was cut short: parts are missing."
    return (
        "Three tritonservers on one machine, at 127.0.0.2 to 127.0.0.4 with the same ports, as pods have them; a name "
        "server for their name; the Envoy of deploy/envoy with other ports, that name server, and "
        f"{plan['per_try_seconds']:g} s for a try. Each engine takes {plan['cost_ms']:g} ms for a batch of up to "
        f"{plan['max_batch']} images and leaves the CPU free meanwhile, so that three have room on it. Requests arrive "
        "at random over one client. A load "
        f"lasts {plan['seconds']:g} s, one with a fault {plan['fault_seconds']:g} s.{cut}"
    )


def _load_section(record: Mapping[str, Any]) -> Section:
    text = (
        f"One server, asked directly with {', '.join(str(level['value']) for level in record['fit'])} requests under "
        f"way at a time, can answer {record['highest_rate']:.1f} requests/s at most. `codetr capacity` predicts three "
        "of them from that; none of these loads went into it. Waiting to computing is what the autoscaler asks for."
    )
    service = Service(**{**record["service"], **_tuples(record["service"])})
    most = 3 * service.highest_rate
    predicted = [simulate(service, 3, share * most) for share in _CURVE]
    series = {
        "p99 predicted": [(each.rate, each.p99) for each in predicted],
        "p50 predicted": [(each.rate, each.p50) for each in predicted],
        "p99 measured": [(load["offered"], load["p99"]) for load in record["loads"]],
        "p50 measured": [(load["offered"], load["p50"]) for load in record["loads"]],
    }
    dots = [label for label in series if label.endswith("measured")]
    figure = plots.lines(series, "Three servers: predicted and measured", "latency (ms)", "requests/s", dots)
    return Section(
        "Loads and what was predicted", text, LOAD_COLUMNS, load_rows(record), [("loads", plots.svg(figure))]
    )


def _tuples(service: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(value) for name, value in service.items() if isinstance(value, list)}


def _fault_section(title: str, text: str, faults: Sequence[Mapping[str, Any]], name: str) -> Section:
    drawings = []
    for key, label in (("median", "median"), ("longest", "longest")):
        series = {
            f"{each['fault']}, {each['protocol']}": [(at["second"], at[key]) for at in each["by_second"]]
            for each in faults
            if each["protocol"] == "grpc"
        }
        figure = plots.lines(series, f"{title}: {label} of each second, gRPC", "latency (ms)")
        drawings.append((f"{name}-{key}", plots.svg(figure)))
    return Section(title, text, FAULT_COLUMNS, fault_rows(faults), drawings)


def _autoscaler_section(found: Mapping[str, Any]) -> Section:
    text = (
        f"{found['users']} requests are under way at any time: of each server's full batches one computes and the "
        f"others wait, so that requests wait {found['expected_ratio']:g} times as long as they compute. Prometheus "
        "scrapes the three servers, with the rules of deploy/prometheus. They answer as fast as they can."
    )
    columns = ("", "waiting to computing", "servers asked for, of 3", "answered/s")
    rows = [
        ["expected", f"{found['expected_ratio']:.2f}", str(found["expected_desired"]), f"{found['expected_rate']:.1f}"],
        ["measured", f"{found['ratio']:.2f}", "", f"{found['rate']:.1f}"],
        ["Prometheus", f"{found['prometheus_ratio']:.2f}", str(found["desired"]), ""],
    ]
    return Section("What the autoscaler is told", text, columns, rows)
