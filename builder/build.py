"""One call from checkpoint to a verified, deployable repository."""

from __future__ import annotations

import copy
import importlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from builder.checkpoint import DTYPES, Precision, load_detector, random_detector
from builder.co_dino.config import Variant
from builder.co_dino.model import CoDINO
from builder.engines import EngineError, Runner
from builder.engines.tensorrt import TensorRTSettings
from builder.export import InputSpec, export_detector
from builder.logs import compiler_logs
from builder.manifest import describe
from builder.report import FIGURES, write_report
from builder.repository import check_destination, write_repository
from builder.samples import Samples, sample_images
from builder.verify import LIMITS, Comparison, Verification, verify
from serving.contract import ENSEMBLE
from serving.errors import CodetrError

ENGINES = ("onnx", "torch", "tensorrt")
# Files of the weights' size that exist at once while an engine is made and copied; on a GPU the float32 reference, the
# detector that was exported, and the engine.
WORKING_COPIES = 3
# Of one image's pixel: Swin-L and R50 in PyTorch float32 take 1900 bytes above their weights on an H200 at any size
# from 608x608 on, most of it in the encoder, and half as much in float16.
ACTIVATION_BYTES = 1900
GPU_WORKSPACE = 2**30  # for the compilers' trials of kernels

# Shows one stage of a build while it runs, by its name.
Stage = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class BuildOptions:
    """What to build; sizes in pixels."""

    variant: Variant
    spec: InputSpec
    weights: Path | None = None  # None: random weights of `seed`
    seed: int = 0
    engine: str = "onnx"
    precision: Precision = "float32"
    verify_images: Path | None = None  # None: generated shapes
    verify_annotations: Path | None = None  # COCO annotations of these images
    skip_verification: bool = False
    name: str = ENSEMBLE  # of the ensemble; a repository may hold several
    overwrite: bool = False
    verbose: bool = False  # show the compilers' own logs
    tensorrt: TensorRTSettings = field(default_factory=TensorRTSettings)

    def __post_init__(self) -> None:
        if self.engine != "tensorrt" and self.tensorrt != TensorRTSettings():
            raise EngineError(f"TensorRT's settings are not for the {self.engine} engine; use --engine tensorrt")


def build_repository(
    options: BuildOptions, repository: Path, stage: Stage = lambda name: nullcontext()
) -> Verification | None:
    """Build the engine, compare it with the float32 detector, and only then write `repository`.

    Returns:
        The comparison's figures, which are also in the repository's manifest; None if it was skipped.

    Raises:
        CodetrError: something in `options` is not possible, or the engine does not reproduce the detector; nothing
            has been written.
    """
    check_destination(repository, options.name, options.overwrite)
    engine = _engine(options)
    device = engine.device()  # says that there is no GPU before anything slow begins
    with stage("load weights"):
        reference = load(options)
    options = replace(options, variant=reference.variant)  # now with the checkpoint's class names
    samples = sample_images(options.variant.class_names or (), options.verify_images, options.verify_annotations)
    _check_disk(reference, repository)
    if device != "cpu":
        _check_gpu_memory(reference, options.spec)
    logs = partial(compiler_logs, options.verbose, _beside(repository, options.name, "build.log"))
    with tempfile.TemporaryDirectory(prefix="codetr-build-") as folder:
        engine_file = Path(folder) / engine.FILE_NAME
        with stage("export"), logs():
            detector = copy.deepcopy(reference).set_precision(DTYPES[options.precision]).to(device)
            program = export_detector(detector, options.spec)
        with stage("build engine"), logs():
            if options.engine == "tensorrt":
                engine.build(program, engine_file, options.tensorrt)
            else:
                engine.build(program, engine_file)
        comparison = report = None
        if not options.skip_verification:
            with stage("verify"):
                run = engine.load(engine_file, options.spec)
                comparison = compare_engine(reference.to(device), run, samples, options.spec, options.precision)
                report = write_report(
                    Path(folder, "report"), comparison, samples, _describe(options, comparison)
                ).parent
            _check(comparison, report, repository, options.name)
        with stage("write repository"):
            _write(options, engine_file, engine.extra_files(), comparison, report, repository)
    return None if comparison is None else comparison.result


def write_plugin_onnx(options: BuildOptions, folder: Path, stage: Stage = lambda name: nullcontext()) -> Path:
    """Write `folder`/model.onnx with the TensorRT plugin as nodes, for trtexec; nothing can verify it here.

    Returns:
        The file's path.

    Raises:
        CodetrError: something in `options` is not possible, or the file exists.
    """
    from builder.engines import plugin_onnx

    path = folder / plugin_onnx.FILE_NAME
    if options.engine != "onnx":
        raise EngineError(f"plugin nodes are not for the {options.engine} engine; use --engine onnx")
    if path.exists() and not options.overwrite:
        raise EngineError(f"{path} exists; name another folder, or add --overwrite")
    with stage("load weights"):
        detector = load(options).set_precision(DTYPES[options.precision])
    logs = partial(compiler_logs, options.verbose, _beside(folder, options.name, "build.log"))
    with stage("export"), logs():
        program = export_detector(detector, options.spec)
    with stage("write ONNX"), logs():
        folder.mkdir(parents=True, exist_ok=True)
        plugin_onnx.build(program, path)
    return path


