"""Asking servers of this machine, which no proxy of the environment can reach."""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_loopback(host: str) -> bool:
    """Return whether a host, a name or a numeric address without brackets, is this machine by its spelling."""
    name = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def by_number(address: str) -> str:
    """Return host:port with the number of the address that answers, if the host is a name of this machine.

    Some programs ask a name server even for `localhost`, with each of their connections: perf_analyzer 2.51's gRPC
    does for the address of IPv6 that many machines do not list, and waits where no name server answers.
    """
    host, _, port = address.rpartition(":")
    if not is_loopback(host) or host.replace(".", "").isdigit():
        return address
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return address
    for ip in (str(entry[4][0]) for entry in found):
        with suppress(OSError), socket.create_connection((ip, int(port)), timeout=2):
            return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    return address


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


def environment_to_ask(address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a program that asks host:port: without proxies, if that is this machine.

    `no_proxy` would not do: libcurl of 2023 reads the last of several addresses in it and nothing else.
    """
    host = address.rpartition(":")[0].strip("[]")
    return {
        name: value
        for name, value in environment.items()
        if not (is_loopback(host) and name.lower().endswith("_proxy") and name.lower() != "no_proxy")
    }
