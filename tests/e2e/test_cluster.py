"""Three real servers behind a real Envoy: requests spread, and a server that goes takes at most what it has with it."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from codetr_client.wire import Protocol
from perf.cluster.run import Cluster
from perf.cluster.servers import answered
from perf.cluster.traffic import Answer, Load, send
from tests.markers import needs_envoy

pytestmark = [pytest.mark.server, needs_envoy]

VICTIM = "127.0.0.3"
# Of one server: 4 images in 0.1 s.
COST_MS, MAX_BATCH = 100.0, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(COST_MS, MAX_BATCH, per_try_seconds=20.0) as cluster:
        yield cluster


def under_load(cluster: Cluster, load: Load, act: Callable[[], object], after: float = 1.0) -> list[Answer]:
    """Return the answers to a load under which something is done; its error is the test's."""
    errors: list[BaseException] = []

    def later() -> None:
        time.sleep(after)
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=later)
    thread.start()
    answers = send(cluster.url(load.protocol), cluster.image, load)
    thread.join()
    assert not errors, errors
    return answers


def errors(answers: list[Answer]) -> list[str]:
    return [each.error for each in answers if each.error]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_one_client_reaches_every_server(cluster: Cluster, protocol: Protocol) -> None:
    before = cluster.servers.statistics()
    answers = send(cluster.url(protocol), cluster.image, Load(1.5, users=6, protocol=protocol))
    assert errors(answers) == []
    counts = answered(before, cluster.servers.statistics())
    assert set(counts) == set(cluster.servers.addresses)
    until = time.monotonic() + 120
    while sum(counts.values()) < len(answers):  # Triton counts a request after its answer
        assert time.monotonic() < until, counts
        counts = answered(before, cluster.servers.statistics())
    # the one with the fewest has a third of its share, whatever the machine does meanwhile
    assert min(counts.values()) > len(answers) / 9


def test_what_no_client_asks_is_not_passed_on(cluster: Cluster) -> None:
    for path, headers, status in (
        ("/v2/models/codetr/stats", {}, 403),
        ("/v2/repository/index", {}, 403),
        ("/v2/models/codetr/infer", {"Content-Encoding": "gzip"}, 415),
    ):
        asked = urllib.request.Request(f"http://{cluster.proxy.http_url}{path}", b"{}", headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=60)
        assert refused.value.code == status
        refused.value.close()
    with tritonclient.grpc.InferenceServerClient(cluster.proxy.grpc_url) as client:
        assert client.is_model_ready("codetr")
        with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
            client.get_model_repository_index()
    # while Envoy's own page is there for Prometheus
    with urllib.request.urlopen(f"http://{cluster.proxy.metrics_url}/stats/prometheus", timeout=60) as page:
        assert b"envoy_cluster_upstream_rq_retry" in page.read()


def test_a_path_in_two_pieces_reaches_the_servers_whole(cluster: Cluster) -> None:
    """Triton 2.51 itself takes such a path for another."""
    host, port = cluster.proxy.http_url.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for piece in (b"GET /v2/heal", b"th/ready HTTP/1.1\r\nHost: codetr\r\n\r\n"):
            connection.sendall(piece)
            time.sleep(0.1)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_servers_end_and_die_and_no_request_fails(cluster: Cluster) -> None:
    """The last one: two of three servers are gone after it."""
    first, second, third = cluster.servers.addresses
    # One ends without notice: it refuses what comes while it answers what it has, and Envoy repeats that elsewhere.
    answers = under_load(cluster, Load(2.5, users=6, protocol="http"), lambda: cluster.servers.end(second))
    assert errors(answers) == []
    cluster.rest([first, third])
    # One is killed: what it had, and what was sent to it before Envoy had noticed, is repeated.
    counted = cluster.proxy.stats()
    answers = under_load(cluster, Load(2.5, users=6), lambda: cluster.servers.kill(third))
    assert errors(answers) == []
    name = "cluster.codetr-grpc.upstream_rq_retry_success"
    assert cluster.proxy.stats()[name] > counted[name]


@pytest.mark.slow
def test_a_server_with_a_dead_step_is_taken_out() -> None:
    """Triton 2.51 itself calls it ready. Nothing here loads the step anew, as `codetr serve` would."""
    with Cluster(COST_MS, MAX_BATCH, per_try_seconds=20.0) as cluster:
        server = cluster.servers.running[VICTIM]
        for process in psutil.Process(server.process.pid).children():
            if "/codetr_detector/" in " ".join(process.cmdline()):
                process.kill()
        until = time.monotonic() + 60
        while any(cluster.proxy.hosts(f"codetr-{name}")[VICTIM] == "healthy" for name in ("grpc", "http")):
            assert time.monotonic() < until
            time.sleep(0.2)
        assert server.is_ready()
        assert "failed_active_health_check" in cluster.proxy.hosts()[VICTIM]
        assert errors(send(cluster.proxy.grpc_url, cluster.image, Load(1.0, users=6))) == []


@pytest.mark.slow
def test_a_server_that_leaves_dns_gets_nothing_new() -> None:
    with Cluster(COST_MS, MAX_BATCH, per_try_seconds=20.0) as cluster:
        cluster.rest([each for each in cluster.servers.addresses if each != VICTIM])
        before = cluster.servers.statistics()
        answers = send(cluster.proxy.grpc_url, cluster.image, Load(1.0, users=6))
        assert errors(answers) == []
        assert answered(before, cluster.servers.statistics())[VICTIM] == 0


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_was_killed_gets_requests_again(protocol: Protocol) -> None:
    with Cluster(COST_MS, MAX_BATCH, per_try_seconds=20.0) as cluster:
        load = Load(3.0, users=6, protocol=protocol)
        assert errors(under_load(cluster, load, lambda: cluster.servers.kill(VICTIM))) == []
        cluster.restore()
        before = cluster.servers.statistics()
        assert errors(send(cluster.url(protocol), cluster.image, load)) == []
        assert answered(before, cluster.servers.statistics())[VICTIM] > 0


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_slow_server_is_avoided_and_ejected(protocol: Protocol) -> None:
    with Cluster(COST_MS, MAX_BATCH, per_try_seconds=2.0) as cluster:
        cluster.servers.end(VICTIM)
        cluster.restore(cost_ms=3000.0)
        before = cluster.servers.statistics()
        load = Load(15.0, rate=24.0, protocol=protocol)
        answers = send(cluster.url(protocol), cluster.image, load)
        assert errors(answers) == []
        counts = answered(before, cluster.servers.statistics())
        assert counts[VICTIM] < len(answers) / 10
        assert cluster.proxy.stats()[f"cluster.codetr-{protocol}.outlier_detection.ejections_enforced_total"] >= 1
