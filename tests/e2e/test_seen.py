"""What a real server shows of itself: log lines, `codetr status`, and the end of its steps."""

from __future__ import annotations

import json
import re
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from PIL import Image
from typer.testing import CliRunner

from codetr.cli import app
from serving.launch import TritonServer, running_server
from tests.e2e.conftest import ENGINES

pytestmark = pytest.mark.server

FORGED = 'a\nE1126 00:00:00.0 1 fake.cc:1] "forged" \x1b[31m'


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 48), (200, 200, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def send(server: TritonServer, images: list[bytes], request_id: str, **parameters: Any) -> None:
    image = tritonclient.grpc.InferInput("image", [len(images), 1], "BYTES")
    image.set_data_from_numpy(np.array(images, object).reshape(-1, 1))
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        client.infer("codetr", [image], request_id=request_id, parameters=parameters or None)


def logged(server: TritonServer, request_id: str) -> dict[str, Any]:
    """Return the line about a request as Triton wrote it: its own head, then our JSON, escaped once more."""
    deadline = time.monotonic() + 120
    while True:
        for line in server.log().splitlines():
            match = re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}Z W \d+ \w+\.py:\d+\] (\".*\")", line)
            content = json.loads(json.loads(match[1])) if match and "request_id" in match[1] else {}
            if content.get("request_id") == request_id:
                return content
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.05)


def status(server: TritonServer, *options: str) -> Any:
    return CliRunner().invoke(app, ["status", "--url", server.http_url, "--metrics-url", server.metrics_url, *options])


def test_a_server_without_metrics_logs_and_tells_its_state(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODETR_LOG", "json")
    with running_server(tiny_repository, ["--allow-metrics=false", "--log-format=ISO8601"]) as server:
        send(server, [picture()], "well")
        for request_id, images in ((FORGED, [b"<svg>secret"]), ("second", [picture(), picture()[:60]])):
            with pytest.raises(tritonclient.grpc.InferenceServerException):
                send(server, images, request_id)
        line = logged(server, FORGED)
        assert line.pop("ms") >= 0
        assert line == {
            "request_id": FORGED, "model": "codetr_preprocess", "cause": "wrong_format", "format": "unknown",
            "bytes": 11,
        }  # fmt: skip
        assert logged(server, "second")["size"] == "64x48"
        with pytest.raises(tritonclient.grpc.InferenceServerException):
            send(server, [picture()], "third", score_threshold="high")
        assert logged(server, "third")["cause"] == "request"
        assert "secret" not in server.log()
        assert "well" not in server.log()
        assert not any(line.startswith("E1126") for line in server.log().splitlines())

        shown = status(server, "--json", "--seconds", "0.1")
        assert shown.exit_code == 0, shown.output
        found = json.loads(shown.output)
        assert (found["version"], found["ready"], found["faults"]) == ("2.51.0", True, [])
        assert found["engines"][0]["models"][0]["since_start"]["requests"] >= 1
        assert "no metrics at" in found["notes"][0]
        assert status(server, "--check").exit_code == 0

        steps = psutil.Process(server.process.pid).children()
        (detector,) = [step for step in steps if "codetr_detector" in " ".join(step.cmdline())]
        detector.kill()
        dead = status(server, "--check")
        assert dead.exit_code == 1
        assert "codetr cannot answer: " in str(dead.exception)
        assert server.is_ready()  # which is why the check asks for an inference
        server.process.kill()  # Triton would wait for the dead step's requests


def test_a_server_of_two_engines_in_words(both: TritonServer) -> None:
    shown = status(both, "--seconds", "0.1")
    assert shown.exit_code == 0, shown.output
    assert "triton 2.51.0 at" in shown.output
    assert "ready, every engine answers" in shown.output
    lines = shown.output.splitlines()
    assert set(ENGINES) <= {line.replace(":", " ").partition(" ")[0] for line in lines}
    assert len([line for line in lines if line.startswith("postprocess ")]) == len(ENGINES)
    assert "not shown" not in shown.output
