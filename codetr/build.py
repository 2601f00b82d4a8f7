"""`codetr build`: from a checkpoint to a verified repository that tritonserver loads as it is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from builder.precision import ENGINE_PRECISIONS
from codetr.config import ConfigOption, ExecuteOption
from codetr.unused import refuse_unused
from serving.errors import CodetrError

if TYPE_CHECKING:
    from rich.table import Table

    from builder.pipeline.build import BuildOptions


def build(
    repository: Annotated[Path, typer.Option(help="Folder to write; tritonserver loads it as it is.")],
    variant: Annotated[
        str | None,
        typer.Argument(help="A variant's name; `codetr variants` lists them. Or --config.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    execute_config: ExecuteOption = False,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint, .pth or .safetensors.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names of a fine-tuned checkpoint, one a line; the variant's else.")
    ] = None,
    random_weights: Annotated[bool, typer.Option(help="Seeded random weights instead, to measure speed.")] = False,
    engine: Annotated[str, typer.Option(help="onnx, torch or tensorrt.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 or bf16; int8 (onnx, tensorrt) or fp8 (torch, tensorrt) of some layers.")
    ] = "fp32",
    height: Annotated[int | None, typer.Option(help="Input height in pixels; the variant's by default.")] = None,
    width: Annotated[int | None, typer.Option(help="Input width in pixels; the variant's by default.")] = None,
    batch: Annotated[int, typer.Option(help="Largest batch.")] = 4,
    static_batch: Annotated[bool, typer.Option(help="Only --batch, instead of 1 to it; not served above 1.")] = False,
    verify_images: Annotated[Path | None, typer.Option(help="Images to verify on; generated shapes else.")] = None,
    verify_annotations: Annotated[Path | None, typer.Option(help="Their COCO annotations, to compare AP too.")] = None,
    skip_verification: Annotated[
        bool, typer.Option(help="Keep the engine unverified; random weights in half precision cannot be compared.")
    ] = False,
    name: Annotated[str, typer.Option(help="Of the ensemble; others beside it in the repository stay.")] = "codetr",
    version: Annotated[
        int, typer.Option(min=1, help="Beside the versions that are there; `codetr switch` has it served.")
    ] = 1,
    instances: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many processes serve it, those of torch on a GPU by one engine: by default 2 on each GPU, 1 of a "
            "plan that Python runs, 1 on CPUs.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the engine of this name and version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the compilers' own logs.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the verification's report and the log of a failed build.")
    ] = None,
    plugin_nodes: Annotated[
        bool, typer.Option("--plugin-nodes", help="Only write model.onnx with TensorRT plugin nodes, for trtexec.")
    ] = False,
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            help="int8, fp8: groups of layers (backbone-convs, backbone-linears, neck, projections, encoder-ffn) or "
            "patterns of modules, with commas between; may be repeated. The engine's own groups if not given."
        ),
    ] = None,
    calibration_images: Annotated[
        Path | None, typer.Option(help="int8, fp8: pictures like those to come; drawn shapes else.")
    ] = None,
    calibration_count: Annotated[int, typer.Option(help="int8, fp8: pictures that are read at most.")] = 64,
    calibration_method: Annotated[
        Literal["entropy", "percentile", "max"] | None,
        typer.Option(help="int8, fp8: how the ranges of activations are found; percentile for int8, max for fp8."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="int8, fp8: measure each group alone, and keep the fastest set.")
    ] = False,
    ap_budget: Annotated[float, typer.Option(help="With --search: AP 50:95, 0..1, that the set may lose.")] = 0.005,
    nms: Annotated[
        Literal["soft", "hard", "none"] | None, typer.Option(help="Suppression in the server; the variant's else.")
    ] = None,
    iou_threshold: Annotated[float | None, typer.Option(help="Overlap from which a box suppresses another.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Soft NMS drops what it has brought below this.")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="Only scores above it go into suppression.")] = None,
    class_agnostic: Annotated[
        bool | None, typer.Option(help="Let boxes of different classes suppress each other.")
    ] = None,
    optimization_level: Annotated[int | None, typer.Option(help="TensorRT: 0 (fast build) to 5.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="TensorRT: file of kernel timings.")] = None,
    version_compatible: Annotated[
        bool, typer.Option(help="TensorRT: for programs that load its lean runtime; no later release serves the plan.")
    ] = False,
    hardware_compatible: Annotated[bool, typer.Option(help="TensorRT: also for other GPUs.")] = False,
    fp32_accumulation: Annotated[bool, typer.Option(help="TensorRT: of half-precision products.")] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="TensorRT: float32 products of 10-bit mantissas.")] = False,
    workspace_gib: Annotated[
        float | None, typer.Option(help="TensorRT: the most GPU memory that a kernel may use beside its tensors.")
    ] = None,
    frontend: Annotated[
        Literal["onnx", "torch-tensorrt"] | None,
        typer.Option(help="TensorRT: what makes its network; torch-tensorrt if installed, else onnx."),
    ] = None,
    tensorrt_python: Annotated[
        Path | None,
        typer.Option(help="TensorRT: a Python that has it, 8.5 to 11; else CODETR_TENSORRT_PYTHON's, or this one."),
    ] = None,
    mark_outputs: Annotated[
        list[str] | None,
        typer.Option(
            help="TensorRT: pattern of modules whose outputs stay the plan's, so that it fuses nothing there."
        ),
    ] = None,
    window_attention: Annotated[
        Literal["plugin", "written-out"],
        typer.Option(help="TensorRT: half-precision attention of Swin by our plugin, or in operators that it fuses."),
    ] = "plugin",
    plan_backend: Annotated[
        Literal["python", "tensorrt"] | None,
        typer.Option(help="TensorRT: backend of Triton that runs the plan; python for a plan of TensorRT 8."),
    ] = None,
) -> None:
    """Build an engine, compare it with the float32 detector, and write a repository around it."""
    from builder.engines.tensorrt import TensorRTSettings
    from builder.engines.tensorrt.plugin_onnx import trtexec_line
    from builder.families import family_of
    from builder.pipeline.build import BuildOptions, build_repository, write_plugin_onnx
    from builder.pipeline.export import InputSpec
    from builder.quantise.groups import words_in
    from builder.quantise.recipe import Recipe
    from codetr.config import given_variant
    from codetr.derived import with_classes, with_suppression
    from codetr.shown import line, say, shown
    from codetr.stages import Stages, own_console
    from serving.versions import name_and_version, versioned

    if precision not in ENGINE_PRECISIONS:
        raise CodetrError(f"--precision {precision!r} is not known; expected {', '.join(ENGINE_PRECISIONS)}")
    if (weights is None) != random_weights:
        raise CodetrError("give either --weights FILE, or --random-weights to measure speed without a checkpoint")
    if static_batch and batch > 1 and not plugin_nodes:
        raise CodetrError(
            "a static batch above 1 cannot be served: the server asks for every batch from 1 on; leave out "
            "--static-batch or give --batch 1"
        )
    if skip_verification and not (search or plugin_nodes):
        refuse_unused(
            " with --skip-verification",
            advice="leave out the one or the other",
            verify_images=verify_images,
            verify_annotations=verify_annotations,
        )
    if name_and_version(name)[1] != 1:
        base, number = name_and_version(name)
        raise CodetrError(f"--name {name}: a version is a number of its own; give --name {base} --version {number}")
    chosen = given_variant(variant, config, execute_config)
    if classes is not None:
        chosen = with_classes(chosen, classes)
    chosen = with_suppression(
        chosen,
        plugin_nodes,
        kind=nms,
        iou_threshold=iou_threshold,
        min_score=min_score,
        score_threshold=score_threshold,
        class_agnostic=class_agnostic,
    )
    default_height, default_width = chosen.input_size
    spec = InputSpec(
        default_height if height is None else height,
        default_width if width is None else width,
        batch,
        not static_batch,
    )
    for warning in family_of(chosen).warnings(chosen, spec.height, spec.width):
        say(f"note: {warning}", err=True)
    options = BuildOptions(
        variant=chosen,
        spec=spec,
        weights=weights,
        engine=engine,
        precision=ENGINE_PRECISIONS[precision],
        recipe=Recipe(
            tuple(word for text in quantize or () for word in words_in(text)),
            calibration_method,
            calibration_images,
            calibration_count,
            search,
            ap_budget,
        ),
        verify_images=verify_images,
        verify_annotations=verify_annotations,
        skip_verification=skip_verification,
        name=versioned(name, version),
        instances=instances,
        overwrite=overwrite,
        verbose=verbose,
        report=report,
        tensorrt=TensorRTSettings(
            optimization_level,
            timing_cache,
            version_compatible,
            hardware_compatible,
            fp32_accumulation,
            tf32,
            workspace_gib,
            frontend=frontend,
            python=tensorrt_python,
            marked_modules=tuple(mark_outputs or ()),
            backend=plan_backend,
            window_attention=window_attention,
        ),
    )
    _check_outputs(repository, options, classes)
    console = own_console()
    if plugin_nodes:
        with _signals_end_it() as end_again:
            path = write_plugin_onnx(options, repository, Stages(console, end_again))
        console.print(line(shown(path, "bold"), " is ready:"), soft_wrap=True)
        console.print(line(trtexec_line(path, spec)), soft_wrap=True)
        return
    with _signals_end_it() as end_again:
        result = build_repository(options, repository, Stages(console, end_again))
    if search:
        console.print(search_table(repository, options.name))
    if result is not None:
        console.print(line(f"engine and detector agree: {result}"), soft_wrap=True)
    console.print(line(shown(repository, "bold"), _advice(repository, name, version)), soft_wrap=True)


def _check_outputs(repository: Path, options: BuildOptions, classes: Path | None) -> None:
    """Refuse to write where something else lies, or in the place of what the build reads."""
    from builder.engines.tensorrt.plugin_onnx import FILE_NAME
    from builder.engines.tensorrt.timing_cache import check as check_timing_cache
    from codetr_client.outputs import check_folder, refuse_inside, refuse_overwriting
    from serving.contract import MODELS, model_name

    report, timing_cache = options.report, options.tensorrt.timing_cache
    for folder in (repository, report):
        if folder is not None:
            check_folder(folder)
    sources = (options.weights, classes, options.verify_images, options.verify_annotations, options.recipe.images)
    refuse_inside((repository / model_name(model, options.name) for model in MODELS), sources)
    refuse_overwriting([repository / FILE_NAME, *([timing_cache] if timing_cache else [])], sources)
    if timing_cache is not None:
        check_timing_cache(timing_cache)
    if report is not None:
        refuse_inside([report / f"{repository.absolute().name}-{options.name}-verification"], sources)


def _advice(repository: Path, name: str, version: int) -> str:
    """Return what to do with the version of an engine that was built: to serve it, or to have it served."""
    from serving.contract import ENSEMBLE
    from serving.versions import read_choice

    served = read_choice(repository, name).version
    if version == served:
        return f" is ready: codetr serve --repository {repository}"
    advice = f": version {version} of {name} is beside version {served}: codetr switch {repository} --to {version}"
    return advice if name == ENSEMBLE else f"{advice} --name {name}"


def search_table(repository: Path, name: str) -> Table:
    """Return the trials of the search that a repository's engine came from."""
    from rich.table import Table

    from builder.quantise.search import restored
    from codetr.shown import shown
    from serving.manifest import read_manifest

    found = restored(read_manifest(repository, name)["quantisation"]["search"])
    table = Table(
        "quantised",
        "layers",
        "AP lost",
        "ms",
        "",
        caption=f"AP lost on {found.measured}; the budget is {found.budget:g}",
    )
    for trial in found.trials:
        table.add_row(*(shown(cell) for cell in found.cells(trial)))
    return table


@contextmanager
def _signals_end_it() -> Iterator[Callable[[], None]]:
    """Have SIGTERM, which `docker stop` sends, end a `with` block as Ctrl-C does.

    Gives a call that ends it once more, for a compiler may have taken the exception for one of its own.
    """
    seen: list[int] = []

    def end(number: int, frame: object) -> None:
        seen.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    def end_again() -> None:
        if seen:
            end(seen[-1], None)

    former = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it may be ignored
        former[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield end_again
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
