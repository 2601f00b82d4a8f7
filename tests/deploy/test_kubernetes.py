"""What can be said of the manifests without a cluster: they render, they are valid, and their parts agree."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from kubernetes_validate import utils as kubernetes

from codetr.cli import app
from serving import launch, shared_memory
from serving.options import ServerOptions
from serving.watchdog import STANDSTILL_SECONDS
from tests.docs.checks import check_codetr
from tests.docs.pages import blocks
from tests.markers import needs_kubectl

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
GPU = ("gpu", "autoscaled", "balanced")
ENVOY = "codetr-envoy"
# Kinds of the Prometheus operator, of which the validator has no schemas; what must be in them is tested by name.
FOREIGN = {"PodMonitor", "PrometheusRule"}
MINORS = list(dict.fromkeys(kubernetes.all_versions()))[-3:]  # it names each twice, strict and not
# What every command of a container may give without saying so: the image's entry point.
ENTRY_POINT = ("--repository", "/models", "--host", "0.0.0.0")

Object = dict[str, Any]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)
pytestmark = needs_kubectl


def kustomize(folder: Path) -> tuple[Object, ...]:
    """Return the objects that kubectl makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # it warns there of what is out of date
    return tuple(yaml.safe_load_all(done.stdout))


@cache
def rendered(target: str) -> tuple[Object, ...]:
    """Return the objects of a folder below deploy/kubernetes."""
    return kustomize(KUBERNETES / target)


def objects(overlay: str, kind: str | None = None, envoy: bool = False) -> list[Object]:
    """Return an overlay's objects of the servers, or of the Envoy before them."""
    mine = [each for each in rendered(f"overlays/{overlay}") if each["metadata"]["name"].startswith(ENVOY) == envoy]
    found = [each for each in mine if kind in (None, each["kind"])]
    assert found, f"{overlay} has no {kind}"
    return found


def pod(overlay: str) -> Object:
    """Return the pod template's specification."""
    (deployment,) = objects(overlay, "Deployment")
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def server(overlay: str) -> Object:
    (container,) = pod(overlay)["containers"]
    assert container["name"] == "server"
    return dict(container)


def containers(overlay: str) -> list[Object]:
    return [*pod(overlay).get("initContainers", []), server(overlay)]


def init_container(overlay: str, name: str) -> Object:
    (found,) = [each for each in pod(overlay)["initContainers"] if each["name"] == name]
    return dict(found)


def volume(overlay: str, name: str) -> Object:
    (found,) = [each for each in pod(overlay)["volumes"] if each["name"] == name]
    return dict(found)


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def codetr_commands(overlay: str) -> Iterator[list[str]]:
    """Yield the words behind `codetr` of everything that the containers and probes run."""
    for container in containers(overlay):
        if container["image"].startswith("codetr:"):
            words = container["args"]
            yield [words[0], *ENTRY_POINT, *words[1:]] if words[0] == "serve" else words
    for probe in ("readinessProbe", "livenessProbe"):
        program, *words = server(overlay)[probe]["exec"]["command"]
        assert program == "codetr"
        yield words


def parsed(words: list[str]) -> dict[str, Any]:
    """Return the values that a codetr command gets from its words."""
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    return dict(command.make_context(words[0], words[1:]).params)


def test_there_are_the_four_overlays() -> None:
    assert OVERLAYS == ["autoscaled", "balanced", "cpu", "gpu"]


