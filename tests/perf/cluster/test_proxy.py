from __future__ import annotations

import json
from typing import Any

import yaml

from perf.cluster.proxy import CONFIG, loopback_config

PORTS = {"grpc": 1, "http": 2, "metrics": 3, "admin": 4}


def paths(value: Any, at: str = "") -> dict[str, Any]:
    """Return every single value of a document by where it stands."""
    if isinstance(value, dict):
        return {key: each for name, part in value.items() for key, each in paths(part, f"{at}/{name}").items()}
    if isinstance(value, list):
        return {key: each for index, part in enumerate(value) for key, each in paths(part, f"{at}/{index}").items()}
    return {at: value}


def test_what_is_measured_is_what_is_shipped() -> None:
    shipped = paths(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    measured = paths(json.loads(loopback_config(PORTS, {"grpc": 5, "http": 6}, 7, 0.5)))
    assert not set(shipped) - set(measured)
    changed = {path for path in shipped if shipped[path] != measured[path]} | (set(measured) - set(shipped))
    allowed = ("/socket_address/", "/per_try_timeout", "/health_check_config/", "/typed_dns_resolver_config/")
    assert [path for path in changed if not any(part in path for part in allowed)] == []
    assert {measured[path] for path in measured if path.endswith("/per_try_timeout")} == {"0.5s"}


def test_every_port_is_another() -> None:
    ports = [
        value
        for path, value in paths(json.loads(loopback_config(PORTS, {"grpc": 5, "http": 6}, 7, 0.5))).items()
        if path.endswith("/port_value")
    ]
    assert set(ports) == {1, 2, 3, 4, 5, 6, 7}
