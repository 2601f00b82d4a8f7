"""What a running server says about itself: readiness, versions, time by step, queues, failures, GPUs.

All is asked over HTTP: health, configurations and statistics at the server's own port, gauges at that of its metrics.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from perf.server.metrics import Sample, read_samples, step_time
from serving import health
from serving.contract import DETECTOR, ENSEMBLE, STEPS, model_name
from serving.errors import CodetrError
from serving.manifest import ABOUT
from serving.runtime import KEY_VARIABLE, admin_headers, find_server
from serving.versions import name_and_version

Json = dict[str, Any]

_METRICS_PORT = 8002
_PENDING = "nv_inference_pending_request_count"
_REFUSALS = "codetr_images_total"
_DECODED = "decoded"


class RestrictedError(CodetrError):
    """An endpoint that the server opens only to who has its key."""


@dataclass(frozen=True)
class Address:
    """Where a server's state is asked for; `http` is host:port, `metrics` a URL, `timeout` in seconds."""

    http: str
    metrics: str
    timeout: float
    headers: Mapping[str, str]

    @classmethod
    def of(cls, url: str | None, metrics_url: str | None, timeout: float) -> Address:
        """Return the address of a server at host:port, which may be any port of one that this user runs here.

        `metrics_url` is host:port of a metrics page, or an http:// URL of one.

        Raises:
            CodetrError: the url is no host:port, or that of the metrics page none.
        """
        given = (url or "localhost:8000").removeprefix("http://").rstrip("/")
        try:
            host, port = urlsplit(f"//{given}").hostname, urlsplit(f"//{given}").port
        except ValueError:
            host, port = None, None
        if not host or not port or "/" in given:
            raise CodetrError(f"url {url!r}: expected host:port of the server's HTTP endpoint, such as localhost:8000")
        host = f"[{host}]" if ":" in host else host
        record = find_server(given)
        http_port, metrics_port = (record.http_port, record.metrics_port) if record else (port, _METRICS_PORT)
        http_address = f"{host}:{http_port}"
        metrics = metrics_page(metrics_url or f"{host}:{metrics_port}")
        return cls(http_address, metrics, timeout, admin_headers(http_address, "http"))


def metrics_page(url: str) -> str:
    """Return the URL of a metrics page; `url` is it, or host:port, whose page is /metrics as Triton has it.

    Raises:
        CodetrError: it is neither.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        has_place = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", url)
        is_right = has_place and parts.scheme in ("http", "https")
    except ValueError:  # a port that is none
        is_right = False
    if not is_right:
        raise CodetrError(f"metrics_url {url!r}: expected such as http://localhost:8002/metrics or localhost:8002")
    return parts._replace(path=parts.path if len(parts.path) > 1 else "/metrics").geturl()


def metrics_beside(address: str) -> str:
    """Return the URL of the metrics page of the server behind host:port, its HTTP's or gRPC's.

    It is known of a server that this user runs on this machine, and Triton's port on the same host for any other.
    """
    record = find_server(address)
    host = address.rpartition("/")[2].rpartition(":")[0]  # of a name that gRPC resolves a url stands there
    return metrics_page(f"{host}:{record.metrics_port if record else _METRICS_PORT}")


@dataclass(frozen=True)
class StepStatus:
    """One model in one span of time: means in milliseconds of a request, sizes in images of an inference."""

    requests: int
    failures: int
    images: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    batch: float


@dataclass(frozen=True)
class ModelStatus:
    """One model: since the server started, in the last `Status.seconds`, and what waits in its queue now."""

    name: str
    since_start: StepStatus
    lately: StepStatus | None
    waiting: int | None


@dataclass(frozen=True)
class EngineStatus:
    """One ensemble.

    Attributes:
        name: its name.
        about: what its configuration tells of the engine, such as variant and precision.
        models: it and its steps.
        refused_images: since the server started, by cause.
        version: of the engine that answers; "" where the server does not tell.
        loading: another version, which is loaded beside it; "" where there is none.
    """

    name: str
    about: Mapping[str, str]
    models: Sequence[ModelStatus]
    refused_images: Mapping[str, int]
    version: str = ""
    loading: str = ""


@dataclass(frozen=True)
class GpuStatus:
    """One GPU: shares in 0..1, memory in bytes, power in watts; None where the server does not tell."""

    uuid: str
    utilization: float | None
    memory_used: float | None
    memory_total: float | None
    power: float | None


@dataclass(frozen=True)
class Status:
    """A server at one moment.

    Attributes:
        address: host:port of its HTTP endpoint.
        ready: what its readiness says, which on Triton 2.51 tells of no dead step.
        faults: what is wrong, one line each, by an inference through each engine; None where none was asked for.
        seconds: the span of `lately`; None without an earlier reading.
        notes: what could not be asked, and why.
    """

    address: str
    server: str
    version: str
    ready: bool
    faults: Sequence[str] | None
    seconds: float | None
    engines: Sequence[EngineStatus]
    gpus: Sequence[GpuStatus]
    notes: Sequence[str]

    def to_json(self) -> Json:
        """Return it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """What the server answered at one moment."""

    at: float  # seconds of a monotonic clock
    server: Json
    ready: bool
    statistics: Mapping[str, Json]  # by model
    configs: Mapping[str, Json]  # by ensemble
    samples: Sequence[Sample]
    notes: Sequence[str]


