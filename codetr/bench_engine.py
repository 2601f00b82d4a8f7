"""`codetr bench engine`: PyTorch and the engine beside each other, by image size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from builder.precision import PRECISIONS
from codetr.bench_preprocess import parse_size
from codetr.config import ConfigOption, ExecuteOption, given_variant, read_variant
from serving.errors import CodetrError

if TYPE_CHECKING:
    from builder.family import DetectorConfig
    from perf.engine.run import EngineCase
    from perf.engine.targets import Target

# Those of the published figures.
SIZES = ("1920x1280", "1152x768", "608x608")


def bench_engine(
    variant: Annotated[
        str | None, typer.Argument(help="A variant's name; a repository knows its own.", show_default=False)
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint, .pth or .safetensors.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Measure speed alone.")] = False,
    size: Annotated[
        list[str] | None, typer.Option(help=f"Input WIDTHxHEIGHT, repeatable; {', '.join(SIZES)} without it.")
    ] = None,
    engine: Annotated[Literal["torch", "onnx", "tensorrt"], typer.Option(help="Engine to build.")] = "torch",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, typer.Option(help="Of the engine; fp16 on a GPU, fp32 on a CPU.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one inference.")] = 1,
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
    from perf.engine.run import Options, run
    from perf.records import check_output

    check_output(output, "engine.json", ["engine.md"], [weights])
    if repository is None:
        if variant is None and config is None:
            raise CodetrError(
                "give a VARIANT to build engines of (`codetr variants` lists them), --config, or --repository"
            )
        chosen = given_variant(variant, config, execute_config)
        targets = _new(chosen, [parse_size(each) for each in size or SIZES], engine, precision, batch, builds)
    else:
        targets = _existing(variant, repository, name, read_variant(config, execute_config))
    options = Options(weights, seconds, tf32, profile, compare_images)
    run(targets, options, output, print_case, Stages(Console(stderr=True)), device, resume)
    typer.echo(f"wrote {output / 'engine.json'} and {output / 'engine.md'}")


def _new(
    variant: DetectorConfig,
    sizes: list[tuple[int, int]],
    engine: str,
    precision: str | None,
    batch: int,
    builds: Path,
) -> list[Target]:
    from perf.engine.targets import new_targets

    chosen = None if precision is None else PRECISIONS[precision]
    return new_targets(variant, sizes, engine, chosen, batch, builds)


def _existing(variant: str | None, repository: Path, name: str | None, network: DetectorConfig | None) -> list[Target]:
    from builder.pipeline.recheck import check_network
    from perf.engine.targets import existing_targets

    targets = existing_targets(repository, name)
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
        "size": f"{case.width}x{case.height}",
        "batch": case.batch,
        "implementation": case.implementation,
        "precision": case.precision,
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
    typer.echo(" ".join(f"{name}={value}" for name, value in values.items()))
    if case.trtexec:
        typer.echo(case.trtexec)
