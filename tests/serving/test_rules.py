import pytest

from serving.errors import CodetrError
from serving.postprocess import PostprocessSettings
from serving.rules import Suppression


def test_defaults_are_those_of_the_server() -> None:
    assert PostprocessSettings.of(Suppression(), 300) == PostprocessSettings()


def test_settings_follow_the_rule() -> None:
    rule = Suppression("hard", 0.5, 0.01, 0.25, True)
    assert PostprocessSettings.of(rule, 7) == PostprocessSettings(
        score_threshold=0.25, nms="hard", iou_threshold=0.5, min_score=0.01, class_agnostic=True, max_detections=7
    )


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
