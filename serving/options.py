"""How a server is started: what the user says, and the options of tritonserver that follow from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from serving.addresses import LOOPBACK, ListenAddress, bracketed, resolve_host
from serving.errors import CodetrError
from serving.model_config import parameter, read_model_config
from serving.preprocess import PreprocessSettings
from serving.runtime import KEY_HEADER, KEY_VARIABLE
from serving.tls import TlsFiles
from serving.view import POLL_OPTIONS

# Endpoints that change the server or show what others send; nobody reaches them without the key. Never model-config:
# clients read the class names there.
PROTECTED = ("model-repository", "shared-memory", "trace", "logging")
# Tells what the service is doing: for this machine only, unless the key is shown.
PROTECTED_ELSEWHERE = (*PROTECTED, "statistics")

_RESTRICTIONS = {"HTTP": "http-restricted-api", "gRPC": "grpc-restricted-protocol"}
# Options of tritonserver that follow from those of `codetr serve`, which must know their values.
_OURS = {
    "model-repository": "--repository",
    "model-store": "--repository",
    "http-address": "--host",
    "grpc-address": "--host",
    "metrics-address": "--host",
    "http-port": "--http-port",
    "grpc-port": "--grpc-port",
    "metrics-port": "--metrics-port",
}
_TLS = ("grpc-use-ssl", "grpc-use-ssl-mutual", "grpc-server-cert", "grpc-server-key", "grpc-root-cert")
# What stands in a process's arguments and in a header.
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
# Triton's limit of an HTTP request where it has one, and what a request has beside its images.
_HTTP_BYTES, _ENVELOPE_BYTES = 64 << 20, 1 << 20


@dataclass(frozen=True)
class ServerOptions:
    """How to start a server on a repository.

    Attributes:
        repository: what to serve.
        host: what to listen on, an address or a name of this machine.
        http_port, grpc_port, metrics_port: where.
        extra: further options of tritonserver, which win where that is possible.
        tls: certificates of the gRPC endpoint; HTTP then listens on loopback alone, because it has no TLS.
        admin_key: opens the endpoints that are not for everybody; None lets each start make its own.
        engines: what the engines are called that are served, one version of each; None for those that the repository
            names.
        gpus: which GPUs the server gets, as of `serving.gpus.visible_devices`; None for all that it sees.

    Raises:
        CodetrError: a port or the key is impossible, or an option is given in two places.
    """

    repository: Path
    host: str = LOOPBACK
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    extra: tuple[str, ...] = ()
    tls: TlsFiles | None = None
    admin_key: str | None = field(default=None, repr=False)
    engines: tuple[str, ...] | None = None
    gpus: str | None = None

    def __post_init__(self) -> None:
        ports = self.ports
        for name, port in ports.items():
            if not 1 <= port <= 65535:
                raise CodetrError(f"{name} port: expected 1..65535, got {port}")
        if len(set(ports.values())) != len(ports):
            raise CodetrError(f"expected three different ports, got {', '.join(map(str, ports.values()))}")
        if self.admin_key is not None and not _KEY.fullmatch(self.admin_key):
            raise CodetrError(f"{KEY_VARIABLE}: expected letters, digits and . _ ~ + / = -, got something else")
        _check_extra(self.extra, self.tls is not None)

    @property
    def ports(self) -> dict[str, int]:
        """The ports by what is spoken there."""
        return {"HTTP": self.http_port, "gRPC": self.grpc_port, "metrics": self.metrics_port}

    @cached_property
    def listen(self) -> ListenAddress:
        """The numeric address that the host stands for."""
        return resolve_host(self.host)

    @property
    def http_listen(self) -> ListenAddress:
        """The address of the HTTP endpoint."""
        return self.listen if self.tls is None else ListenAddress(LOOPBACK)

    @property
    def address(self) -> str:
        """The address to reach the server at from this machine, as it stands before a port."""
        return bracketed(self.listen.local_ip)

    @property
    def http_address(self) -> str:
        """The same of its HTTP endpoint."""
        return bracketed(self.http_listen.local_ip)

    def names(self, option: str) -> bool:
        """Return whether an option of tritonserver is among `extra`."""
        return any(name == option for name, _ in option_values(self.extra))


def option_values(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options among words as tritonserver reads them, without the dashes, each with its value."""
    found: list[tuple[str, str]] = []
    takes_value = False
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, sign, value = word[2:].partition("=")
            found.append((name, value))
            takes_value = not sign
        elif takes_value:
            found[-1] = (found[-1][0], word)
            takes_value = False
    return found


