"""Rules and dashboard by themselves; tests/e2e/test_prometheus.py asks a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serving import metrics
from tests.markers import needs_prometheus

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "codetr.json").read_text(encoding="utf-8"))
ROWS = ["Traffic", "Latency by step", "Queue", "Errors by cause", "Engine", "GPU and machine"]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("check", "rules", "recording.yml", "alerts.yml"), id="rules"),
        pytest.param(("check", "config", "prometheus.yml"), id="config"),
        pytest.param(("test", "rules", "tests.yml"), id="tests of the rules"),
    ],
)
def test_promtool_finds_nothing(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))


def test_every_alert_and_recorded_series_has_a_test() -> None:
    tests = (PROMETHEUS / "tests.yml").read_text(encoding="utf-8")
    recorded = re.findall(r"- record: (\S+)", (PROMETHEUS / "recording.yml").read_text(encoding="utf-8"))
    assert len(alerts()) >= 10
    assert len(recorded) >= 8
    assert [name for name in alerts() if f"alertname: {name}\n" not in tests] == []
    asked = " ".join(re.findall(r"- expr: (.+)", tests))
    assert [name for name in recorded if name not in asked] == []


def test_every_alert_is_explained() -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Codetr\w+)` ", page, re.MULTILINE) == alerts()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_dashboard_has_its_rows_and_panels_that_overlap_nowhere() -> None:
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ROWS
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(column, line) for column in columns for line in lines}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_panels_use_the_variables_that_the_dashboard_has() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    for panel in panels():
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= variables, target["expr"]


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    ours = [value.name for value in vars(metrics).values() if isinstance(value, metrics.Family)]
    assert [name for name in ours if name not in shown] == []
