"""Envoy's configuration and its manifests, against the servers' and each other; tests/e2e/test_cluster.py runs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from perf.cluster.proxy import CONFIG, find_envoy, loopback_config
from serving import health
from serving.preprocess import PreprocessSettings
from tests.deploy.test_kubernetes import ENVOY, objects, server
from tests.markers import needs_envoy, needs_kubectl

ZEROS = "0" * 64


def config() -> dict[str, Any]:
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


def listener(name: str) -> dict[str, Any]:
    (found,) = [each for each in config()["static_resources"]["listeners"] if each["name"] == name]
    return found


def manager(name: str) -> dict[str, Any]:
    """Return the settings of what reads a listener's HTTP."""
    return listener(name)["filter_chains"][0]["filters"][0]["typed_config"]


def clusters() -> dict[str, dict[str, Any]]:
    found = {each["name"]: each for each in config()["static_resources"]["clusters"]}
    return {name: found[name] for name in ("codetr-grpc", "codetr-http")}


def endpoint(cluster: dict[str, Any]) -> dict[str, Any]:
    (found,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    return found["endpoint"]


def seconds(duration: str) -> float:
    return float(re.fullmatch(r"([\d.]+)s", duration)[1])


def virtual_host(name: str = "grpc") -> dict[str, Any]:
    (found,) = manager(name)["route_config"]["virtual_hosts"]
    return found


def route(path: str, is_grpc: bool = False) -> str:
    """Return where a path goes, by the rules in their order: a cluster, or "refused"."""
    for each in virtual_host()["routes"]:
        match = each["match"]
        regex = match.get("safe_regex", {}).get("regex", ".*")
        if "headers" not in match and ("grpc" not in match or is_grpc) and re.fullmatch(regex, path):
            return each["route"]["cluster"] if "route" in each else "refused"
    return "none"


# ---- The configuration ----


@needs_envoy
@pytest.mark.parametrize("kind", ["shipped", "on loopback"])
def test_envoy_takes_it_without_a_word(kind: str, tmp_path: Path) -> None:
    """Envoy warns of what will go with its next releases."""
    path = tmp_path / "envoy.yaml"
    ports = {"grpc": 1, "http": 2, "metrics": 3, "admin": 4}
    path.write_text(CONFIG.read_text() if kind == "shipped" else loopback_config(ports, {"grpc": 5, "http": 6}, 7, 0.5))
    command = [find_envoy(), "--mode", "validate", "--log-level", "warning", "--config-path", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.strip().endswith("OK")


def test_both_ports_have_the_same_rules() -> None:
    assert listener("grpc")["filter_chains"] == listener("http")["filter_chains"]


def test_the_check_is_the_inference_that_status_asks_for() -> None:
    body, headers = health._question({})
    for cluster in clusters().values():
        (check,) = cluster["health_checks"]
        asked = check["http_health_check"]
        assert (asked["path"], asked["method"]) == ("/v2/models/codetr/infer", "POST")
        assert bytes.fromhex(asked["send"]["text"]) == body
        sent = {each["header"]["key"]: each["header"]["value"] for each in asked["request_headers_to_add"]}
        assert sent == headers
        assert [(each["start"], each["end"]) for each in asked["expected_statuses"]] == [(200, 201), (503, 504)]


def test_checks_go_to_the_port_of_http() -> None:
    grpc, http = (endpoint(cluster) for cluster in clusters().values())
    assert grpc["health_check_config"]["port_value"] == http["address"]["socket_address"]["port_value"]


@pytest.mark.parametrize(
    ("path", "is_grpc", "expected"),
    [
        pytest.param("/inference.GRPCInferenceService/ModelInfer", True, "codetr-grpc", id="inference"),
        pytest.param("/inference.GRPCInferenceService/ModelConfig", True, "codetr-grpc", id="class names"),
        pytest.param("/inference.GRPCInferenceService/RepositoryModelUnload", True, "refused", id="unloading"),
        pytest.param("/inference.GRPCInferenceService/SystemSharedMemoryRegister", True, "refused", id="shared memory"),
        pytest.param("/inference.GRPCInferenceService/ModelInfer", False, "refused", id="gRPC's path without gRPC"),
        pytest.param("/v2", False, "codetr-http", id="HTTP: what the server is"),
        pytest.param("/v2/health/ready", False, "codetr-http", id="HTTP: health"),
        pytest.param("/v2/models/codetr/infer", False, "codetr-http", id="HTTP: inference"),
        pytest.param("/v2/models/codetr/versions/1/infer", False, "codetr-http", id="HTTP: of a version"),
        pytest.param("/v2/models/codetr", False, "codetr-http", id="HTTP: metadata"),
        pytest.param("/v2/models/codetr/config", False, "codetr-http", id="HTTP: class names"),
        pytest.param("/v2/models/codetr/stats", False, "refused", id="HTTP: statistics of some server"),
        pytest.param("/v2/repository/models/codetr/unload", False, "refused", id="HTTP: unloading"),
        pytest.param("/v2/logging", False, "refused", id="HTTP: logging"),
        pytest.param("/metrics", False, "refused", id="HTTP: metrics"),
    ],
)
def test_only_what_clients_ask_is_passed_on(path: str, is_grpc: bool, expected: str) -> None:
    assert route(path, is_grpc) == expected


def test_a_try_may_take_as_long_as_a_server_lets_wait() -> None:
    policy = virtual_host()["retry_policy"]
    assert seconds(policy["per_try_timeout"]) >= PreprocessSettings().max_waiting_seconds + 5
    routes = [each["route"] for each in virtual_host()["routes"] if "route" in each]
    assert len(routes) == 2
    for each in routes:
        tries = (policy["num_retries"] + 1) * seconds(policy["per_try_timeout"])
        assert seconds(each["timeout"]) > tries + seconds(policy["retry_back_off"]["max_interval"])


def test_what_may_have_killed_a_step_is_not_repeated() -> None:
    policy = virtual_host()["retry_policy"]
    assert set(policy["retry_on"].split(",")) == {
        "connect-failure", "refused-stream", "reset", "unavailable", "retriable-status-codes",
    }  # fmt: skip
    assert policy["retriable_status_codes"] == [503]
    assert policy["num_retries"] == 1


def test_the_admin_interface_is_for_envoy_itself() -> None:
    assert config()["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    (metrics,) = manager("metrics")["route_config"]["virtual_hosts"]
    assert [each["match"] for each in metrics["routes"]] == [{"path": "/ready"}, {"path": "/stats/prometheus"}]


# ---- The manifests ----


def envoy_deployment() -> dict[str, Any]:
    (found,) = objects("balanced", "Deployment", envoy=True)
    return found


def envoy_pod() -> dict[str, Any]:
    return envoy_deployment()["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    (found,) = envoy_pod()["containers"]
    return found


@needs_kubectl
def test_the_configuration_is_mounted_where_envoy_reads_it() -> None:
    (found,) = objects("balanced", "ConfigMap", envoy=True)
    assert found["data"] == {"envoy.yaml": CONFIG.read_text(encoding="utf-8")}
    (volume,) = envoy_pod()["volumes"]
    assert volume["configMap"]["name"] == found["metadata"]["name"]
    (mount,) = container()["volumeMounts"]
    assert container()["args"][:2] == ["--config-path", f"{mount['mountPath']}/envoy.yaml"]
    assert mount["readOnly"]


@needs_kubectl
def test_ports_are_those_of_the_servers_and_of_the_configuration() -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    listening = {
        each["name"]: each["address"]["socket_address"]["port_value"]
        for each in config()["static_resources"]["listeners"]
    }
    assert ports == listening
    behind = {port["name"]: port["containerPort"] for port in server("balanced")["ports"]}
    for name, cluster in clusters().items():
        protocol = name.removeprefix("codetr-")
        assert endpoint(cluster)["address"]["socket_address"]["port_value"] == behind[protocol] == ports[protocol]
    (service,) = objects("balanced", "Service", envoy=True)
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {"http": 8000, "grpc": 8001}
    assert all(port["name"] == port["targetPort"] for port in service["spec"]["ports"])


@needs_kubectl
def test_envoy_asks_for_the_service_that_stands_for_the_pods() -> None:
    headless = [each for each in objects("balanced", "Service") if each["spec"].get("clusterIP") == "None"]
    for cluster in clusters().values():
        assert endpoint(cluster)["address"]["socket_address"]["address"] == headless[0]["metadata"]["name"]


@needs_kubectl
def test_everything_selects_envoys_pods() -> None:
    labels = envoy_deployment()["spec"]["template"]["metadata"]["labels"]
    selectors = [envoy_deployment()["spec"]["selector"]["matchLabels"]]
    selectors += [each["spec"]["selector"] for each in objects("balanced", "Service", envoy=True)]
    selectors += [
        each["spec"]["selector"]["matchLabels"] for each in objects("balanced", "PodDisruptionBudget", envoy=True)
    ]
    selectors += [each["labelSelector"]["matchLabels"] for each in envoy_pod()["topologySpreadConstraints"]]
    assert len(selectors) == 4
    for selector in selectors:
        assert selector == {"app.kubernetes.io/name": ENVOY}
        assert selector.items() <= labels.items()


@needs_kubectl
def test_the_servers_let_envoy_in_and_envoy_reaches_them_and_names_alone() -> None:
    (servers,) = objects("balanced", "NetworkPolicy")
    wanted = servers["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert wanted.items() <= envoy_deployment()["spec"]["template"]["metadata"]["labels"].items()
    (policy,) = objects("balanced", "NetworkPolicy", envoy=True)
    assert policy["spec"]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": ENVOY}
    assert policy["spec"]["ingress"] == servers["spec"]["ingress"]
    pods, names = policy["spec"]["egress"]
    assert pods["to"] == [{"podSelector": servers["spec"]["podSelector"]}]
    assert [port["port"] for port in pods["ports"]] == ["http", "grpc"]
    assert {port["port"] for port in names["ports"]} == {53}


@needs_kubectl
def test_a_pod_waits_until_its_connections_have_left() -> None:
    options = manager("grpc")["common_http_protocol_options"]
    drained = seconds(options["max_connection_duration"]) + 5  # Envoy's drain_timeout
    wait = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drained < wait < envoy_pod()["terminationGracePeriodSeconds"]
    assert manager("grpc")["http1_safe_max_connection_duration"] is True


@needs_kubectl
def test_envoy_refuses_before_its_memory_ends() -> None:
    (monitor,) = config()["overload_manager"]["resource_monitors"]
    heap = monitor["typed_config"]["max_heap_size_bytes"]
    limit = int(re.fullmatch(r"(\d+)Mi", container()["resources"]["limits"]["memory"])[1]) << 20
    assert heap <= limit / 1.5
    assert container()["resources"]["requests"]["memory"] == container()["resources"]["limits"]["memory"]


@needs_kubectl
def test_envoy_may_no_more_than_a_server() -> None:
    (deployment,) = objects("balanced", "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert envoy_pod()["securityContext"] == spec["securityContext"]
    assert container()["securityContext"] == server("balanced")["securityContext"]
    assert envoy_pod()["automountServiceAccountToken"] is False
    (account,) = objects("balanced", "ServiceAccount", envoy=True)
    assert account["automountServiceAccountToken"] is False
    assert envoy_pod()["serviceAccountName"] == account["metadata"]["name"]
    assert container()["image"] == f"envoy@sha256:{ZEROS}"
    assert envoy_deployment()["spec"]["replicas"] >= 2
