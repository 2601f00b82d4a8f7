"""The measure of canvases, on the tiny network of DETR's reference inputs and on what the original answered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from builder import load_detector
from builder.detr.model import Detr
from builder.parts.boxes import cxcywh_to_xyxy
from codetr import cli
from perf.accuracy.canvas import answer, drawn, measure, run, scaled_detector
from serving.errors import CodetrError
from serving.rules import Pixels

ODD, CANVAS = (101, 139), (128, 160)  # of the cases `odd` and `odd_on_canvas`, one image


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> dict[str, Any]:
    with np.load(data_dir / "golden_detr_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def detector(golden: dict[str, Any]) -> Detr:
    """The network of the reference inputs, with a rule by which images of `ODD` stay as they are."""
    weights = {key[3:]: torch.from_numpy(golden[key]) for key in golden if key.startswith("sd/")}
    detector = load_detector(json.loads(bytes(golden["config_json"]).decode()), weights)
    assert isinstance(detector, Detr)
    pixels = Pixels("fit", antialias=True, shortest_edge=min(ODD), longest_edge=max(ODD))
    detector.variant = replace(detector.variant, rules=replace(detector.variant.rules, pixels=pixels))
    return detector


def images(golden: dict[str, Any]) -> list[Any]:
    odd = golden["odd/image_rgb_u8/0"]
    return [odd, odd[:, ::-1].copy()]


def test_a_canvas_moves_the_boxes_as_it_moves_those_of_the_original(golden: dict[str, Any], detector: Detr) -> None:
    boxes = [cxcywh_to_xyxy(torch.from_numpy(golden[f"{case}/head/boxes_cxcywh"])) for case in ("odd", "odd_on_canvas")]
    moved = (boxes[0] - boxes[1]).abs()
    (shift,) = measure(detector, images(golden)[:1] * 2, "landscape", [CANVAS])
    assert (shift.exact, shift.box_of_another_image) == (2, 0.0)
    assert shift.box == pytest.approx(float(moved.mean()), abs=2e-5)
    assert shift.box_max == pytest.approx(float(moved.max()), abs=2e-5)
    features = [torch.from_numpy(golden[f"{case}/backbone/layer4"]) for case in ("odd", "odd_on_canvas")]
    expected = float((features[0] - features[1]).norm() / features[0].norm())
    assert shift.features == pytest.approx(expected, rel=1e-3)


def test_a_canvas_of_the_exact_size_moves_nothing(golden: dict[str, Any], detector: Detr) -> None:
    (shift,) = measure(detector, images(golden), "landscape", [ODD])
    assert (shift.exact, shift.box, shift.box_max, shift.score, shift.same_labels) == (2, 0, 0, 0, 1)
    assert shift.box_of_another_image > 0.01


def test_a_canvas_without_room_takes_a_smaller_size(golden: dict[str, Any], detector: Detr) -> None:
    assert answer(detector, images(golden)[0]).size == ODD
    assert answer(detector, images(golden)[0], (100, 100)).size == (73, 100)
    (shift,) = measure(detector, images(golden), "landscape", [(100, 100)])
    assert (shift.exact, shift.features, shift.inner_features) == (0, None, None)
    assert shift.box > 0


def test_drawn_images_are_of_their_orientation() -> None:
    assert all(image.shape[0] < image.shape[1] for image in drawn("landscape", 4))
    assert all(image.shape[0] > image.shape[1] for image in drawn("portrait", 4))


def test_an_image_matters_in_scaled_random_weights(detector: Detr) -> None:
    scaled = scaled_detector(detector.variant)
    (shift,) = measure(scaled, drawn("landscape", 2), "landscape", [CANVAS])
    assert shift.box_of_another_image > 1e-3


def test_the_record_says_what_was_measured(detector: Detr, tmp_path: Path) -> None:
    shifts: list[Any] = []
    record = run(detector, "random", 2, [CANVAS], tmp_path / "new/canvas.json", shifts.append)
    assert json.loads((tmp_path / "new/canvas.json").read_text(encoding="utf-8")) == record
    assert (record["kind"], record["weights"], record["variant"]) == ("canvas", "random", detector.variant.name)
    assert record["complete"]
    assert [(row["orientation"], row["images"]) for row in record["rows"]] == [("landscape", 2), ("portrait", 2)]
    assert len(shifts) == 2


def test_what_was_measured_before_an_interrupt_is_kept(detector: Detr, tmp_path: Path) -> None:
    def interrupt(shift: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(detector, "random", 2, [CANVAS], tmp_path / "canvas.json", interrupt)
    record = json.loads((tmp_path / "canvas.json").read_text(encoding="utf-8"))
    assert (record["complete"], len(record["rows"])) == (False, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["detr_r50"], "give either --weights FILE, or --random-weights", id="no weights"),
        pytest.param(["co_dino_demo", "--random-weights"], "co_dino_demo is no DETR", id="another family"),
        pytest.param(["--random-weights", "--size", "1344"], "expected WIDTHxHEIGHT", id="size"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["bench", "canvas", *words])
    assert isinstance(result.exception, CodetrError)
    assert message in str(result.exception)
