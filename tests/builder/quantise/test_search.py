import json
import math

import pytest

from builder.engines import EngineError
from builder.quantise.search import Trial, described, restored, search, table

# AP lost and milliseconds of each group alone.
ALONE = {"a": (0.001, 8.0), "b": (0.004, 9.0), "c": (0.02, 5.0), "d": (0.0, 11.0)}


class Measure:
    """Losses and savings add up."""

    def __init__(self, alone=ALONE, faulty=()):
        self.alone, self.faulty, self.asked = alone, faulty, []

    def __call__(self, groups):
        self.asked.append(groups)
        if set(groups) & set(self.faulty):
            return Trial(groups, len(groups), math.nan, math.nan, "cannot be built")
        loss = sum(self.alone[group][0] for group in groups)
        ms = 10 - sum(10 - self.alone[group][1] for group in groups)
        return Trial(groups, len(groups), loss, ms)


def test_groups_that_pay_are_tried_together_and_the_fastest_set_within_the_budget_wins():
    measure = Measure()
    found = search("abcd", measure, 0.005, "drawn shapes")
    assert measure.asked == [(), ("a",), ("b",), ("c",), ("d",), ("a", "b")]
    assert (found.best.groups, found.best.ms) == (("a", "b"), 7.0)


def test_a_larger_budget_takes_more():
    assert search("abcd", Measure(), 0.03, "").best.groups == ("a", "b", "c")


def test_where_all_together_lose_too_much_the_one_that_loses_most_is_left_out():
    measure = Measure()
    found = search("abcd", measure, 0.0045, "")
    assert measure.asked[-1] == ("a", "b")  # 0.005 together
    assert found.best.groups == ("a",)
    measure = Measure({"a": (0.003, 8.0), "b": (0.004, 9.0), "c": (0.001, 9.5)})
    found = search("abc", measure, 0.005, "")
    assert measure.asked[-2:] == [("a", "b", "c"), ("a", "c")]
    assert found.best.groups == ("a", "c")


def test_a_set_that_cannot_be_built_is_no_candidate():
    found = search("ab", Measure(faulty="a"), 0.005, "")
    assert found.best.groups == ("b",)
    assert "| a | 1 | - | - | cannot be built |" in table(found)
    written = json.dumps(described(found), allow_nan=False)  # which other programs could not read
    assert table(restored(json.loads(written))) == table(found)


def test_a_set_that_is_not_faster_is_marked():
    found = search("acd", Measure(), 0.005, "")
    assert "| d | 1 | +0.0000 | 11.00 | not faster |" in table(found)
    assert "| c | 1 | +0.0200 | 5.00 | over the budget |" in table(found)


def test_where_nothing_pays_the_error_has_the_table():
    with pytest.raises(EngineError, match="no group makes the engine faster and loses at most") as error:
        search("cd", Measure(), 0.005, "8 pictures")
    assert "| c | 1 | +0.0200 | 5.00 | over the budget |" in str(error.value)
    assert "AP lost on 8 pictures; the budget is 0.005." in str(error.value)


def test_a_search_comes_back_from_a_manifest():
    found = search("abc", Measure(), 0.005, "drawn shapes")
    assert restored(described(found)) == found
    assert "| a, b | 2 | +0.0050 | 7.00 | chosen |" in table(found)
    assert "| nothing | 0 | +0.0000 | 10.00 |  |" in table(found)
