"""`codetr bench cluster`: three servers behind Envoy, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codetr.shown import say


def bench_cluster(
    output: Annotated[Path, typer.Option(help="Folder for the report and results.json.")] = Path("runs/bench/cluster"),
    cost_ms: Annotated[float, typer.Option(min=1, help="What an engine takes for a batch.")] = 200.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Images in a batch at most.")] = 4,
    seconds: Annotated[float, typer.Option(min=20, help="Length of a load.")] = 90.0,
    fault_seconds: Annotated[float, typer.Option(min=15, help="Length of a load with a fault.")] = 24.0,
) -> None:
    """Measure how Envoy spreads requests, what faults cost, what the autoscaler is told and `capacity` predicts."""
    from perf.cluster.report import write_cluster_report
    from perf.cluster.run import ClusterPlan, run
    from perf.records import check_output, reporting

    plan = ClusterPlan(cost_ms=cost_ms, max_batch=max_batch, seconds=seconds, fault_seconds=fault_seconds)
    check_output(output, kind="cluster")
    with reporting(output, "cluster", lambda record: write_cluster_report(record, output)):
        run(plan, output, say)
    say(f"wrote {output / 'report.html'}, report.md and results.json")
