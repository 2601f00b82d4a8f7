from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from builder.checkpoint import load_detector
from builder.detector import Detector
from demo.train.data import batches
from demo.train.matching import iou_and_giou
from demo.train.run import Settings, export_weights, train
from serving.errors import CodetrError
from tests.demo.train.tiny import CO_DINO, RTDETRV2

VARIANTS = [pytest.param(CO_DINO, id="co_dino"), pytest.param(RTDETRV2, id="rtdetrv2")]
SETTINGS = Settings(
    steps=60, batch_size=2, seed=5, distinct_images=2, learning_rate=1e-3, warmup_steps=10, ema_decay=0.8
)


def quiet(variant: Any, folder: Path, settings: Settings, **kwargs: float) -> Detector | None:
    return train(variant, folder, settings, device="cpu", workers=0, console=Console(quiet=True), **kwargs)


def run(variant: Any, folder: Path, settings: Settings) -> str:
    shown = io.StringIO()
    detector = train(variant, folder, settings, device="cpu", workers=0, console=Console(file=shown, width=400))
    assert detector is not None
    export_weights(detector, folder / "weights.safetensors", {"data_seed": str(settings.seed)})
    return shown.getvalue()


def assert_same_weights(one: Detector | None, other: Detector | None) -> None:
    assert one is not None
    assert other is not None
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize(
    "variant",
    [
        # twice as long; its matching, losses and steps are tested with the others
        pytest.param(CO_DINO, id="co_dino", marks=pytest.mark.slow),
        pytest.param(RTDETRV2, id="rtdetrv2"),
    ],
)
def test_two_images_are_learned_by_heart(variant: Any, tmp_path: Path) -> None:
    """The exported weights, loaded as a user loads them, find what the two images show."""
    # Enough steps that no object hangs on the order of a sum: with 60 the result depends on the number of threads.
    shown = run(variant, tmp_path, replace(SETTINGS, steps=100 if variant is CO_DINO else 150))
    assert "decoder/giou" in shown
    detector = load_detector(variant, tmp_path / "weights.safetensors")
    images, sizes, targets = next(batches(variant, SETTINGS.seed, 2, range(1)))
    boxes, _, labels = detector(images, sizes)
    centred = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)
    assert targets.present.any()
    for image in range(2):
        count = int(targets.present[image].sum())
        iou, _ = iou_and_giou(targets.boxes[image, :count, None], centred[image, None, : count + 2])
        right = labels[image, : count + 2] == targets.labels[image, :count, None]
        found = (iou * right).amax(1)
        assert found.min() > 0.4
        assert found.mean() > 0.75


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_in_pieces_ends_as_one_in_one_piece(variant: Any, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=4, distinct_images=None)
    whole = quiet(variant, tmp_path / "whole", settings)
    pieces = [quiet(variant, tmp_path / "pieces", settings, minutes=0) for _ in range(4)]  # a step each
    assert pieces[:3] == [None] * 3
    assert_same_weights(whole, pieces[3])


def test_an_interrupted_run_continues_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, steps=6)
    monkeypatch.setattr("demo.train.run.SAVE_EVERY", 2)
    whole = quiet(CO_DINO, tmp_path / "whole", settings)

    taken = []

    def stop(*_: object) -> None:
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("demo.train.run._progress.__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        quiet(CO_DINO, tmp_path / "cut", settings)
    resumed = quiet(CO_DINO, tmp_path / "cut", settings)
    assert len(taken) == 3 + 4  # steps 1 to 3, then again from the checkpoint of step 2
    assert_same_weights(whole, resumed)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    quiet(RTDETRV2, tmp_path, replace(SETTINGS, steps=1))
    with pytest.raises(CodetrError, match="choose another output folder"):
        quiet(RTDETRV2, tmp_path, replace(SETTINGS, steps=2))


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    run(CO_DINO, tmp_path / "first", replace(SETTINGS, steps=1))
    weights = tmp_path / "first" / "weights.safetensors"
    still = replace(SETTINGS, steps=1, learning_rate=0.0, weights=str(weights))
    run(CO_DINO, tmp_path / "second", still)
    assert_same_weights(
        load_detector(CO_DINO, weights), load_detector(CO_DINO, tmp_path / "second" / "weights.safetensors")
    )
