"""A real Prometheus with the rules of `deploy/prometheus`, which scrapes the servers as it would scrape pods."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from serving.addresses import LOOPBACK, free_ports
from serving.child import bound_to_us
from serving.errors import CodetrError
from serving.loopback import read_url

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
# What the HorizontalPodAutoscaler of deploy/kubernetes asks for.
SERIES = "pod:codetr_detector_queue_to_compute:ratio2m"
INTERVAL = "1s"
_START_SECONDS = 30.0
# Kubernetes leaves the number as it is within this share of the target (--horizontal-pod-autoscaler-tolerance).
_TOLERANCE = 0.1


def find_prometheus() -> str:
    """Return the path of `prometheus`; raises CodetrError if there is none on PATH."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise CodetrError("no prometheus on PATH; Debian's package prometheus has it")
    return binary


class Prometheus:
    """The query API of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOOPBACK}:{port}"

    def is_ready(self) -> bool:
        """Return whether it answers queries."""
        with suppress(OSError):
            return bool(read_url(f"{self._url}/-/ready", timeout=5))
        return False

    def by_pod(self, query: str) -> dict[str, float]:
        """Return a query's values by the label `pod`."""
        url = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        found: list[dict[str, Any]] = json.loads(read_url(url, timeout=10))["data"]["result"]
        return {each["metric"].get("pod", ""): float(each["value"][1]) for each in found}


@contextmanager
def running_prometheus(addresses: Sequence[str], metrics_port: int) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes every second, each server under its address as the label `pod`.

    Raises:
        CodetrError: there is no `prometheus` on PATH, or it does not start; with what it said.
    """
    binary = find_prometheus()
    config = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [
        {"targets": [f"{each}:{metrics_port}"], "labels": {"namespace": "detection", "pod": each}} for each in addresses
    ]
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
        command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        command += [f"--web.listen-address={LOOPBACK}:{port}", "--log.level=warn"]
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(bound_to_us(command), stdout=output, stderr=output)
        try:
            prometheus, until = Prometheus(port), time.monotonic() + _START_SECONDS
            while not prometheus.is_ready():
                if process.poll() is not None or time.monotonic() > until:
                    raise CodetrError(f"prometheus did not start: {log.read_text(errors='replace')[-500:]}")
                time.sleep(0.1)
            yield prometheus
        finally:
            process.terminate()
            process.wait()


def desired_replicas(current: int, mean: float, target: float) -> int:
    """Return what a HorizontalPodAutoscaler of a metric of each pod asks for, before its limits and policies."""
    ratio = mean / target
    return current if abs(ratio - 1) <= _TOLERANCE else math.ceil(current * ratio)
