"""Serves each case's repository and measures it with perf_analyzer."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perf.connection import Connection
from perf.cost.cases import MAX_BATCH_SIZE, Case, CostPlan, cases, groups
from perf.cost.repository import write_cost_repository
from perf.machine import header
from perf.records import write_record
from perf.server.perf_analyzer import Installation, Level
from perf.server.run import Result, ServerBench
from serving.contract import ENSEMBLE
from serving.errors import CodetrError
from serving.launch import running_server

# What measures a case: `measure_case`, or recorded data in tests.
Measure = Callable[[Case], Iterator[Result]]


def run(
    measure: Measure,
    plan: CostPlan,
    output: Path,
    on_result: Callable[[Case, Result], None] = lambda case, result: None,
) -> dict[str, Any]:
    """Measure the plan and return the content of `output`/results.json, which is rewritten after every level.

    Ctrl-C ends the measuring and keeps what was measured; the record then says that it is not complete. Raises
    CodetrError if no level could be measured.
    """
    results: list[tuple[Case, Result]] = []
    description, complete = header("cost"), False
    try:
        for case in cases(plan):
            for result in measure(case):
                results.append((case, result))
                write_record(to_record(plan, results, description, complete), output)
                on_result(case, result)
        complete = True
    except KeyboardInterrupt:
        print("interrupted: keeping what was measured")
    if not any(result.reading for _, result in results):
        raise CodetrError(next((result.error for _, result in results), "nothing was measured"))
    record = to_record(plan, results, description, complete)
    write_record(record, output)
    return record


def measure_case(installation: Installation, plan: CostPlan, output: Path, case: Case) -> Iterator[Result]:
    """Yield the results of one case's levels: the ensemble at concurrency 1 and the plan's, pass by pass.

    The server runs on free ports of this machine while they are measured; inputs and CSV files stay in a folder of the
    case's name in `output`.
    """
    with tempfile.TemporaryDirectory() as folder:
        repository = write_cost_repository(Path(folder, "repository"), case, plan.cost_ms)
        with running_server(repository) as server:
            url = server.grpc_url if case.protocol == "grpc" else server.http_url
            with Connection(url, case.protocol) as connection:
                configs = connection.model_configs([ENSEMBLE])
                kept = output / "cases" / re.sub(r"\W+", "-", case.name)
                bench = ServerBench(installation, connection, server.metrics_url, configs, [case.picture], kept)
                for repeat in range(plan.repeats):
                    for concurrency in sorted({1, plan.concurrency}):
                        level = Level(ENSEMBLE, "concurrency", concurrency, case.batch, plan.window)
                        yield bench.measure(level, repeat)


def to_record(
    plan: CostPlan, results: Sequence[tuple[Case, Result]], description: dict[str, Any], complete: bool
) -> dict[str, Any]:
    """Return the content of results.json; JSON-ready. Groups map what is varied and its value to a case's name."""
    return {
        **description,
        "complete": complete,
        "plan": asdict(plan),
        "max_batch_size": MAX_BATCH_SIZE,
        "groups": {title: {value: case.name for value, case in group.items()} for title, group in groups(plan).items()},
        "cases": {case.name: asdict(case) for case in cases(plan)},
        "results": [{"case": case.name, **result.to_json()} for case, result in results],
    }
