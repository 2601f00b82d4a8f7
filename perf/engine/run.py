"""How fast a detector is: eager PyTorch in float32 and in half precision beside its engine, by image size."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from builder.checkpoint import DTYPES, load_detector, random_detector
from builder.detector import Detector
from builder.engines import Engine, EngineOutput
from builder.engines.eager import EagerDetector
from builder.engines.kinds import engine_kind
from builder.engines.tensorrt.plans import ChildPlan
from builder.operators.cuda import load_cuda_operator
from builder.pipeline.build import BuildOptions, Stage, build_repository
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import inputs_of, load_engine
from builder.pipeline.samples import sample_images
from builder.pipeline.verify import fit, overall, run_batched
from builder.precision import EnginePrecision, Precision
from model_repository.torch_runner import float32_products
from perf.engine import trtexec
from perf.engine.flops import TOTAL, count_flops
from perf.engine.profile import profile
from perf.engine.published import published, published_ms
from perf.engine.report import KIND, PYTORCH, RESULTS, write
from perf.engine.targets import Target, check
from perf.latency import MIN_CALLS, Latency, gemm_rate, latency_of, measure_latency, sm_clock_mhz, used_memory
from perf.machine import header
from serving.errors import CodetrError
from serving.manifest import read_manifest

NOISE_SEED = 0


@dataclass(frozen=True)
class Options:
    """How to measure."""

    weights: Path | None = None  # None: random ones, of which nothing but the speed says anything
    seconds: float = 10.0  # of each measurement, after its warm-up
    tf32: bool = False  # float32 matrix products and convolutions of the PyTorch detector with 10-bit mantissas
    profile: bool = False
    compare_images: Path | None = None  # None: generated shapes


@dataclass(frozen=True)
class EngineCase:
    """One way to run the detector at one size."""

    variant: str
    implementation: str  # "PyTorch", or the kind of engine
    precision: str
    device: str
    width: int  # pixels
    height: int
    batch: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    spread: float  # relative
    calls: int
    stable: bool  # the warm-up ended because the median stood still
    images_per_s: float
    memory_gib: float | None  # of the GPU: weights, work space, CUDA graph; None on a CPU
    sm_mhz: int | None  # the GPU's clock at the end
    gflop: float
    gemm_tflops: float  # a second, of a large matrix product in this precision, measured in the same run
    gemm_share: float  # of that rate, at the median latency
    # How the best candidates compare with the first case's: the fields of `builder.pipeline.verify.Agreement`. None for
    # that case, and with random weights.
    agreement: dict[str, float] | None
    published_ms: float | None  # on other hardware, for reference
    published_on: str | None = None  # that hardware
    family: str | None = None  # of the variant
    box_ap: float | None = None  # published, in percent
    build_seconds: float | None = None
    name: str = ""  # of the engine, in a repository that was there
    trtexec: str | None = None  # the line that measures the same plan
    trtexec_ms: float | None = None  # its median


def run(
    targets: Sequence[Target],
    options: Options,
    output: Path,
    on_case: Callable[[EngineCase], None],
    stage: Stage,
    device: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Measure every target, write `engine.json` and `engine.md` to `output` after each case, and return the JSON.

    Ctrl-C ends the measuring; what was measured is written all the same.

    Args:
        targets: from `new_targets` or `existing_targets`.
        options: how to measure.
        output: a folder; made if it is not there. Traces and trtexec's log go there too.
        on_case: hears of each case as it comes.
        stage: shows what takes long.
        device: "cuda" or "cpu", to be sure that the engines run there.
        resume: keep the targets that earlier runs have finished in `output`.

    Raises:
        CodetrError: something asked for is not possible, a build failed, or the GPU's memory is too small. What was
            measured before is written.
    """
    place = check(targets, options.weights, device)
    record = {**header(KIND), **_settings(options, place), "complete": False, "cases": [], "profiles": []}
    wanted = _continue(record, targets, output) if resume else targets
    output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, place, output, stage, record["profiles"])
    bench.known = {_key(case) for case in record["cases"]}
    try:
        with float32_products(options.tf32):
            for target in wanted:
                for case in bench.measure(target):
                    record["cases"].append(asdict(case))
                    bench.known.add(_key(record["cases"][-1]))
                    on_case(case)
                    write(record, output)
        record["complete"] = True
    except KeyboardInterrupt:
        print("interrupted: keeping what was measured")
    write(record, output)
    return record


def _settings(options: Options, device: str) -> dict[str, Any]:
    return {
        "device": device,
        "weights": options.weights.name if options.weights else None,
        "seconds": options.seconds,
        "tf32": options.tf32,
        "cuda": torch.version.cuda,
    }