def check(address: Address, model: str | None = None) -> list[str]:
    """Return what is wrong with a server, one line a fault, by an image through each engine or that of `model`."""
    names = [model] if model else _engine_names(_statistics(address, [])) or [ENSEMBLE]
    return health.check_service(address.http, names, address.timeout, address.headers)


def read(address: Address, model: str | None = None) -> Reading:
    """Ask the server once; what it does not tell is noted.

    Raises:
        CodetrError: no Triton answers there.
    """
    notes: list[str] = []
    server = ask(address, "/v2")
    ready = _get(address.http, "/v2/health/ready", address.timeout, {})[0] == http.client.OK
    statistics = _statistics(address, notes)
    names = [model] if model else _engine_names(statistics) or [ENSEMBLE]
    configs = {name: _config(address, name, notes) for name in names}
    return Reading(monotonic(), server, ready, statistics, configs, _samples(address, notes), notes)


def status(
    now: Reading, address: Address, before: Reading | None = None, faults: Sequence[str] | None = None
) -> Status:
    """Return the state at `now`, with rates since the reading `before`."""
    return Status(
        address.http,
        str(now.server.get("name", "")),
        str(now.server.get("version", "")),
        now.ready,
        faults,
        now.at - before.at if before else None,
        [_engine(name, now, before) for name in now.configs],
        _gpus(now.samples),
        now.notes,
    )


def ask(address: Address, path: str) -> Json:
    """Return the server's answer as JSON.

    Raises:
        RestrictedError: the server wants its key.
        CodetrError: there is no such answer; says why.
    """
    code, body = _get(address.http, path, address.timeout, address.headers)
    try:
        answer = json.loads(body)
        message = str(answer.get("error", f"status {code}"))
    except (ValueError, AttributeError):
        raise CodetrError(
            f"no Triton answers HTTP at {address.http}: {path} gives no JSON; name its HTTP port"
        ) from None
    if code == http.client.OK:
        return dict(answer)
    raise (RestrictedError if "restricted" in message else CodetrError)(message)


def _get(host: str, path: str, timeout: float, headers: Mapping[str, str]) -> tuple[int, bytes]:
    try:
        return health.ask(host, path, timeout, headers=headers)
    except (OSError, http.client.HTTPException) as error:
        raise CodetrError(
            f"no server answers HTTP at {host}: {error or type(error).__name__}; `codetr serve` starts one"
        ) from error


