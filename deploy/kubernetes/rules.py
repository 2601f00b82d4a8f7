"""Write the rules of deploy/prometheus as objects of the Prometheus operator, beside its PodMonitor."""

from __future__ import annotations

import textwrap
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "components" / "monitoring"
RULES = Path(__file__).resolve().parents[1] / "prometheus"
NAMES = ("recording", "alerts")

_HEAD = """\
# Written by deploy/kubernetes/rules.py from deploy/prometheus/{name}.yml: change that, and run this again.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: codetr-{name}
  labels:
    app.kubernetes.io/name: codetr
spec:
"""


def rule_object(name: str) -> str:
    """Return the rules of the file `name` as a PrometheusRule in YAML, comments included."""
    rules = (RULES / f"{name}.yml").read_text(encoding="utf-8")
    return _HEAD.format(name=name) + textwrap.indent(rules, "  ")


def main() -> None:
    """Write them."""
    for name in NAMES:
        (FOLDER / f"{name}.yaml").write_text(rule_object(name), encoding="utf-8")


if __name__ == "__main__":
    main()
