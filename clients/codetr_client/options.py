"""How a client reaches its server: the one table of options of both clients and both protocols."""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from codetr_client.errors import CodetrError
from codetr_client.inputs import read_file

DEFAULT_TIMEOUT = 60.0  # seconds, as tritonclient's own
MAX_TIMEOUT = 366 * 86400.0  # more does not fit into what sockets and requests carry

# RFC 9110, section 5.6.2
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What the client itself or the protocol sets; a second value would change where a message ends or whom it is for.
_OWN_HEADERS = frozenset(
    {
        "connection", "content-encoding", "content-length", "content-type", "expect", "host",
        "inference-header-content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
    }
)  # fmt: skip

FilePath = str | os.PathLike[str]

_PEM_BYTES = 16 << 20  # a system's whole list of authorities has less


@dataclass(frozen=True)
class Tls:
    """How a connection is encrypted.

    ca_file: PEM file of the CAs to trust; without it those of the system (HTTP) or of grpcio (gRPC).
    certificate_file, key_file: PEM files of the client's own certificate with its chain, and of its key, unencrypted.
    server_name: what the server's certificate is for, where that is not the url's host.
    """

    ca_file: FilePath | None = None
    certificate_file: FilePath | None = None
    key_file: FilePath | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise CodetrError("tls: certificate_file and key_file belong together; give both or neither")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the content of CA, certificate and key files; raises CodetrError for one that cannot be read."""
        return _pem("ca_file", self.ca_file), _pem("certificate_file", self.certificate_file), self._key()

    def _key(self) -> bytes | None:
        key = _pem("key_file", self.key_file)
        if key and b"ENCRYPTED" in key:  # OpenSSL would ask for the password on the terminal
            raise CodetrError(f"tls key_file {self.key_file}: it is encrypted; expected a key without a password")
        return key

    def context(self) -> ssl.SSLContext:
        """Return what HTTP's sockets are wrapped with; certificate and name are always checked."""
        self.read()
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else os.fspath(self.ca_file))
        except ssl.SSLError as error:
            raise CodetrError(f"tls ca_file {self.ca_file}: expected certificates in PEM ({error.reason})") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python 3.13 alone would refuse CAs without extensions that `openssl req -x509` leaves out; gRPC does not
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["http/1.1"])
        if self.certificate_file is not None and self.key_file is not None:
            try:
                context.load_cert_chain(self.certificate_file, self.key_file)
            except ssl.SSLError as error:
                raise CodetrError(
                    f"tls: {self.certificate_file} and {self.key_file} are no certificate with its key ({error.reason})"
                ) from error
        return context


def _pem(name: str, path: FilePath | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = read_file(path, _PEM_BYTES)
    except OSError as error:
        raise CodetrError(f"tls {name} {os.fspath(path)}: cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise CodetrError(f"tls {name} {os.fspath(path)}: expected PEM, which has a line -----BEGIN ...-----")
    return content


@dataclass(frozen=True)
class Options:
    """What holds for every call of a client.

    timeout: seconds for one call in all: name lookup, connection, request, every byte of the answer, and repeats.
    headers: sent with every request, as HTTP headers or gRPC metadata; never shown, because tokens travel in them.
    tls: how the connection is encrypted; a url of https:// or grpcs:// has `Tls()` without it.
    retries: how often a call is repeated at most where the server is not available.
    keepalive: seconds without traffic after which the connection is probed; None: never.
    """

    timeout: float = DEFAULT_TIMEOUT
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Tls | None = None
    retries: int = 0
    keepalive: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", _seconds("timeout", self.timeout))
        object.__setattr__(self, "headers", checked_headers(self.headers))
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise CodetrError(f"retries {self.retries!r}: expected 0 (none) or more")
        if self.keepalive is not None and _seconds("keepalive", self.keepalive) < 1:
            raise CodetrError(f"keepalive {self.keepalive!r}: expected 1 second or more")
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise CodetrError(f"tls {type(self.tls).__name__}: expected a codetr_client.Tls")


def _seconds(name: str, value: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= MAX_TIMEOUT:
        raise CodetrError(f"{name} {value!r}: expected seconds above 0, at most a year")
    return float(value)


def checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return headers with their names in lower case.

    Raises CodetrError for a name or a value that cannot travel on both protocols; it names the header, not the value.
    """
    if headers is not None and not isinstance(headers, Mapping):
        raise CodetrError(f"headers: expected a mapping of names to values, got {type(headers).__name__}")
    checked: dict[str, str] = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise CodetrError(f"header {name!r}: expected a name of letters, digits and hyphens")
        lower = name.lower()
        if lower in _OWN_HEADERS or lower.startswith("grpc-"):
            raise CodetrError(f"header {lower}: the client sets it itself; leave it out")
        if lower.endswith("-bin"):
            raise CodetrError(f"header {lower}: gRPC takes names in -bin for binary; choose another")
        if lower in checked:
            raise CodetrError(f"header {lower}: given twice")
        # visible ASCII and spaces within: what HTTP and gRPC both carry unchanged
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
            raise CodetrError(f"header {lower}: expected a value of printable ASCII without spaces around it")
        checked[lower] = value
    return checked
