import numpy as np

from builder.pipeline.served import served
from serving.rules import Suppression

BOXES = np.array([[0.25, 0.5, 0.75, 1.0], [0.25, 0.5, 0.75, 1.0], [0, 0, 0.5, 0.5]], np.float32)
SCORES, LABELS = np.array([0.9, 0.8, 0.1], np.float32), np.array([1, 1, 2], np.int32)


def test_candidates_become_detections_of_the_original_by_the_rule():
    rule = Suppression("hard", score_threshold=0.0)
    found = served(BOXES, SCORES, LABELS, (100, 200), rule, ("cat", "dog"))
    assert found.boxes.tolist() == [[50, 50, 150, 100], [0, 0, 100, 50]]
    assert found.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(found.scores, SCORES[[0, 2]])
    assert found.names == ("dog", "class 2")


def test_another_rule_keeps_other_candidates():
    found = served(BOXES, SCORES, LABELS, (100, 200), Suppression("none", score_threshold=0.5))
    assert found.scores.tolist() == SCORES[:2].tolist()