def tritonserver_options(
    options: ServerOptions,
    models: Path,
    plugin: Path | None,
    version_compatible: bool,
    backends: Path | None,
    region_prefix: str,
    known: frozenset[str],
) -> list[str]:
    """Return the options of tritonserver for a start.

    Args:
        options: what the user says.
        models: the repository under a path without special characters.
        plugin: library that the TensorRT backend loads.
        version_compatible: whether that backend lets plans of another release run.
        backends: folder of Triton's backends; None where the binary knows its own.
        region_prefix: what the names of the steps' shared memory begin with.
        known: the names of the options that this tritonserver has.
    """
    listen, http = options.listen, options.http_listen
    ours = [
        f"--model-repository={models}",
        f"--http-address={http.for_http}",
        f"--grpc-address={listen.for_grpc}",
        f"--metrics-address={listen.for_http}",
        f"--http-port={options.http_port}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-port={options.metrics_port}",
    ]
    # The mode in which no client can load or unload a model, and the watchdog can have one loaded anew.
    # Ready is who answers: also while another version is loaded or unloaded.
    defaults = [*POLL_OPTIONS, "--strict-readiness=false", *([f"--backend-directory={backends}"] if backends else [])]
    if not options.names("strict-model-config"):
        defaults.append("--disable-auto-complete-config")  # ours are complete; asking would start each model twice
    if not Path("/dev/nvidiactl").exists():
        defaults += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    if "http-max-input-size" in known:
        defaults.append(f"--http-max-input-size={_largest_request(models)}")
    # Doors of their own, which an environment variable of a cloud would open.
    defaults += [f"--{option}=false" for option in ("allow-sagemaker", "allow-vertex-ai") if option in known]
    ours += [word for word in defaults if not options.names(option_values([word])[0][0])]
    backend = [f"python,shm-region-prefix-name={region_prefix}"]
    backend += [f"tensorrt,plugins={plugin}"] if plugin is not None else []
    backend += ["tensorrt,version-compatible=true"] if version_compatible else []  # off unless asked for
    given = {value.partition("=")[0] for name, value in option_values(options.extra) if name == "backend-config"}
    ours += [f"--backend-config={setting}" for setting in backend if setting.partition("=")[0] not in given]
    return [*ours, *_restrictions(options), *(options.tls.options() if options.tls else []), *options.extra]


def _restrictions(options: ServerOptions) -> list[str]:
    if options.admin_key is None:
        raise CodetrError("a start needs an admin key")
    restricted = []
    for protocol, option in _RESTRICTIONS.items():
        listen = options.http_listen if protocol == "HTTP" else options.listen
        theirs = _restricted(options.extra, option)
        apis = [api for api in (PROTECTED if listen.is_loopback else PROTECTED_ELSEWHERE) if api not in theirs]
        if apis:
            restricted.append(f"--{option}={','.join(apis)}:{KEY_HEADER}={options.admin_key}")
    return restricted


def _restricted(extra: Sequence[str], option: str) -> set[str]:
    """Return the endpoints for which the user names a key of their own."""
    values = (value for name, value in option_values(extra) if name == option)
    return {api.strip() for value in values for api in value.partition(":")[0].split(",")}


def _check_extra(extra: Sequence[str], tls: bool) -> None:
    for name, value in option_values(extra):
        if ours := _ours(name):
            raise CodetrError(f"--{name} follows from {ours} of codetr serve: give that, before `--`")
        if tls and name in _TLS:
            raise CodetrError(f"--{name}: codetr serve was given certificates itself; give either those or this")
        if name == "allow-http" and value.lower() in ("false", "0"):
            raise CodetrError(f"--{name}={value}: codetr serve asks the HTTP endpoint whether the server is ready")
    for option in _RESTRICTIONS.values():
        if "health" in _restricted(extra, option) and option == _RESTRICTIONS["HTTP"]:
            raise CodetrError(f"--{option}: health cannot be shut, codetr serve asks there whether the server is ready")


def _ours(name: str) -> str | None:
    """Return the option of `codetr serve` for one of tritonserver, which takes unambiguous beginnings too."""
    if name in _OURS:
        return _OURS[name]
    candidates = [ours for ours in _OURS if len(name) > 1 and ours.startswith(name)]
    return _OURS[candidates[0]] if len(candidates) == 1 else None


def _largest_request(models: Path) -> int:
    """Return the bytes of an HTTP request with one image as large as the models accept; several share them."""
    sizes = []
    for path in models.glob("*/config.pbtxt"):
        with suppress(CodetrError):  # Triton itself says what is wrong with a configuration
            limit = parameter(read_model_config(path), "max_bytes") or ""
            sizes += [int(limit)] if limit.isdigit() else []
    return max([_HTTP_BYTES, *(sizes or [PreprocessSettings().max_bytes])]) + _ENVELOPE_BYTES
