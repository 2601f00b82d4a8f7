from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from perf import status as state
from perf.status import Address, metrics_beside, metrics_page
from serving.errors import CodetrError
from serving.launch import free_ports

# Lines as tritonserver 2.51 writes them, with a GPU's.
PAGE = """\
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="codetr_detector",version="1"} 7
nv_inference_pending_request_count{model="other_detector",version="1"} 9
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1024
nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 4096
codetr_images_total{format="PNG",model="codetr_preprocess",outcome="decoded"} 11
codetr_images_total{format="PNG",model="codetr_preprocess",outcome="damaged"} 2
codetr_images_total{format="JPEG",model="codetr_preprocess",outcome="damaged"} 3
codetr_images_total{format="JPEG",model="codetr_preprocess",outcome="bad_header"} 0
codetr_images_total{format="JPEG",model="other_preprocess",outcome="damaged"} 8
"""


def statistics(name: str, count: int, milliseconds: float, failures: int = 0) -> dict[str, Any]:
    """One model's statistics, two images an inference."""
    total = {"count": count, "ns": int(count * milliseconds * 1e6)}
    stats = dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), total)
    return {
        "name": name,
        "inference_count": 2 * count,
        "execution_count": count,
        "inference_stats": {**stats, "fail": {"count": failures}},
    }


