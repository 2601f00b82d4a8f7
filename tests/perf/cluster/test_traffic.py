from __future__ import annotations

import math

import pytest

from perf.cluster.traffic import Answer, Load, percentile, send
from perf.pictures import encoded_picture


def test_percentiles_are_of_good_answers() -> None:
    answers = [Answer(0.0, seconds, "") for seconds in (1.0, 2.0, 3.0)] + [Answer(0.0, 99.0, "broken")]
    assert percentile(answers, 50) == 2.0
    assert math.isnan(percentile(answers[3:], 50))


@pytest.mark.parametrize("load", [Load(0.5, rate=40.0), Load(0.5, users=2)], ids=["at random", "closed"])
def test_every_request_is_accounted_for(load: Load) -> None:
    """Nobody listens there: each is a failure with its reason."""
    answers = send("127.0.0.1:1", encoded_picture(16, 16), load)
    assert answers
    assert {each.error.split(":")[0] for each in answers} == {"ServerUnreachableError"}
    if load.rate:
        assert 5 <= len(answers) <= 45  # 20 on average, of a fixed seed


def test_a_load_comes_again_with_its_seed() -> None:
    one, two = (len(send("127.0.0.1:1", b"x", Load(0.3, rate=100.0, seed=3))) for _ in range(2))
    assert one == two