def _continue(record: dict[str, Any], targets: Sequence[Target], output: Path) -> list[Target]:
    """Take over what earlier runs have finished in `output`; return the targets that are left."""
    from perf.report import load_record  # brings plotting along

    if not (output / RESULTS).is_file():
        return list(targets)
    earlier = load_record(output / RESULTS, KIND)
    for key in ("machine", "device", "weights", "seconds", "tf32"):
        if earlier.get(key) != record[key]:
            raise CodetrError(
                f"{output / RESULTS} has another {key} than this run, so it cannot be resumed: name another output"
            )
    record["earlier_commands"] = [*earlier.get("earlier_commands", []), earlier["command"]]
    finished = {_key(case) for case in earlier["cases"] if case["implementation"] != PYTORCH}
    for kind in ("cases", "profiles"):
        record[kind].extend(each for each in earlier[kind] if any(_key(each)[:4] == key[:4] for key in finished))
    return [target for target in targets if _target_key(target) not in finished]


def _key(case: dict[str, Any]) -> tuple[Any, ...]:
    known = tuple(case[name] for name in ("variant", "width", "height", "batch", "implementation", "precision"))
    return (*known, case.get("name", ""))


def _target_key(target: Target) -> tuple[Any, ...]:
    spec = target.spec
    name = target.name if target.exists else ""
    return target.variant.name, spec.width, spec.height, spec.max_batch_size, target.engine, target.precision, name


class Bench:
    """Measures targets one after another."""

    def __init__(
        self, options: Options, device: str, output: Path, stage: Stage, profiles: list[dict[str, Any]]
    ) -> None:
        self.options, self.device, self.output, self.stage, self.profiles = options, device, output, stage, profiles
        self.gemm_rates: dict[str, float] = {}  # operations a second, by precision
        self.known: set[tuple[Any, ...]] = set()  # cases that there are

    def measure(self, target: Target) -> Iterator[EngineCase]:
        """Yield PyTorch in float32, PyTorch in the engine's half precision, and the engine, which is built last.

        With random weights PyTorch is measured once where several engines are of one network, size and batch: with
        others each engine is compared with it.
        """
        if self.device == "cuda" and target.variant.uses_operator:
            load_cuda_operator()
        with self.stage("load weights"):
            detector = self._load_detector(target)
        target = replace(target, variant=detector.variant)  # with the checkpoint's classes
        subject = Subject.of(target)
        for precision in eager_precisions(target.around, self.device):
            if self.options.weights is None and (*_target_key(target)[:4], PYTORCH, precision, "") in self.known:
                continue
            case = self._measure(subject, PYTORCH, precision, partial(self._eager, detector, precision))
            detector.cpu()
            yield case
        seconds = self._build(target)
        manifest = read_manifest(target.repository, target.name)
        load = partial(load_engine, target.repository, target.name, manifest, target.spec.max_batch_size)
        case = self._measure(subject, target.engine, target.precision, load)
        name = target.name if target.exists else ""
        yield replace(case, build_seconds=seconds, name=name, **self._trtexec(target))

    def _load_detector(self, target: Target) -> Detector:
        if self.options.weights is None:
            return random_detector(target.variant, target.seed)
        return load_detector(target.variant, self.options.weights)

    def _eager(self, detector: Detector, precision: Precision) -> EagerDetector:
        if precision != "float32":
            detector = copy.deepcopy(detector).set_precision(DTYPES[precision])
        return EagerDetector(detector.to(self.device), self.options.tf32)

    def _build(self, target: Target) -> float | None:
        """Build the engine if there is none, and return the seconds it took."""
        if target.exists:
            return None
        options = BuildOptions(
            variant=target.variant,
            spec=target.spec,
            weights=self.options.weights,
            seed=target.seed,
            engine=target.engine,
            precision=target.precision,
            skip_verification=True,  # the comparison is part of the result
            overwrite=True,
        )
        started = time.monotonic()
        with _explained(f"building for {target.spec.width}x{target.spec.height}"):
            build_repository(options, target.repository, self.stage)
        return time.monotonic() - started

    def _measure(
        self, subject: Subject, implementation: str, precision: EnginePrecision, load: Callable[[], Engine]
    ) -> EngineCase:
        """Load one implementation, measure it and let go of it."""
        target, spec = subject.target, subject.target.spec
        plain = engine_kind(target.engine).around(precision)
        rate = self._gemm_rate(plain)  # first: what the libraries keep on the GPU is nobody's memory
        release_memory(self.device)
        before = used_memory(self.device)
        with _explained(f"{implementation} {precision} at {spec.width}x{spec.height}, batch {spec.max_batch_size}"):
            engine = load()
            latency, memory = self._latency(engine, subject, before)
            clock = sm_clock_mhz(self.device)
            agreement = self._compare(subject, engine)
            if self.options.profile and precision in (target.precision, target.around):
                self._profile(subject, implementation, engine)
        flops = subject.flops[TOTAL]
        source, figure = published(target.variant), published_ms(target.variant, spec, implementation, precision)
        return EngineCase(
            variant=target.variant.name,
            implementation=implementation,
            precision=precision,
            device=self.device,
            width=spec.width,
            height=spec.height,
            batch=spec.max_batch_size,
            p50_ms=latency.p50_ms,
            p90_ms=latency.p90_ms,
            p99_ms=latency.p99_ms,
            spread=latency.spread,
            calls=latency.calls,
            stable=latency.stable,
            images_per_s=latency.calls_per_s * spec.max_batch_size,
            memory_gib=None if memory is None else memory / 2**30,
            sm_mhz=clock,
            gflop=flops / 1e9,
            gemm_tflops=rate / 1e12,
            gemm_share=flops / (latency.p50_ms * 1e-3) / rate,
            agreement=agreement,
            published_ms=figure,
            published_on=None if figure is None or source is None else source.hardware,
            family=target.variant.family,
            box_ap=target.variant.box_ap,
        )

    def _latency(self, engine: Engine, subject: Subject, before: int | None) -> tuple[Latency, int | None]:
        """Return an engine's latency, and the bytes of the GPU that it takes above those in use `before`."""
        if isinstance(engine, ChildPlan):  # it runs elsewhere, so it is measured there
            seconds = 2 * self.options.seconds  # with its warm-up
            found = engine.measure(*subject.inputs, seconds, 4 * MIN_CALLS)
            return latency_of(found.times_ms, found.calls_per_s), found.memory
        latency = measure_latency(engine.prepare(*subject.inputs), self.device, self.options.seconds)
        after = used_memory(self.device)
        return latency, None if before is None or after is None else after - before

    def _gemm_rate(self, precision: Precision) -> float:
        if precision not in self.gemm_rates:
            self.gemm_rates[precision] = gemm_rate(DTYPES[precision], self.device)
        return self.gemm_rates[precision]

    def _compare(self, subject: Subject, engine: Engine) -> dict[str, float] | None:
        """Compare an implementation with the first one, which is float32."""
        if self.options.weights is None:
            return None
        spec = subject.target.spec
        samples = sample_images(subject.target.variant.class_names or (), self.options.compare_images)
        output = run_batched(engine, *fit(samples.images, spec.height, spec.width), spec.max_batch_size)
        if subject.expected is None:
            subject.expected = output
            return None
        return overall(subject.expected, output)._asdict()

    def _profile(self, subject: Subject, implementation: str, engine: Engine) -> None:
        target, spec = subject.target, subject.target.spec
        trace = (
            f"trace-{target.variant.name}-{implementation}-{target.precision}-"
            f"{spec.width}x{spec.height}-batch{spec.max_batch_size}.json.gz"
        )
        module = engine.detector if isinstance(engine, EagerDetector) else None
        found = profile(engine.prepare(*subject.inputs), self.device, self.output / trace, module)
        self.profiles.append({
            "variant": target.variant.name, "implementation": implementation, "precision": target.precision,
            "width": spec.width, "height": spec.height, "batch": spec.max_batch_size, "trace": trace,
            "flops": subject.flops, **asdict(found),
        })  # fmt: skip

    def _trtexec(self, target: Target) -> dict[str, Any]:
        """Return the line that measures the same plan, and its median where trtexec is there to run it."""
        if target.engine != "tensorrt":
            return {}
        spec = target.spec
        stem = f"trtexec-{target.variant.name}-{spec.width}x{spec.height}-batch{spec.max_batch_size}"
        inputs = inputs_of(read_manifest(target.repository, target.name))
        line = trtexec.command(target.file, spec, trtexec.write_sizes(spec, self.output / f"{stem}.bin"), inputs)
        try:
            return {"trtexec": line, "trtexec_ms": trtexec.run(line, self.output / f"{stem}.txt")}
        except CodetrError as error:  # our own figure stands without it
            print(error)
            return {"trtexec": line}


