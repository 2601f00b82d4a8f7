"""How the demos' weights were made."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from safetensors import SafetensorError, safe_open

from builder.co_dino.presets import DEMO_NETWORK as CO_DINO
from builder.family import DetectorConfig
from builder.rtdetrv2.presets import DEMO_NETWORK as RTDETRV2
from demo import WEIGHTS, Family
from demo.train.run import Settings, export_weights, train
from serving.errors import CodetrError


@dataclass(frozen=True)
class Recipe:
    """A demo's network and the settings of its runs: the first from random weights, a later one from the result."""

    variant: DetectorConfig
    runs: tuple[Settings, ...]


RECIPES: dict[Family, Recipe] = {
    "co_dino": Recipe(
        CO_DINO, (Settings(4700), Settings(3200, seed=3, learning_rate=2e-4, warmup_steps=100, flat_share=0.2))
    ),
    "rtdetrv2": Recipe(RTDETRV2, (Settings(8400, learning_rate=5e-4, warmup_steps=1000, flat_share=0.5),)),
}


def train_demo(
    family: Family,
    output: Path,
    *,
    command: str = "codetr train-demo",
    device: str = "cuda",
    workers: int = 15,
    console: Console | None = None,
    minutes: float = math.inf,
) -> Path | None:
    """Train a demo's detector as its shipped weights were; an earlier call with the same `output` is continued.

    Args:
        family: of the detector.
        output: folder of checkpoints and weights.
        command: noted in the weights' file.
        device: as `train` has it.
        workers: processes that draw images.
        console: where progress and losses are shown.
        minutes: after how long to stop at a checkpoint.

    Returns:
        The path of the float16 weights, in `output`; None if time was up before they were there.

    Raises:
        CodetrError: a file there is not of such a training.
    """
    recipe, until = RECIPES[family], time.monotonic() + 60 * minutes
    names = [f"run-{number}.safetensors" for number in range(1, len(recipe.runs))] + [WEIGHTS[family].name]
    seeds = " and ".join(str(settings.seed) for settings in recipe.runs)
    for name in names:
        _check_own(output / name)
    start: str | None = None
    for name, settings in zip(names, recipe.runs, strict=True):
        path = output / name
        if not path.exists():
            left = (until - time.monotonic()) / 60
            detector = train(
                recipe.variant,
                output / path.stem,
                replace(settings, weights=start),
                device=device,
                workers=workers,
                console=console,
                minutes=left,
            )
            if detector is None:
                return None
            export_weights(detector, path, {"training_command": command, "data_seed": seeds})
        start = str(path)
    return output / names[-1]


def _check_own(path: Path) -> None:
    """Refuse weights of somebody else, which would be taken for those of an earlier call."""
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            is_own = "training_command" in (file.metadata() or {})
    except (OSError, SafetensorError):
        is_own = False
    if not is_own:
        raise CodetrError(f"{path} is not of an earlier training; move it away, or name another output folder")