class Server:
    """A server of one engine: what it answers by path, and the headers that it was sent."""

    def __init__(self) -> None:
        about = {"variant": "co_dino_demo", "precision": "fp32"}
        config = {"name": "codetr", "parameters": {"about": {"string_value": json.dumps(about)}}}
        self.answers: dict[str, tuple[int, Any]] = {
            "/v2": (200, {"name": "triton", "version": "2.51.0"}),
            "/v2/health/ready": (200, {}),
            "/v2/models/codetr/config": (200, config),
            "/v2/models/codetr/infer": (200, {}),
            "/v2/models/codetr/stats": (200, {}),
            "/metrics": (200, PAGE),
        }
        self.keys: dict[str, str | None] = {}
        self.count(10, 2.0)

    def count(self, requests: int, milliseconds: float, failures: int = 0) -> None:
        models = ("codetr", "codetr_preprocess", "codetr_detector", "codetr_postprocess", "something_else")
        stats = [statistics(name, requests, milliseconds, failures) for name in models]
        self.answers["/v2/models/stats"] = (200, {"model_stats": stats})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def address(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.keys[self.path] = self.headers.get("codetr-admin")
            code, content = server.answers.get(self.path, (404, {"error": "unknown"}))
            self.send_response(code)
            self.end_headers()
            self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

        do_POST = do_GET  # noqa: N815  # http.server's name

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  # http.server's name

    monkeypatch.setenv("CODETR_ADMIN_KEY", "s3cret")
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    host = f"127.0.0.1:{listening.server_port}"
    yield Address.of(host, f"http://{host}/metrics", 60.0)
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_a_server_is_described(address: Address) -> None:
    found = state.status(state.read(address), address)
    assert (found.server, found.version, found.ready, found.faults, found.notes) == ("triton", "2.51.0", True, None, [])
    (engine,) = found.engines
    assert (engine.name, engine.about) == ("codetr", {"variant": "co_dino_demo", "precision": "fp32"})
    assert [model.name for model in engine.models] == [
        "codetr", "codetr_preprocess", "codetr_detector", "codetr_postprocess",
    ]  # fmt: skip
    assert [model.waiting for model in engine.models] == [None, None, 7, None]
    assert engine.refused_images == {"damaged": 5}
    step = engine.models[2].since_start
    assert (step.requests, step.images, step.batch) == (10, 20, 2.0)
    assert step.compute_infer_ms == pytest.approx(2.0)
    (gpu,) = found.gpus
    assert (gpu.utilization, gpu.memory_used, gpu.memory_total, gpu.power) == (0.5, 1024, 4096, None)
    assert json.loads(json.dumps(found.to_json()))["engines"][0]["models"][2]["waiting"] == 7


def test_the_version_that_answers_and_one_that_is_loaded_beside_it_are_told(address: Address, server: Server) -> None:
    steps = ("codetr.2_preprocess", "codetr.2_detector", "codetr.2_postprocess")
    server.answers["/v2/models/codetr/config"][1]["ensemble_scheduling"] = {
        "step": [{"model_name": name} for name in steps]
    }
    stats = [statistics(name, 10, 2.0) | {"version": "1"} for name in steps]
    stats.append(statistics("codetr", 10, 2.0) | {"version": "2"})
    server.answers["/v2/models/stats"] = (200, {"model_stats": stats})
    (engine,) = state.status(state.read(address), address).engines
    assert (engine.name, engine.version, engine.loading) == ("codetr", "2", "")
    assert [model.name for model in engine.models] == ["codetr", *steps]

    beside = [statistics(f"codetr.3{step}", 0, 0.0) | {"version": "1"} for step in ("_preprocess", "_detector")]
    server.answers["/v2/models/stats"] = (200, {"model_stats": [*beside, *stats]})
    (engine,) = state.status(state.read(address), address).engines
    assert (engine.version, engine.loading) == ("2", "3")


def test_lately_is_what_happened_between_two_readings(address: Address, server: Server) -> None:
    before = state.read(address)
    server.count(30, 4.0, failures=3)
    found = state.status(state.read(address), address, before)
    lately = found.engines[0].models[2].lately
    assert lately is not None
    assert (lately.requests, lately.failures) == (20, 3)
    assert lately.queue_ms == pytest.approx((30 * 4 - 10 * 2) / 20)
    assert found.seconds is not None


def test_failures_without_a_success_are_counted(address: Address, server: Server) -> None:
    before = state.read(address)
    server.count(10, 2.0, failures=5)  # as of a step whose process has died
    lately = state.status(state.read(address), address, before).engines[0].models[1].lately
    assert lately is not None
    assert (lately.requests, lately.failures, lately.queue_ms) == (0, 5, 0.0)


def test_a_model_that_was_loaded_anew_counts_from_zero(address: Address, server: Server) -> None:
    before = state.read(address)
    server.count(4, 3.0)
    lately = state.status(state.read(address), address, before).engines[0].models[1].lately
    assert lately is not None
    assert (lately.requests, lately.images) == (4, 8)
    assert lately.queue_ms == pytest.approx(3.0)


def test_shut_statistics_are_noted_with_the_remedy(address: Address, server: Server) -> None:
    message = "This API is restricted, expecting header 'codetr-admin'"
    server.answers["/v2/models/stats"] = (403, {"error": message})
    found = state.status(state.read(address), address)
    assert found.notes == ["time by step is not shown: the server wants its key for statistics; set CODETR_ADMIN_KEY"]
    assert [engine.name for engine in found.engines] == ["codetr"]  # the usual name, asked for by itself
    assert found.engines[0].about["variant"] == "co_dino_demo"


def test_the_key_goes_to_the_server_and_not_to_the_page_of_metrics(address: Address, server: Server) -> None:
    state.read(address)
    assert server.keys["/v2/models/stats"] == "s3cret"
    assert server.keys["/metrics"] is None


def test_a_missing_page_of_metrics_is_noted(address: Address, server: Server) -> None:
    server.answers["/metrics"] = (404, "")
    found = state.status(state.read(address), address)
    assert found.gpus == []
    assert found.notes[0].startswith("queues, refused images and GPUs are not shown: no metrics at http://127.0.0.1:")


def test_an_engine_of_an_earlier_version_is_not_described(address: Address, server: Server) -> None:
    server.answers["/v2/models/codetr/config"] = (200, {"name": "codetr", "parameters": {}})
    found = state.status(state.read(address), address)
    assert (found.engines[0].about, found.notes) == ({}, [])


def test_every_engine_is_asked_for_an_inference(address: Address, server: Server) -> None:
    assert state.check(address) == []
    server.answers["/v2/models/codetr/infer"] = (500, {"error": "Stub process 'codetr_detector_0_0' is not healthy."})
    assert state.check(address) == ["codetr cannot answer: Stub process 'codetr_detector_0_0' is not healthy."]
    assert state.check(address, "other") == ["other cannot answer: unknown"]


def test_nobody_there_and_somebody_else_are_told_apart(address: Address, server: Server) -> None:
    nobody = Address.of(f"127.0.0.1:{free_ports(1)[0]}", None, 1.0)
    with pytest.raises(CodetrError, match=r"no server answers HTTP at 127.0.0.1:.*`codetr serve` starts one"):
        state.read(nobody)
    server.answers["/v2"] = (200, "<html>")
    with pytest.raises(CodetrError, match=r"no Triton answers HTTP at .*: /v2 gives no JSON; name its HTTP port"):
        state.read(address)


@pytest.mark.parametrize("url", ["localhost", "https://a:1", "a:b", "a:1/prefix", ":8000"])
def test_an_impossible_address_is_refused(url: str) -> None:
    with pytest.raises(CodetrError, match="expected host:port of the server's HTTP endpoint"):
        Address.of(url, None, 1.0)


@pytest.mark.parametrize(
    ("url", "http", "metrics"),
    [
        pytest.param(None, "localhost:8000", "http://localhost:8002/metrics", id="the usual ports"),
        pytest.param("http://box:9000/", "box:9000", "http://box:8002/metrics", id="as a browser has it"),
        pytest.param("[::1]:9000", "[::1]:9000", "http://[::1]:8002/metrics", id="IPv6"),
    ],
)
def test_addresses(url: str | None, http: str, metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "find_server", lambda address: None)
    address = Address.of(url, None, 1.0)
    assert (address.http, address.metrics) == (http, metrics)


@pytest.mark.parametrize(
    ("given", "page"),
    [
        pytest.param("h:8002", "http://h:8002/metrics", id="host and port"),
        pytest.param("http://[::1]:8002/", "http://[::1]:8002/metrics", id="no path"),
        pytest.param("https://h/triton/metrics?a=b", "https://h/triton/metrics?a=b", id="behind a proxy"),
    ],
)
def test_a_metrics_page_is_named_by_its_url_or_its_port(given: str, page: str) -> None:
    assert metrics_page(given) == page
    assert Address.of("h:8000", given, 1).metrics == page


@pytest.mark.parametrize("given", ["", "foo bar", "h:99999", "h:0", "http://", "file:///etc/passwd"])
def test_what_is_no_metrics_page_is_refused(given: str) -> None:
    with pytest.raises(CodetrError, match="expected such as http://localhost:8002/metrics or localhost:8002"):
        metrics_page(given)


def test_the_metrics_of_a_server_elsewhere_are_not_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    record = SimpleNamespace(metrics_port=9002)
    monkeypatch.setattr(state, "find_server", lambda address: record if address == "127.0.0.1:9001" else None)
    assert metrics_beside("127.0.0.1:9001") == "http://127.0.0.1:9002/metrics"
    assert metrics_beside("gpu1:8001") == "http://gpu1:8002/metrics"
    assert metrics_beside("dns:///gpus:8001") == "http://gpus:8002/metrics"