@dataclass
class Subject:
    """What all implementations of one target have in common."""

    target: Target
    flops: dict[str, int]
    inputs: tuple[NDArray[np.uint8], NDArray[np.int32]]
    expected: EngineOutput | None = None  # of PyTorch in float32 on the images to compare on

    @classmethod
    def of(cls, target: Target) -> Subject:
        """Return the target's operations and inputs."""
        return cls(target, count_flops(target.variant, target.spec), noise(target.spec))


def eager_precisions(precision: Precision, device: str) -> tuple[Precision, ...]:
    """Return the precisions to measure PyTorch in: float32, and the engine's or, for a float32 one on a GPU, float16.

    No CPU has fast float16 everywhere, so there it is measured only beside an engine that has it.
    """
    half: Precision = "float16" if precision == "float32" and device == "cuda" else precision
    return ("float32",) if half == "float32" else ("float32", half)


def noise(spec: InputSpec) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return images uint8 [B, H, W, 3] of noise without padding and their sizes int32 [B, 2]."""
    shape = (spec.max_batch_size, spec.height, spec.width, 3)
    images = np.random.default_rng(NOISE_SEED).integers(0, 256, shape, dtype=np.uint8)
    return images, np.array([[spec.height, spec.width]] * spec.max_batch_size, np.int32)


def release_memory(device: str) -> None:
    """Give the memory of what is not used any more back to the GPU."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn a full GPU into an error that says what did not fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CodetrError(
            f"the GPU's memory is too small for {what}; measure a smaller size or batch, or free the GPU"
        ) from error