def _statistics(address: Address, notes: list[str]) -> dict[str, Json]:
    try:
        return {each["name"]: each for each in ask(address, "/v2/models/stats").get("model_stats", [])}
    except RestrictedError:
        notes.append(f"time by step is not shown: the server wants its key for statistics; set {KEY_VARIABLE}")
    except CodetrError as error:
        notes.append(f"time by step is not shown: {error}")
    return {}


def _config(address: Address, name: str, notes: list[str]) -> Json:
    try:
        return ask(address, f"/v2/models/{name}/config")
    except CodetrError as error:
        notes.append(f"what {name} is made of is not shown: {error}")
        return {}


def _samples(address: Address, notes: list[str]) -> list[Sample]:
    parts = urlsplit(address.metrics)
    try:
        code, body = _get(parts.netloc, parts.path or "/", address.timeout, {})
        if code == http.client.OK:
            return read_samples(body.decode(errors="replace"))
        reason = f"status {code}"
    except CodetrError as error:
        reason = str(error).partition("; ")[0]
    notes.append(f"queues, refused images and GPUs are not shown: no metrics at {address.metrics} ({reason})")
    return []


def _engine_names(statistics: Mapping[str, Json]) -> list[str]:
    """Return the names of the ensembles, of which another version may be loaded beside as NAME.N."""
    ending = model_name(DETECTOR, "")
    detectors = (name.removesuffix(ending) for name in statistics if name.endswith(ending))
    return sorted({name_and_version(each)[0] for each in detectors if name_and_version(each)[0] in statistics})


def _engine(name: str, now: Reading, before: Reading | None) -> EngineStatus:
    config = now.configs[name]
    served = [name, *(_steps(config) or [model_name(role, name) for role in STEPS])]
    waiting = {sample.labels.get("model"): int(sample.value) for sample in now.samples if sample.name == _PENDING}
    models = [
        ModelStatus(
            model,
            _step({}, now.statistics[model]),
            _step(before.statistics.get(model, {}), now.statistics[model]) if before else None,
            waiting.get(model),
        )
        for model in served
        if model in now.statistics
    ]
    version = str(now.statistics.get(name, {}).get("version", ""))
    ending = model_name(DETECTOR, "")
    beside = (each.removesuffix(ending) for each in now.statistics if each.endswith(ending) and each not in served)
    loading = next((str(number) for base, number in map(name_and_version, beside) if base == name), "")
    refused = _refused(now.samples, served[1])
    return EngineStatus(name, _about(config), models, refused, version, loading)


def _steps(config: Json) -> list[str]:
    """Return the models that an ensemble's configuration calls: pre-processing, detector, post-processing."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    return [str(step.get("model_name", "")) for step in steps]


def _step(before: Json, after: Json) -> StepStatus:
    step, images = step_time(before, after)
    if step.requests < 0:  # loaded anew in between, with which Triton forgets
        step, images = step_time({}, after)
    phases = step.queue, step.compute_input, step.compute_infer, step.compute_output
    return StepStatus(step.requests, step.failures, images, *phases, step.batch)


def _about(config: Json) -> dict[str, str]:
    try:
        about = json.loads(config["parameters"][ABOUT]["string_value"])
        return {str(key): str(value) for key, value in about.items()}
    except (LookupError, ValueError, TypeError, AttributeError):  # built by an earlier version
        return {}


def _refused(samples: Sequence[Sample], model: str) -> dict[str, int]:
    refused: dict[str, int] = {}
    for sample in samples:
        cause = sample.labels.get("outcome", _DECODED)
        if sample.name == _REFUSALS and sample.labels.get("model") == model and cause != _DECODED and sample.value:
            refused[cause] = refused.get(cause, 0) + int(sample.value)
    return refused


def _gpus(samples: Sequence[Sample]) -> list[GpuStatus]:
    gauges = ("nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_power_usage")
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        if sample.name in gauges and "gpu_uuid" in sample.labels:
            found.setdefault(sample.labels["gpu_uuid"], {})[sample.name] = sample.value
    return [GpuStatus(uuid, *(values.get(gauge) for gauge in gauges)) for uuid, values in found.items()]
