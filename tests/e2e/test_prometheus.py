"""A real Prometheus scrapes a real server under a little load: every query of the dashboard and the rules has data."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codetr_client import CoDetrClient
from codetr_client.errors import RequestRefusedError
from serving.launch import TritonServer, free_ports
from tests.deploy.test_prometheus import PROMETHEUS, panels
from tests.e2e.conftest import ENGINES
from tests.markers import needs_prometheus

pytestmark = [pytest.mark.server, needs_prometheus]

# A metric's name and the selector behind it.
_SELECTOR = re.compile(r"\b((?:nv|codetr|model:codetr|stage:codetr)_?[\w:]+|up)(\{[^{}]*\})?")
_OF_A_GPU = "nv_gpu_"


def encoded(kind: str, width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (200, 200, 200)).save(buffer, kind)
    return buffer.getvalue()


@contextlib.contextmanager
def load(server: TritonServer) -> Iterator[None]:
    """Send images to every engine, some of them broken, while the block runs."""
    stop = threading.Event()

    def send() -> None:
        images = (encoded("JPEG", 64, 48), encoded("PNG", 300, 200), b"", encoded("PNG", 300, 200)[:-30])
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(CoDetrClient(server.grpc_url, model=name)) for name in ENGINES]
            while not stop.wait(0.05):
                for client in clients:
                    for image in images:
                        with contextlib.suppress(RequestRefusedError):
                            client.detect(image)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Prometheus:
    """The API of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")

    def values(self, query: str) -> list[float]:
        return [float(sample["value"][1]) for sample in self.ask("query", query=query)["result"]]

    def wait_for(self, query: str) -> list[float]:
        """Return the values of a query once one of them is a number."""
        deadline = time.monotonic() + 120
        while True:
            values = self.values(query)
            if any(value == value for value in values):
                return values
            assert time.monotonic() < deadline, f"no data for {query}"
            time.sleep(0.2)


def wait_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=60).close()
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def prometheus(both: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the rules of `deploy`, which asks the server four times a second."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("15s", "250ms").replace("localhost:8002", both.metrics_url.split("/")[2])
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    for rules in ("recording.yml", "alerts.yml"):
        (folder / rules).write_bytes((PROMETHEUS / rules).read_bytes())
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process, load(both):
        try:
            wait_ready(port, process, folder / "log")
            yield Prometheus(port)
        finally:
            process.terminate()


def queries() -> list[str]:
    """Every query of the dashboard, its variables replaced."""
    variables = {"job": ".*", "instance": ".*", "engine": "|".join(ENGINES), "__rate_interval": "1m"}
    replaced = (target["expr"] for panel in panels() for target in panel["targets"])
    return [re.sub(r"\$(\w+)", lambda match: variables[match[1]], query) for query in replaced]


def test_every_query_has_data(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    for query in [*recorded, *queries()]:
        if _OF_A_GPU in query:
            prometheus.values(query)  # it is a query, at least
        else:
            prometheus.wait_for(query)
    for query in (rule["query"] for rule in rules if rule["type"] == "alerting"):
        names = _SELECTOR.findall(query)
        assert names, query
        for name, selector in names:
            if _OF_A_GPU not in name:
                assert prometheus.values(f"count({name}{selector})"), name + selector
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []


def test_what_was_sent_is_what_is_counted(prometheus: Prometheus) -> None:
    for name in ENGINES:
        images = f'codetr_images_total{{model="{name}_preprocess"'
        for outcome in ('format="JPEG",outcome="decoded"', 'format="PNG",outcome="damaged"', 'outcome="empty"'):
            assert prometheus.wait_for(f"{images},{outcome}}} > 0")
        assert prometheus.values(f'{images},format="WEBP",outcome="too_many_bytes"}}') == [0.0]
        (answered,) = prometheus.wait_for(f'codetr_detections_total{{model="{name}_postprocess"}} > 0')
        (candidates,) = prometheus.values(f'codetr_candidates_total{{model="{name}_postprocess"}}')
        assert candidates >= answered
    assert prometheus.ask("query", query='ALERTS{alertstate="firing"}')["result"] == []
