"""`codetr bench engine`: PyTorch and the engine beside each other, by image size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from builder.precision import ENGINE_PRECISIONS
from codetr.bench_preprocess import parse_size
from codetr.config import ConfigOption, ExecuteOption, given_variant, read_variant
from codetr.shown import say
from serving.errors import CodetrError

if TYPE_CHECKING:
    from builder.family import DetectorConfig
    from perf.engine.run import EngineCase
    from perf.engine.targets import Target


def bench_engine(
    variant: Annotated[
        str | None, typer.Argument(help="A variant's name; a repository knows its own.", show_default=False)
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Several variants, separated by commas, side by side with --random-weights.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint, .pth or .safetensors.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Measure speed alone.")] = False,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Input WIDTHxHEIGHT, repeatable; without it the sizes of published figures, else the usual."),
    ] = None,
    engine: Annotated[Literal["torch", "onnx", "tensorrt"], typer.Option(help="Engine to build.")] = "torch",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "fp8"] | None,
        typer.Option(help="Of the engine; fp16 on a GPU, fp32 on a CPU."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images in one inference, repeatable; else 1, of a repository's engines the most."),
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Measure the engines of this repository instead of building any.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of one engine of the repository; all of them without it.")] = None,
    builds: Annotated[Path, typer.Option(help="Folder that the engines are built into.")] = Path("runs/engines"),
    output: Annotated[Path, typer.Option(help="Folder for engine.json, engine.md and traces.")] = Path(
        "runs/bench/engine"
    ),
    profile: Annotated[bool, typer.Option("--profile", help="Time by part and by kernel, and traces.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement, after its warm-up.")] = 10.0,
    tf32: Annotated[bool, typer.Option("--tf32", help="Allow TF32 in float32 products.")] = False,
    compare_images: Annotated[
        Path | None, typer.Option(help="Images to compare boxes on; generated shapes without it.")
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"] | None, typer.Option(help="Refuse to measure anywhere else than here.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the sizes that --output has already.")] = False,
    config: ConfigOption = None,
    execute_config: ExecuteOption = False,
) -> None:
    """Measure latency, rate and memory of PyTorch in float32 and half precision and of the engine."""
    if (weights is None) != random_weights:
        raise CodetrError("give either --weights FILE, or --random-weights to measure speed without a checkpoint")
    from codetr.stages import Stages
    from perf.engine.report import PICTURE, RESULTS
    from perf.engine.run import Options, run
    from perf.records import check_output

    check_output(output, RESULTS, ["engine.md"], [weights], others=[PICTURE])
    if repository is None:
        chosen = _chosen(variant, variants, weights, config, execute_config)
        targets = _new(
            chosen, [parse_size("--size", each) for each in size or ()], engine, precision, batch or [1], builds
        )
    else:
        if variants is not None:
            raise CodetrError("--variants builds engines; with --repository leave it out")
        targets = _existing(variant, repository, name, batch or [], read_variant(config, execute_config))
    options = Options(weights, seconds, tf32, profile, compare_images)
    run(targets, options, output, print_case, Stages(Console(stderr=True)), device, resume)
    say(f"wrote {output / 'engine.json'} and {output / 'engine.md'}")


def _chosen(
    variant: str | None, variants: str | None, weights: Path | None, config: Path | None, execute_config: bool
) -> list[DetectorConfig]:
    """Return the networks to build engines of."""
    if variants is None:
        if variant is None and config is None:
            raise CodetrError(
                "give a VARIANT to build engines of (`codetr variants` lists them), --variants, --config, or "
                "--repository"
            )
        return [given_variant(variant, config, execute_config)]
    if variant is not None or config is not None:
        raise CodetrError("--variants names all variants: leave out VARIANT and --config")
    if weights is not None:
        raise CodetrError("one checkpoint is of one variant: give --variants with --random-weights")
    return [given_variant(name.strip(), None, execute_config) for name in variants.split(",") if name.strip()]


def _new(
    variants: list[DetectorConfig],
    sizes: list[tuple[int, int]],
    engine: str,
    precision: str | None,
    batches: list[int],
    builds: Path,
) -> list[Target]:
    from perf.engine.targets import new_targets

    chosen = None if precision is None else ENGINE_PRECISIONS[precision]
    return new_targets(variants, sizes, engine, chosen, batches, builds)


def _existing(
    variant: str | None, repository: Path, name: str | None, batches: list[int], network: DetectorConfig | None
) -> list[Target]:
    from builder.pipeline.recheck import check_network
    from perf.engine.targets import existing_targets

    targets = existing_targets(repository, name, batches)
    others = {target.variant.name for target in targets} - {variant}
    if variant is not None and others:
        raise CodetrError(f"{repository} holds {', '.join(sorted(others))}, not {variant}; leave VARIANT out")
    if network is not None:
        for target in targets:
            check_network(repository, target.name, network)
    return targets


def print_case(case: EngineCase) -> None:
    """Print one parsable line a case."""
    found = case.agreement
    values = {
        "variant": case.variant,
        "box_ap": "-" if case.box_ap is None else f"{case.box_ap:.1f}",
        "size": f"{case.width}x{case.height}",
        "batch": case.batch,
        "implementation": case.implementation,
        "precision": case.precision,
        "name": case.name or "-",
        "device": case.device,
        "p50_ms": f"{case.p50_ms:.3f}",
        "p90_ms": f"{case.p90_ms:.3f}",
        "p99_ms": f"{case.p99_ms:.3f}",
        "spread": f"{case.spread:.2%}",
        "calls": case.calls,
        "stable": "yes" if case.stable else "no",
        "images_per_s": f"{case.images_per_s:.2f}",
        "memory_gib": "-" if case.memory_gib is None else f"{case.memory_gib:.2f}",
        "sm_mhz": case.sm_mhz or "-",
        "gflop": f"{case.gflop:.1f}",
        "gemm_share": f"{case.gemm_share:.1%}",
        "matched": f"{found['matched']:.1%}" if found else "-",
        "score_difference": f"{found['max_score_difference']:.1e}" if found else "-",
        "build_s": "-" if case.build_seconds is None else f"{case.build_seconds:.0f}",
    }
    say(" ".join(f"{name}={value}" for name, value in values.items()))
    if case.trtexec:
        say(case.trtexec)