def _engine(options: BuildOptions) -> Any:
    """Return the module of the engine, whose names `builder.engines` lists."""
    if options.engine not in ENGINES:
        raise EngineError(f"engine {options.engine!r} is not known; expected {', '.join(ENGINES)}")
    engine = importlib.import_module(f"builder.engines.{options.engine}")
    if options.precision not in engine.PRECISIONS:
        raise EngineError(
            f"the {options.engine} engine has no precision {options.precision!r}; expected "
            f"{', '.join(engine.PRECISIONS)}"
        )
    return engine


def load(options: BuildOptions) -> CoDINO:
    """Return the detector of `options` in float32, from its weights or with random ones."""
    if options.weights is None:
        return random_detector(options.variant, options.seed)
    return load_detector(options.variant, options.weights)


def compare_engine(detector: CoDINO, run: Runner, samples: Samples, spec: InputSpec, precision: str) -> Comparison:
    """Compare an engine with its float32 detector by the limits of its precision; see `builder.verify.verify`."""
    smallest = 1 if spec.is_dynamic else spec.max_batch_size
    batches = (smallest, spec.max_batch_size)
    return verify(detector, run, samples, spec.height, spec.width, batches, LIMITS[precision])


def keep_report(report: Path, repository: Path, name: str) -> Path:
    """Copy the report of a failed verification beside the repository that will not be; return the copy.

    Where nothing can be written there, it goes to a folder for temporary files.
    """
    kept = _beside(repository, name, "verification")
    try:
        if (kept / FIGURES).is_file():
            shutil.rmtree(kept)  # of an earlier attempt
        return Path(shutil.copytree(report, kept))
    except OSError:
        return Path(shutil.copytree(report, Path(tempfile.mkdtemp(prefix="codetr-")) / kept.name))


def _beside(repository: Path, name: str, what: str) -> Path:
    """Return the path beside a repository for what a failed build of the engine `name` leaves."""
    return repository.absolute().with_name(f"{repository.absolute().name}-{name}-{what}")


def _check_gpu_memory(detector: CoDINO, spec: InputSpec) -> None:
    """Refuse to start where the GPU has no room for detector, engine and the activations of the largest batch."""
    activations = spec.max_batch_size * spec.height * spec.width * ACTIVATION_BYTES
    needed = WORKING_COPIES * _size(detector) + activations + GPU_WORKSPACE
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        raise CodetrError(
            f"{torch.cuda.get_device_name()} has {free / 2**30:.1f} GiB free, the build needs about "
            f"{needed / 2**30:.1f} GiB; end what else runs there (nvidia-smi lists it), or choose a smaller --batch or "
            "size"
        )


def _size(detector: CoDINO) -> int:
    """Return the bytes of a detector's weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())


def _check_disk(detector: CoDINO, repository: Path) -> None:
    """Refuse to start where neither the engine made aside nor its copy would find room."""
    existing = next(folder for folder in (repository, *repository.absolute().parents) if folder.is_dir())
    for folder in (existing, Path(tempfile.gettempdir())):
        free, needed = shutil.disk_usage(folder).free, WORKING_COPIES * _size(detector)
        if free < needed:
            raise CodetrError(
                f"{folder} has {free / 2**30:.1f} GiB free, the build needs {needed / 2**30:.1f} GiB; free some, or "
                "set TMPDIR and --repository to another disk"
            )


def _check(comparison: Comparison, report: Path, repository: Path, name: str) -> None:
    """Refuse an engine that does not agree; its report is kept."""
    if comparison.result.faults(comparison.limits):
        comparison.check(hint=f"; the report with pictures is in {keep_report(report, repository, name)}")


def _describe(options: BuildOptions, comparison: Comparison | None) -> dict[str, Any]:
    result = None if comparison is None else comparison.result
    return describe(
        options.variant, options.weights, options.seed, options.engine, options.precision, options.spec, result
    )


def _write(
    options: BuildOptions,
    engine_file: Path,
    extra_files: Sequence[Path],
    comparison: Comparison | None,
    report: Path | None,
    repository: Path,
) -> None:
    variant, spec = options.variant, options.spec
    manifest = _describe(options, comparison)
    names = None
    if options.engine == "tensorrt":
        from builder.engines.tensorrt import output_names

        names = output_names()
        manifest["version_compatible"] = options.tensorrt.version_compatible
        manifest["hardware_compatible"] = options.tensorrt.hardware_compatible
    write_repository(
        repository,
        engine_file=engine_file,
        kind=options.engine,
        height=spec.height,
        width=spec.width,
        max_batch_size=spec.max_batch_size,
        max_detections=variant.max_detections,
        class_names=variant.class_names or (),
        manifest=manifest,
        name=options.name,
        output_names=names,
        extra_files=extra_files,
        report=report,
        overwrite=options.overwrite,
    )
