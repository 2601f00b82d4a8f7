import cv2
import numpy as np
import pytest
import torch

from builder.engines import EngineError
from builder.engines.kinds import KINDS
from builder.families import FAMILIES
from builder.pipeline.export import InputSpec
from builder.quantise.recipe import Calibrated, Recipe, calibration_pictures, quantised, words_of
from serving.errors import CodetrError
from serving.rules import DEFAULT_RULES
from tests.toy_family import SMALL, TOY, ToyDetector

SPEC = InputSpec(64, 96)
PIXELS = DEFAULT_RULES.pixels


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    torch.manual_seed(0)
    return ToyDetector(SMALL).eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(9):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((20, 30, 3), 10 * i, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "0 calibration pictures are not possible; expected at least 1"),
        ({"ap_budget": -0.1}, "an AP budget of -0.1 is not possible; expected 0 to 1"),
        ({"ap_budget": 1.0}, "expected 0 to 1, of AP 0..1"),
        ({"ap_budget": 0.01}, r"an AP budget of 0.01 is only kept by a search; ask for a search"),
        ({"ap_budget": float("nan")}, "an AP budget of nan is not possible"),
    ],
)
def test_what_is_not_possible_is_refused(wrong, words):
    with pytest.raises(EngineError, match=words):
        Recipe(**wrong)


def test_pictures_are_drawn_unless_a_folder_is_given():
    pictures = calibration_pictures(Recipe(count=3), (), SPEC, PIXELS)
    assert (len(pictures.pixels), pictures.source) == (3, "drawn shapes")
    assert [images.shape for images, _ in pictures.batches()] == [(1, 64, 96, 3)] * 3


def test_a_folders_pictures_are_taken_from_all_of_it(folder):
    pictures = calibration_pictures(Recipe(images=folder, count=3), (), SPEC, PIXELS)
    assert pictures.source == "photographs"
    assert pictures.pixels[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert pictures.sizes.tolist() == [[64, 96]] * 3
    assert len(calibration_pictures(Recipe(images=folder), (), SPEC, PIXELS).pixels) == 9


def test_a_folders_annotations_and_what_is_not_taken_do_not_matter(folder):
    (folder / "annotations.json").write_text('{"images": [{"id": 1, "file_name": "0.png", "width": 1, "height": 1}]}')
    (folder / "1.png").write_bytes(b"no picture")
    pictures = calibration_pictures(Recipe(images=folder, count=3), (), SPEC, PIXELS)
    assert pictures.pixels[:, 0, 0, 0].tolist() == [0, 40, 80]


def test_a_picture_that_cannot_be_read_is_named(folder):
    (folder / "4.png").write_bytes(b"no picture")
    with pytest.raises(
        CodetrError, match=r"1 of 3 images in .*photographs cannot be read: 4.png \(.*\); take them out"
    ):
        calibration_pictures(Recipe(images=folder, count=3), (), SPEC, PIXELS)


def test_fewer_pictures_than_asked_for_are_told(folder, caplog):
    assert len(calibration_pictures(Recipe(images=folder, count=10), (), SPEC, PIXELS).pixels) == 9
    assert caplog.messages == [f"note: {folder} holds 9 pictures to calibrate on, fewer than 10"]


def test_a_word_twice_is_one():
    assert Recipe(("neck", "a.*", "neck")).layers == ("neck", "a.*")


def test_a_detector_without_an_engines_groups_needs_words(toy):
    with pytest.raises(EngineError, match=r"toy_small has none of the groups that the onnx engine quantises"):
        words_of(Recipe(), KINDS["onnx"], toy)
    assert words_of(Recipe(layers=("classify",)), KINDS["onnx"], toy) == ("classify",)


def test_a_quantised_detector_is_a_copy_whose_chosen_layers_are_replaced(toy, folder):
    recipe = Recipe(layers=("classify",), images=folder)
    calibrated = Calibrated(toy, "int8", recipe.layers, recipe, calibration_pictures(recipe, (), SPEC, PIXELS))
    quantisation = calibrated.quantisation(("classify",))
    assert quantisation.ranges["classify"].input.low == 0.0
    assert 80 / 255 * 0.9 < quantisation.ranges["classify"].input.high <= 80 / 255 + 1e-6
    assert quantisation.describe() == {
        "layers": ["classify"],
        "quantised": 1,
        "method": "percentile",
        "calibration": {"source": "photographs", "images": 9},
        "search": None,
    }
    twin = quantised(toy, quantisation, KINDS["onnx"])
    assert type(toy.classify) is torch.nn.Conv2d
    assert type(twin.classify).__name__ == "QuantisedConv2d"
    images, sizes = torch.full((1, 64, 96, 3), 60, dtype=torch.uint8), torch.tensor([[64, 96]], dtype=torch.int32)
    torch.testing.assert_close(twin(images, sizes)[1], toy(images, sizes)[1], atol=0.02, rtol=0)


def test_fp8_has_the_extremes_unless_told(toy, folder):
    recipe = Recipe(layers=("classify",), images=folder)
    pictures = calibration_pictures(recipe, (), SPEC, PIXELS)
    assert Calibrated(toy, "fp8", recipe.layers, recipe, pictures).method == "max"
    told = Recipe(layers=("classify",), method="entropy")
    assert Calibrated(toy, "fp8", told.layers, told, pictures).method == "entropy"
