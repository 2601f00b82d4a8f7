from dataclasses import asdict
from typing import Any

import pytest

from serving.errors import CodetrError
from serving.postprocess import PostprocessSettings
from serving.preprocess import PreprocessSettings, pixel_parameters
from serving.rules import Pixels, Rules, Suppression
from serving.triton import parse_settings


def test_defaults_are_those_of_the_server() -> None:
    assert PostprocessSettings.of(Suppression(), 300) == PostprocessSettings()


def test_settings_follow_the_rule() -> None:
    rule = Suppression("hard", 0.5, 0.01, 0.25, True, False)
    settings = PostprocessSettings.of(rule, 7)
    assert settings == PostprocessSettings(
        score_threshold=0.25,
        nms="hard",
        iou_threshold=0.5,
        min_score=0.01,
        class_agnostic=True,
        clip=False,
        max_detections=7,
    )
    assert settings.suppression == rule


def test_pixel_parameters_follow_the_rule() -> None:
    rule = Pixels("fit", True, 800, 1333)
    config = {"parameters": {key: {"string_value": text} for key, text in pixel_parameters(rule).items()}}
    assert parse_settings(PreprocessSettings, config).pixels == rule


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": "crop"}, "resize: expected one of fit, stretch, got 'crop'"),
        ({"shortest_edge": 800}, r"shortest_edge, longest_edge: expected both above 0 or both 0, got \(800, 0\)"),
        ({"shortest_edge": -1, "longest_edge": 5}, "expected both above 0 or both 0"),
        ({"resize": "stretch", "shortest_edge": 8, "longest_edge": 9}, "expected 0 where resize is stretch"),
    ],
)
def test_impossible_pixel_rules_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        Pixels(**values)


def test_rules_come_back_from_a_manifest() -> None:
    rules = Rules(Pixels("stretch", True), Suppression("none", clip=False))
    assert Rules.restore({"rules": asdict(rules)}) == rules
    assert Rules.restore({"suppression": {"kind": "hard"}}) == Rules(suppression=Suppression("hard"))
    assert Rules.restore({}) == Rules()


@pytest.mark.parametrize("key", ["iou_threshold", "min_score", "score_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_are_between_0_and_1(key: str, value: float) -> None:
    with pytest.raises(CodetrError, match=rf"{key}: expected a number in 0..1, got {value}"):
        Suppression(**{key: value})  # type: ignore[arg-type]


def test_the_kind_is_known() -> None:
    with pytest.raises(CodetrError, match="nms: expected one of soft, hard, none, got 'fast'"):
        Suppression("fast")  # type: ignore[arg-type]


def test_the_default_is_the_published_rule_of_co_dino() -> None:
    """mmdetection's `test_cfg[0]`: class-aware linear soft NMS."""
    assert Suppression() == Suppression("soft", 0.8, 0.001, 0.0, False)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_both_ends_of_the_range_are_possible(end: float) -> None:
    Suppression("soft", iou_threshold=end, min_score=end, score_threshold=end)
