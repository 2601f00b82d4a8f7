"""Which requests the page's server answers: its own page's, and no other site's that a browser was led to.

A page of another site can make its visitor's browser send requests here (CSRF), and can have its own name point here,
so that the browser takes the two for one site (DNS rebinding). Both show in headers that no script can set.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from serving.addresses import ListenAddress
from serving.errors import CodetrError

BODY_TYPE = "application/octet-stream"  # no form of another site can send it without asking first

# What the page may do: load what comes from here, and show pictures that it made itself.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), clipboard-write=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Server": "codetr",  # without versions
}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered, with its HTTP status."""

    status: int
    reason: str


def names_of(address: ListenAddress, host: str, others: Sequence[str] = ()) -> frozenset[str]:
    """Return the names by which the page may be called: this machine's, if others reach it, and `others`.

    Raises:
        CodetrError: one of `others` is no name alone.
    """
    for name in others:
        if not re.fullmatch(r"[A-Za-z0-9.-]+", name):
            raise CodetrError(f"--allow-host {name!r}: expected a name without scheme and port, such as page.example")
    names = {"localhost", *(name.lower().rstrip(".") for name in others)}
    if not address.is_loopback:
        names |= {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return frozenset(names)


def refusal(
    method: str, path: str, headers: Mapping[str, str], names: frozenset[str], loopback: bool
) -> Refusal | None:
    """Return why a request is not answered, or None.

    Args:
        method: of HTTP.
        path: of the url.
        headers: of the request, found by names in any case.
        names: by which the page may be called; numeric addresses need none.
        loopback: whether only this machine is to reach the page.
    """
    host = headers.get("Host", "")
    if not _is_known(host, names, loopback):
        return Refusal(421, f"this page is not called {host!r}; `codetr web --allow-host` names what it is called")
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return Refusal(403, f"the request comes from another page, {origin}")
    site = headers.get("Sec-Fetch-Site", "same-origin")
    if path.startswith("/api/") and site != "same-origin" and not (site == "none" and method == "GET"):
        return Refusal(403, "the request comes from another page")
    if method == "POST" and headers.get("Content-Type", "") != BODY_TYPE:
        return Refusal(415, f"expected Content-Type: {BODY_TYPE}")
    return None


def _is_known(host: str, names: frozenset[str], loopback: bool) -> bool:
    try:
        parsed = urlsplit(f"//{host}")
        name, _ = parsed.hostname, parsed.port
    except ValueError:
        return False
    if not name or parsed.netloc != host or "@" in host:
        return False
    try:
        ip = ipaddress.ip_address(name)
    except ValueError:
        return name.rstrip(".") in names
    return ip.is_loopback or not loopback  # nobody's DNS makes a number point elsewhere
