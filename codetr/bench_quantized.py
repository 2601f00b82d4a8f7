"""`codetr bench quantized`: what INT8 or FP8 costs and gains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench_quantized(
    variant: Annotated[str, typer.Argument(help="A variant's name; AP is of one of the shapes, as the demos.")],
    output: Annotated[Path, typer.Option(help="Folder for ENGINE-VARIANT.json.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint; the demo's if not given.")] = None,
    random_weights: Annotated[
        bool, typer.Option(help="Seeded random weights instead, for time and the encoder's error.")
    ] = False,
    height: Annotated[int | None, typer.Option(help="Input height in pixels; the variant's by default.")] = None,
    width: Annotated[int | None, typer.Option(help="Input width in pixels; the variant's by default.")] = None,
    engine: Annotated[Literal["onnx", "torch", "tensorrt"], typer.Option(help="torch is measured in fp8.")] = "onnx",
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            help="Groups of layers or patterns of modules, with commas between; each time it is given is a recipe of "
            "its own."
        ),
    ] = None,
    method: Annotated[
        Literal["entropy", "percentile", "max"] | None, typer.Option(help="How ranges are found.")
    ] = None,
    calibration_images: Annotated[Path | None, typer.Option(help="Pictures; drawn shapes else.")] = None,
    calibration_count: Annotated[int, typer.Option(help="Pictures that are read at most.")] = 64,
    images: Annotated[int, typer.Option(min=1, help="Drawn shapes that AP is of.")] = 200,
) -> None:
    """Measure AP and time of one detector unquantised, quantised throughout, and by recipes."""
    from builder.families import family_of
    from builder.quantise.groups import words_in
    from builder.quantise.recipe import Recipe
    from builder.variants import get_variant
    from codetr.shown import new_console
    from codetr.stages import Stages, own_console
    from demo import WEIGHTS
    from perf.accuracy.quantised import Case, measure, naive
    from perf.records import check_output
    from serving.errors import CodetrError

    chosen = get_variant(variant)
    if random_weights and weights is not None:
        raise CodetrError("give either --weights FILE or --random-weights")
    if not random_weights:
        weights = weights or {f"{family}_demo": path for family, path in WEIGHTS.items()}.get(variant)
        if weights is None:
            raise CodetrError(f"the variant {variant} needs --weights, its checkpoint, or --random-weights")
    size = (chosen.input_size[0] if height is None else height, chosen.input_size[1] if width is None else width)
    family_of(chosen).check_size(chosen, *size, engine == "tensorrt")
    check_output(output, f"{engine}-{variant}.json", (), [weights, calibration_images])
    sets = [words_in(words) for words in quantize or ()] or [()]
    recipes = [Recipe(words, method, calibration_images, calibration_count) for words in sets]
    console = new_console()

    def show(case: Case) -> None:
        ap, ms = (f"{value:.4f}" if value is not None else "-" for value in (case.ap, case.ms))
        found = f"found_again={case.found_again:.3f} back={case.found_back:.3f}"
        console.print(f"{case.precision}: ap={ap} ms={ms} {found}  {case.name}", soft_wrap=True, markup=False)

    if engine != "torch":  # whose FP8 is for linear layers alone
        recipes.insert(0, naive())
    measure(chosen, weights, engine, images, recipes, output, Stages(own_console()), show, size)