def test_the_page_names_the_releases_that_are_tested() -> None:
    oldest, newest = (".".join(version.split(".")[:2]) for version in (MINORS[0], MINORS[-1]))
    assert f"({oldest} to {newest})" in (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def test_the_base_renders() -> None:
    assert {each["kind"] for each in rendered("base")} >= {"Deployment", "Service", "NetworkPolicy"}


@overlays
@pytest.mark.parametrize("version", MINORS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    for each in rendered(f"overlays/{overlay}"):
        if each["kind"] in FOREIGN:
            assert each["apiVersion"] == "monitoring.coreos.com/v1"
        else:
            assert version.startswith(kubernetes.validate(each, version, strict=True))


def test_what_is_not_valid_is_found() -> None:
    (deployment,) = objects("cpu", "Deployment")
    wrong = json.loads(json.dumps(deployment))
    wrong["spec"]["template"]["spec"]["enableServiceLink"] = False
    for version in MINORS:
        with pytest.raises(kubernetes.ValidationError, match="enableServiceLink"):
            kubernetes.validate(wrong, version, strict=True)


@overlays
def test_names_are_used_once(overlay: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects(overlay)]
    assert len(set(names)) == len(names)
    assert {name.split("-")[0] for _, name in names} == {"codetr"}


@overlays
def test_everything_selects_the_pods(overlay: str) -> None:
    (deployment,) = objects(overlay, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [each["spec"]["selector"] for each in objects(overlay, "Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in objects(overlay, "PodDisruptionBudget")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in objects(overlay, "NetworkPolicy")]
    selectors += [each["labelSelector"]["matchLabels"] for each in pod(overlay)["topologySpreadConstraints"]]
    if overlay == "autoscaled":
        selectors += [each["spec"]["selector"]["matchLabels"] for each in objects(overlay, "PodMonitor")]
    assert len(selectors) >= 6
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()


@overlays
def test_the_account_is_there_and_gets_no_token(overlay: str) -> None:
    (account,) = objects(overlay, "ServiceAccount")
    assert pod(overlay)["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert pod(overlay)["automountServiceAccountToken"] is False


@overlays
def test_no_variable_of_a_service_is_taken_for_ours(overlay: str) -> None:
    assert any(each["metadata"]["name"] == "codetr" for each in objects(overlay, "Service"))  # CODETR_PORT and more
    assert pod(overlay)["enableServiceLinks"] is False


# ---- Ports ----


@overlays
def test_ports_are_those_of_the_server(overlay: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in server(overlay)["ports"]}
    assert ports == {name.lower(): port for name, port in ServerOptions(Path("/models")).ports.items()}
    exposed = re.search(r"^EXPOSE (.*)$", (ROOT / "Dockerfile.triton").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert set(map(int, exposed.split())) == set(ports.values())
    for service in objects(overlay, "Service"):
        for port in service["spec"]["ports"]:
            assert (port["name"], port["port"]) == (port["targetPort"], ports[port["targetPort"]])
    assert server(overlay)["startupProbe"]["httpGet"]["port"] in ports
    for probe in ("readinessProbe", "livenessProbe"):
        url = parsed(server(overlay)[probe]["exec"]["command"][1:])["url"]
        assert url == f"127.0.0.1:{ports['http']}"


@overlays
def test_one_service_has_an_address_and_one_stands_for_the_pods(overlay: str) -> None:
    services = {each["metadata"]["name"]: each["spec"] for each in objects(overlay, "Service")}
    assert {name for name, spec in services.items() if spec.get("clusterIP") == "None"} == {"codetr-pods"}
    assert set(services) == {"codetr", "codetr-pods"}
    assert all("metrics" not in [port["name"] for port in spec["ports"]] for spec in services.values())


@overlays
def test_clients_reach_two_ports_prometheus_the_third_and_the_server_nobody(overlay: str) -> None:
    (policy,) = objects(overlay, "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []
    clients, prometheus = policy["spec"]["ingress"]
    assert [port["port"] for port in clients["ports"]] == ["http", "grpc"]
    assert [port["port"] for port in prometheus["ports"]] == ["metrics"]
    for rule in (clients, prometheus):
        assert len(rule["from"]) == 1  # two peers would each be enough
        assert all(rule["from"])


# ---- Commands, probes and times ----


@overlays
def test_commands_and_their_options_exist(overlay: str) -> None:
    commands = list(codetr_commands(overlay))
    assert [words[0] for words in commands if words[0] != "verify"] == ["serve", "status", "status"]
    for words in commands:
        check_codetr(words)
        parsed(words)


def test_the_entry_point_gives_what_is_said_here() -> None:
    script = (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8")
    assert f"codetr serve {shlex.join(ENTRY_POINT)} " in script


@overlays
def test_probes_ask_for_an_inference_and_wait_for_the_answer(overlay: str) -> None:
    for probe in (server(overlay)[name] for name in ("readinessProbe", "livenessProbe")):
        asked = parsed(probe["exec"]["command"][1:])
        assert asked["check"] is True
        assert asked["timeout"] + 2 < probe["timeoutSeconds"]  # or the command ends before it can say why
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]


def seconds_until_failure(probe: Object) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


@overlays
def test_a_start_may_take_as_long_as_the_server_waits(overlay: str) -> None:
    (deployment,) = objects(overlay, "Deployment")
    limit = parsed(next(words for words in codetr_commands(overlay) if words[0] == "serve"))["load_timeout"]
    patience = seconds_until_failure(server(overlay)["startupProbe"])
    assert limit + 30 < patience < deployment["spec"]["progressDeadlineSeconds"] - 60


@overlays
def test_a_pod_leaves_the_services_before_it_is_started_again(overlay: str) -> None:
    readiness, liveness = server(overlay)["readinessProbe"], server(overlay)["livenessProbe"]
    assert readiness["exec"] == liveness["exec"]
    assert seconds_until_failure(readiness) + readiness["periodSeconds"] < seconds_until_failure(liveness)
    # codetr serve itself replaces a step that is dead or hangs, and is given the time to.
    assert STANDSTILL_SECONDS + 60 < seconds_until_failure(liveness) <= 240


@overlays
def test_a_pod_that_ends_has_time_for_what_it_has_begun(overlay: str) -> None:
    drain = server(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain >= 10
    assert pod(overlay)["terminationGracePeriodSeconds"] >= drain + launch._DRAIN_SECONDS + launch._STOP_SECONDS + 5
    assert server(overlay)["livenessProbe"]["terminationGracePeriodSeconds"] > drain


# ---- Security ----


@overlays
def test_nothing_runs_as_root_or_writes_where_it_need_not(overlay: str) -> None:
    user = re.search(r"^USER (\d+)$", (ROOT / "Dockerfile.triton").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert pod(overlay)["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(user),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(overlay))
    assert not any("hostPath" in each for each in pod(overlay)["volumes"])


@overlays
def test_what_must_be_written_can_be(overlay: str) -> None:
    mounts = {mount["mountPath"]: mount for mount in server(overlay)["volumeMounts"]}
    assert set(mounts) == {"/dev/shm", "/tmp", "/models"}
    assert volume(overlay, mounts["/dev/shm"]["name"])["emptyDir"]["medium"] == "Memory"
    assert "medium" not in volume(overlay, mounts["/tmp"]["name"])["emptyDir"]
    assert [path for path, mount in mounts.items() if mount.get("readOnly")] == ["/models"]
    named = {mount["name"] for container in containers(overlay) for mount in container["volumeMounts"]}
    assert named == {each["name"] for each in pod(overlay)["volumes"]}


# ---- Resources ----


@overlays
def test_every_container_says_what_it_takes(overlay: str) -> None:
    for container in containers(overlay):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(requests)
        assert limits["memory"] == requests["memory"]  # what is not asked for may be gone


@overlays
def test_one_gpu_where_there_is_one(overlay: str) -> None:
    assert server(overlay)["resources"]["limits"].get("nvidia.com/gpu") == (1 if overlay in GPU else None)
    tolerated = [each["key"] for each in pod(overlay).get("tolerations", [])]
    assert tolerated == (["nvidia.com/gpu"] if overlay in GPU else [])


def shared_memory_of_full_batches(folder: Path, width: int, height: int, batch: int, detectors: int) -> int:
    """Return the bytes that `codetr serve` would want for a repository with an engine that Python runs in so many."""
    templates = ROOT / "model_repository"
    total = 0
    for name in (
        "codetr_preprocess/config.pbtxt",
        "codetr_detector/configs/torch.pbtxt",
        "codetr_postprocess/config.pbtxt",
    ):
        text = (templates / name).read_text(encoding="utf-8")
        assert "max_batch_size: 1\n" in text or "max_batch_size: 1 " in text
        text = text.replace("768, 1152", f"{height}, {width}").replace("max_batch_size: 1", f"max_batch_size: {batch}")
        text = text.replace("KIND_AUTO count: 1", f"KIND_AUTO count: {detectors}")  # of the detector alone
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
        total += shared_memory._need(folder / "config.pbtxt", 1)[1]
    return total


def test_the_page_says_how_much_shared_memory_a_batch_takes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)x(\d+) \| (\d+) \| (\d+) MiB \| (\d+) MiB \|$", page, re.MULTILINE)
    assert len(rows) >= 3
    for width, height, batch, *told in (map(int, row) for row in rows):
        needs = [shared_memory_of_full_batches(tmp_path, width, height, batch, detectors) for detectors in (1, 2)]
        assert told == [round(need / 2**20) for need in needs]


@overlays
def test_shared_memory_has_room_for_every_batch_of_the_page_and_fits_into_the_container(overlay: str) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    largest = max(map(int, re.findall(r"\| (\d+) MiB \|$", page, re.MULTILINE))) << 20
    size = bytes_of(volume(overlay, "shared-memory")["emptyDir"]["sizeLimit"])
    assert largest < size < bytes_of(server(overlay)["resources"]["limits"]["memory"]) / 4


# ---- Images and the repository ----


def image_references(spec: Object) -> list[str]:
    volumes = [each["image"]["reference"] for each in spec["volumes"] if "image" in each]
    return [each["image"] for each in (*spec.get("initContainers", []), *spec["containers"])] + volumes


@overlays
def test_images_are_stand_ins_without_a_host(overlay: str) -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    references = image_references(pod(overlay))
    assert set(references) == {f"codetr:{version}", f"codetr-models@sha256:{'0' * 64}"}


@overlays
def test_an_overlay_of_yours_names_your_images(overlay: str, tmp_path: Path) -> None:
    """The page's own, and with what it says of the overlay that has the repository in a volume."""
    (text,) = [block.text for block in blocks("docs/kubernetes.md") if block.text.startswith("resources:")]
    base = os.path.relpath(KUBERNETES / "overlays" / overlay, tmp_path)
    mine = text.replace("../deploy/kubernetes/overlays/gpu", base)
    assert mine != text
    if overlay not in GPU:
        shutil.copy(KUBERNETES / "overlays" / overlay / "image-volumes.yaml", tmp_path)
        mine += "configurations: [image-volumes.yaml]\n"
    (tmp_path / "kustomization.yaml").write_text(mine, encoding="utf-8")
    found = [each for each in kustomize(tmp_path) if each["kind"] == "Deployment"]
    (deployment,) = [each for each in found if each["metadata"]["name"] != ENVOY]
    assert set(image_references(deployment["spec"]["template"]["spec"])) == {
        "YOURS/codetr@sha256:...",
        "YOURS/codetr-models@sha256:...",
    }


@overlays
def test_no_library_has_to_be_loaded_from_an_image_volume(overlay: str) -> None:
    """Which may be mounted noexec; plans have our plugin beside them."""
    assert ("image" in volume(overlay, "models")) == (overlay not in GPU)


def test_the_image_volume_is_mounted_where_the_images_files_are() -> None:
    (mount,) = [each for each in server("cpu")["volumeMounts"] if each["name"] == "models"]
    assert mount["subPath"] == "models"
    assert init_container("gpu", "copy-repository")["command"][2].startswith("/models/")


def test_the_copy_is_whole_and_checked(tmp_path: Path) -> None:
    copy, check = (init_container("gpu", name) for name in ("copy-repository", "check-repository"))
    assert [each["name"] for each in pod("gpu")["initContainers"]] == ["copy-repository", "check-repository"]
    assert copy["volumeMounts"] == [{"name": "models", "mountPath": "/copy"}]
    assert check["volumeMounts"] == [{"name": "models", "mountPath": "/models", "readOnly": True}]
    (tmp_path / "models" / "codetr" / "1").mkdir(parents=True)  # an ensemble's version is an empty folder
    (tmp_path / "models" / "codetr" / "config.pbtxt").write_text("x")
    (tmp_path / "copy").mkdir()
    words = [re.sub(r"^/(models|copy)", rf"{tmp_path}/\1", word) for word in copy["command"]]
    for _ in range(2):  # an init container may run again
        subprocess.run(words, check=True)
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")}
    assert copied == {"codetr", "codetr/1", "codetr/config.pbtxt"}
    asked = parsed(check["args"])
    assert (asked["repository"], asked["files_only"]) == (Path("/models"), True)


# ---- Prometheus and the autoscaler ----


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rules", KUBERNETES / "rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", generator().NAMES)
def test_rules_are_those_of_prometheus(name: str) -> None:
    written = (KUBERNETES / "components" / "monitoring" / f"{name}.yaml").read_text(encoding="utf-8")
    assert written == generator().rule_object(name), "run: python deploy/kubernetes/rules.py"
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / f"{name}.yml").read_text(encoding="utf-8"))
    (found,) = [each for each in objects("autoscaled", "PrometheusRule") if each["metadata"]["name"].endswith(name)]
    assert found["spec"] == rules
    assert rules["groups"]


def test_prometheus_asks_each_pod() -> None:
    (monitor,) = objects("autoscaled", "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    # The operator's job is NAMESPACE/NAME.
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    for job in re.findall(r'job=~"(.*?)"', alerts):
        assert re.fullmatch(job, f"production/{monitor['metadata']['name']}")


def test_the_dashboard_is_the_one_of_grafana() -> None:
    (found,) = objects("autoscaled", "ConfigMap")
    assert found["data"] == {"codetr.json": (ROOT / "deploy" / "grafana" / "codetr.json").read_text(encoding="utf-8")}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_autoscaler_alone_says_how_many() -> None:
    (deployment,) = objects("autoscaled", "Deployment")
    (scaler,) = objects("autoscaled", "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (deployment["apiVersion"], deployment["kind"])
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert 2 <= scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
    for overlay in ("cpu", "gpu"):  # or a drained node takes the service with it
        assert objects(overlay, "Deployment")[0]["spec"]["replicas"] >= 2


def test_the_autoscalers_metric_is_what_the_adapter_makes_of_a_recorded_series() -> None:
    (scaler,) = objects("autoscaled", "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    adapter = yaml.safe_load((ROOT / "deploy" / "prometheus" / "adapter.yml").read_text(encoding="utf-8"))
    (rule,) = adapter["rules"]
    assert metric["type"] == "Pods"
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series, selector = re.fullmatch(r"([\w:]+)\{(.*)\}", rule["seriesQuery"]).groups()
    assert set(re.findall(r"(\w+)!=\"\"", selector)) == set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    recording = yaml.safe_load((ROOT / "deploy" / "prometheus" / "recording.yml").read_text(encoding="utf-8"))
    recorded = {each["record"]: each["expr"] for group in recording["groups"] for each in group["rules"]}
    assert "sum by (namespace, pod)" in recorded[series]
    assert '_detector"' in recorded[series]
