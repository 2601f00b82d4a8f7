"""Asking servers of this machine, which no proxy of the environment can reach."""

from __future__ import annotations

import ipaddress
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping

_NAMES = ("localhost", "127.0.0.1", "::1")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_loopback(host: str) -> bool:
    """Return whether a host, a name or a numeric address without brackets, is this machine by its spelling."""
    name = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def read_url(url: str, timeout: float, headers: Mapping[str, str] | None = None) -> bytes:
    """Return what an http URL answers; `timeout` in seconds.

    Loopback is asked directly, whatever `http_proxy` says; the environment's proxies hold for other machines.

    Raises:
        OSError: nothing answers, or with an error (`urllib.error.HTTPError`).
    """
    request = urllib.request.Request(url, headers=dict(headers or {}))
    host = urllib.parse.urlsplit(url).hostname or ""
    opener = _DIRECT if is_loopback(host) else urllib.request.build_opener()
    with opener.open(request, timeout=timeout) as answer:
        content: bytes = answer.read()
    return content


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which other programs ask loopback directly too."""
    changed = dict(environment)
    if not any(name.lower().endswith("_proxy") for name in environment):
        return changed
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        excepted = [changed[name]] if changed.get(name) else []
        if excepted or name != "no_grpc_proxy":  # which gRPC prefers where it is set
            changed[name] = ",".join([*excepted, *_NAMES])
    return changed


def environment_without_proxies() -> dict[str, str]:
    """Return this process's environment as `without_proxies` changes it."""
    return without_proxies(os.environ)
