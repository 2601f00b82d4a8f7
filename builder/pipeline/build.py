"""One call from checkpoint to a verified, deployable repository."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from builder.checkpoint import DTYPES, CheckpointError, load_detector, random_detector
from builder.detector import Detector
from builder.engines import EngineError, Runner, first_line
from builder.engines.eager import EagerDetector, eager_device
from builder.engines.kinds import BuiltEngine, EngineKind, engine_kind
from builder.engines.tensorrt import TensorRTSettings
from builder.families import family_of
from builder.family import DetectorConfig
from builder.pipeline.export import InputSpec, decompose_attention, export_detector
from builder.pipeline.logs import compiler_logs, keep_text
from builder.pipeline.machine import check_disk, check_gpu_memory, remedy_for
from builder.pipeline.manifest import describe
from builder.pipeline.report import place_report, write_report
from builder.pipeline.repository import check_destination, check_writable, write_repository
from builder.pipeline.samples import Samples, check_samples, image_paths, sample_images
from builder.pipeline.verify import Comparison, Limits, Verification, limits_of, verify
from builder.precision import EnginePrecision, option_of
from builder.quantise.groups import chosen_layers, groups_of
from builder.quantise.recipe import PURPOSE, Calibrated, Quantisation, Recipe, calibration_pictures, quantised, words_of
from builder.quantise.search import search
from builder.quantise.trials import Bench, annotated, ap_of, search_samples
from serving.contract import ENSEMBLE
from serving.errors import CodetrError
from serving.manifest import PLAN_BACKEND
from serving.versions import name_and_version

# Why the verification of less than float32 says nothing of them; docs/quantisation.md has DETR R50's figures.
RANDOM_WEIGHTS = (
    "; random weights give candidates that are nearly equal, which any rounding puts in another order or class: build "
    "from a checkpoint, or skip the verification where only speed is measured"
)

# Shows one stage of a build while it runs, by its name.
Stage = Callable[[str], AbstractContextManager[object]]
# The same with the compilers' logs kept, and full memory and the like as one line.
Running = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class BuildOptions:
    """What to build; sizes in pixels."""

    variant: DetectorConfig
    spec: InputSpec
    weights: Path | None = None  # None: random weights of `seed`
    seed: int = 0
    engine: str = "onnx"
    precision: EnginePrecision = "float32"
    recipe: Recipe = field(default_factory=Recipe)  # of int8 and fp8
    verify_images: Path | None = None  # None: generated shapes
    verify_annotations: Path | None = None  # COCO annotations of these images
    skip_verification: bool = False
    name: str = ENSEMBLE  # of the ensemble; a repository may hold several, and several versions of each
    instances: int | None = None  # of the engine, on GPUs on each of them; None: as `write_repository` has it
    overwrite: bool = False
    verbose: bool = False  # show the compilers' own logs
    report: Path | None = None  # folder for the verification's report and a failed build's log; None: the repository's
    tensorrt: TensorRTSettings = field(default_factory=TensorRTSettings)

    def __post_init__(self) -> None:
        # the form of window attention is plugin nodes' too, which are asked for as the onnx engine's
        others = replace(self.tensorrt, window_attention=TensorRTSettings.window_attention)
        if not engine_kind(self.engine).has_settings and others != TensorRTSettings():
            raise _without_settings(self.engine)
        if self.instances is not None and self.instances < 1:
            raise EngineError(f"instances: expected 1 or more, got {self.instances}")
        if not self.is_quantised and self.recipe != Recipe():
            raise EngineError(
                f"what is quantised and how is for int8 and fp8, and the precision is {option_of(self.precision)}; ask "
                "for one of those, or leave it out"
            )

    @property
    def is_quantised(self) -> bool:
        """Whether some layers are to be INT8 or FP8."""
        return self.precision in ("int8", "fp8")


def _without_settings(engine: str) -> EngineError:
    return EngineError(f"TensorRT's settings are not for the {engine} engine; use the tensorrt engine")


def build_repository(
    options: BuildOptions, repository: Path, stage: Stage = lambda name: nullcontext()
) -> Verification | None:
    """Build the engine, compare it with the float32 detector, and only then write `repository`.

    Returns:
        The comparison's figures, which are also in the repository's manifest; None if it was skipped.

    Raises:
        CodetrError: something in `options` is not possible, memory or a disk is full, or the engine does not reproduce
            the detector; nothing has been written.
    """
    check_destination(repository, options.name, options.overwrite)
    kind = engine_kind(options.engine)
    _check_kind(options, kind)
    device = eager_device(kind.module.device())  # says that there is no GPU before anything slow begins
    if options.is_quantised and kind.has_settings and options.tensorrt.frontend is None:
        options = replace(options, tensorrt=replace(options.tensorrt, frontend="onnx"))
    _check_tools(options, kind)
    check_samples(options.verify_images, options.verify_annotations)
    _prepare_report(options.report, repository)
    with _running(stage, "load weights"):
        reference = _load_or_log(options, repository)
    options = replace(options, variant=reference.variant)  # now with the checkpoint's class names
    samples = sample_images(options.variant.class_names or (), options.verify_images, options.verify_annotations)
    check_disk(reference, repository)
    if device != "cpu":
        check_gpu_memory(reference, options.spec)
    logs = partial(compiler_logs, options.verbose, _beside(options, repository, "build.log"))
    with tempfile.TemporaryDirectory(prefix="codetr-build-") as folder:
        running = partial(_running, stage, logs=logs)
        engine, quantisation = _make_engine(reference, kind, options, samples, Path(folder, kind.file_name), running)
        comparison = report = None
        if not options.skip_verification:
            with _running(stage, "verify"):
                run = kind.module.load(engine.file, options.spec, engine.device, options.tensorrt)
                limits = limits_of(options.precision, None if quantisation is None else quantisation.describe())
                comparison = compare_engine(reference.to(device), run, samples, options.spec, limits)
                report = write_report(
                    Path(folder, "report"), comparison, samples, _describe(options, engine, comparison, quantisation)
                ).parent
            _check(comparison, report, options, repository)
        with _running(stage, "write repository"):
            write_repository(
                repository,
                engine,
                options.variant,
                options.spec,
                _describe(options, engine, comparison, quantisation),
                name=options.name,
                instances=options.instances,
                report=report,
                overwrite=options.overwrite,
            )
    return None if comparison is None else comparison.result


def _check_kind(options: BuildOptions, kind: EngineKind) -> None:
    """Refuse what no machine can build."""
    kind.check_precision(options.precision)
    if not kind.has_settings and options.tensorrt != TensorRTSettings():
        raise _without_settings(kind.name)
    _check_size(options, tensorrt=kind.name == "tensorrt")


def _check_tools(options: BuildOptions, kind: EngineKind) -> None:
    """Refuse what this machine has no compiler, no arithmetic or no pictures for."""
    kind.module.check(options.variant.uses_operator, options.tensorrt)
    if options.precision in ("int8", "fp8"):
        kind.module.check_quantised(options.precision, options.tensorrt)
        if options.recipe.images is not None:
            image_paths(options.recipe.images, PURPOSE)


def _make_engine(
    reference: Detector,
    kind: EngineKind,
    options: BuildOptions,
    samples: Samples,
    path: Path,
    running: Running,
) -> tuple[BuiltEngine, Quantisation | None]:
    """Write the engine of the float32 detector to `path`; return it and what is quantised in it."""
    detector = copy.deepcopy(reference).deploy().set_precision(DTYPES[kind.around(options.precision)])
    detector = detector.to(kind.module.export_device(options.tensorrt))
    quantisation = None
    if options.precision in ("int8", "fp8"):
        quantisation = quantise(reference, detector, kind, options, samples, running)
        detector = quantised(detector, quantisation, kind)
    with running("export"):
        program = export_detector(kind.module.prepared(detector), options.spec)
    with running("build engine"):
        return kind.module.build(program, path, options.tensorrt), quantisation


def quantise(
    reference: Detector,
    detector: Detector,
    kind: EngineKind,
    options: BuildOptions,
    samples: Samples,
    running: Running,
) -> Quantisation:
    """Return what is quantised: calibrated on pictures, and searched for if that is asked for.

    Args:
        reference: the float32 detector.
        detector: the same, deployed, in the precision of what is not quantised.
        kind: of the engine.
        options: with the recipe.
        samples: that the engine is verified on.
        running: shows a stage.
    """
    assert options.precision in ("int8", "fp8")
    recipe, names, spec = options.recipe, options.variant.class_names or (), options.spec
    groups = tuple(groups_of(detector))
    words = (recipe.layers or groups) if recipe.search else words_of(recipe, kind, detector)
    chosen_layers(detector, words)  # a word that chooses nothing is no matter for a compiler's log
    with running("calibrate"):
        pictures = calibration_pictures(recipe, names, spec, options.variant.rules.pixels)
        deployed = copy.deepcopy(reference).deploy().to(eager_device(kind.module.device()))
        calibrated = Calibrated(deployed, options.precision, words, recipe, pictures)
    if not recipe.search:
        return calibrated.quantisation(words)
    with running("search"):
        chosen = search_samples(samples, options.verify_images is not None, names)
        chosen, measured = annotated(chosen, deployed, spec)
        expected = ap_of(EagerDetector(deployed), chosen, spec, deployed)
        bench = Bench(kind, detector, calibrated, spec, options.tensorrt, chosen, expected)
        found = search(words, bench.measure, recipe.ap_budget, measured)
    return replace(calibrated.quantisation(found.best.groups), search=found)


def write_plugin_onnx(options: BuildOptions, folder: Path, stage: Stage = lambda name: nullcontext()) -> Path:
    """Write `folder`/model.onnx with the TensorRT plugin as nodes, for trtexec; nothing can verify it here.

    Returns:
        The file's path.

    Raises:
        CodetrError: something in `options` is not possible, memory or a disk is full, or the file exists.
    """
    from builder.engines.tensorrt import plugin_onnx

    path = folder / plugin_onnx.FILE_NAME
    if options.engine != "onnx":
        raise EngineError(f"plugin nodes are not for the {options.engine} engine; use the onnx engine")
    if not options.variant.uses_operator:
        raise EngineError(
            f"{options.variant.name} has no deformable attention as our operator, so there is no plugin node to write; "
            "an ordinary build of the onnx engine gives its ONNX file"
        )
    if options.precision == "int8" or options.precision == "fp8":
        raise EngineError("plugin nodes alone are not quantised; build the tensorrt engine, or use fp16")
    _check_has_effect(options)
    check_writable(folder)
    if path.exists() and not options.overwrite:
        raise EngineError(f"{path} exists; name another folder, or overwrite it")
    _check_size(options, tensorrt=True)
    _prepare_report(options.report, folder)
    with _running(stage, "load weights"):
        detector = _load_or_log(options, folder)
    check_disk(detector, folder)
    logs = partial(compiler_logs, options.verbose, _beside(options, folder, "build.log"))
    with _running(stage, "export", logs):
        program = export_detector(detector.deploy().set_precision(DTYPES[options.precision]), options.spec)
        program = decompose_attention(program, window_plugin=options.tensorrt.window_attention == "plugin")
    with _running(stage, "write ONNX", logs):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as aside:
            plugin_onnx.build(program, Path(aside, path.name))
            Path(aside, path.name).replace(path)
    return path


def _check_size(options: BuildOptions, tensorrt: bool) -> None:
    variant = options.variant
    family_of(variant).check_size(variant, options.spec.height, options.spec.width, tensorrt)


def _check_has_effect(options: BuildOptions) -> None:
    """Refuse what only a repository has, where none is written."""
    given = {
        "name": name_and_version(options.name)[0] != ENSEMBLE,
        "version": name_and_version(options.name)[1] != 1,
        "instances": options.instances is not None,
        "verify_images": options.verify_images is not None,
        "verify_annotations": options.verify_annotations is not None,
        "skip_verification": options.skip_verification,
    }
    useless = [option for option, is_given in given.items() if is_given]
    if useless:
        raise EngineError(
            f"{', '.join(useless)}: without effect, since plugin nodes go into a model.onnx alone; leave it out"
        )


@contextmanager
def _running(stage: Stage, name: str, logs: Callable[[], AbstractContextManager[None]] = nullcontext) -> Iterator[None]:
    """Show a stage while the `with` block runs; full memory and what the system refuses become a CodetrError."""
    with stage(name), logs():
        try:
            yield
        except Exception as error:
            remedy = remedy_for(error)
            if remedy is None:
                raise
            raise CodetrError(f"{name!r} failed: {first_line(error)}; {remedy}") from error


def load(options: BuildOptions) -> Detector:
    """Return the detector of `options` in float32, from its weights or with random ones."""
    if options.weights is None:
        return random_detector(options.variant, options.seed)
    return load_detector(options.variant, options.weights)


def _load_or_log(options: BuildOptions, repository: Path) -> Detector:
    """Return the detector; where its checkpoint does not fit, every key is in a log that the error names."""
    try:
        return load(options)
    except CheckpointError as error:
        if not error.faults:
            raise
        log = keep_text("\n".join((str(options.weights), *error.faults, "")), _beside(options, repository, "build.log"))
        raise CheckpointError(f"{error}\nall {len(error.faults)} keys are in {log}", error.faults) from error


def compare_engine(detector: Detector, run: Runner, samples: Samples, spec: InputSpec, limits: Limits) -> Comparison:
    """Compare an engine with its float32 detector; see `verify`."""
    smallest = 1 if spec.is_dynamic else spec.max_batch_size
    batches = (smallest, spec.max_batch_size)
    rules = detector.variant.rules
    return verify(detector, run, samples, spec.height, spec.width, batches, limits, rules)


def _prepare_report(folder: Path | None, repository: Path) -> None:
    """Make the folder of the report, before anything long."""
    if folder is None:
        return
    if folder.resolve().is_relative_to(repository.resolve()):
        raise CodetrError(
            f"report {folder} lies in the repository, where tritonserver takes folders for models; name another"
        )
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _beside(options: BuildOptions, repository: Path, what: str) -> Path:
    """Return the path for what a failed build leaves: in the folder of the report, or else beside the repository."""
    folder = options.report or repository.absolute().parent
    return folder / f"{repository.absolute().name}-{options.name}-{what}"


def _check(comparison: Comparison, report: Path, options: BuildOptions, repository: Path) -> None:
    """Refuse an engine that does not agree; its report is kept; where a folder is given for it, always."""
    disagrees = bool(comparison.result.faults(comparison.limits))
    if disagrees or options.report is not None:
        kept = place_report(report, _beside(options, repository, "verification"))
        hint = f"; the report with pictures is in {kept}"
        if options.weights is None and options.precision != "float32":
            hint += RANDOM_WEIGHTS
        comparison.check(hint)


def _describe(
    options: BuildOptions, engine: BuiltEngine, comparison: Comparison | None, quantisation: Quantisation | None
) -> dict[str, Any]:
    result = None if comparison is None else comparison.result
    manifest = describe(options.variant, options.weights, options.seed, engine, options.precision, options.spec, result)
    if quantisation is not None:
        manifest["quantisation"] = quantisation.describe()
    if engine.kind.has_settings:
        manifest["version_compatible"] = options.tensorrt.version_compatible
        manifest["hardware_compatible"] = options.tensorrt.hardware_compatible
        manifest["frontend"] = engine.frontend
        manifest["plugin_layers"] = engine.plugin_layers
        manifest["window_attention"] = options.tensorrt.window_attention
        manifest[PLAN_BACKEND] = "tensorrt" if engine.kind.code is None else "python"
    return manifest
