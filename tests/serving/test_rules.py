from __future__ import annotations

import pytest

from serving.postprocess import PostprocessSettings
from serving.rules import DEFAULT_SUPPRESSION, Suppression


def test_the_default_is_the_published_rule_of_co_dino() -> None:
    """mmdetection's `test_cfg[0]`: class-aware linear soft NMS."""
    assert Suppression() == Suppression("soft", 0.8, 0.001, 0.0, False)
    assert PostprocessSettings.of(DEFAULT_SUPPRESSION, 300) == PostprocessSettings()


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_both_ends_of_the_range_are_possible(end: float) -> None:
    Suppression("soft", iou_threshold=end, min_score=end, score_threshold=end)
