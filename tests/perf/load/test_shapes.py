from __future__ import annotations

import pytest

from perf.load.shapes import Profile, Shape


@pytest.mark.parametrize(
    ("shape", "loads"),
    [
        pytest.param("constant", [10, 10, 10, 10, 10], id="the same all the time"),
        pytest.param("steps", [2, 4, 6, 8, 10], id="up in five steps"),
        pytest.param("spike", [2.5, 2.5, 10, 2.5, 2.5], id="four times the load in the middle fifth"),
        pytest.param("soak", [10, 10, 10, 10, 10], id="a short ramp, then steady"),
    ],
)
def test_shapes(shape: Shape, loads: list[float]) -> None:
    profile = Profile(shape, 10)
    assert [profile.load_at(share) for share in (0.1, 0.3, 0.5, 0.7, 0.999)] == loads


@pytest.mark.parametrize("shape", ["constant", "steps", "spike", "soak"])
def test_every_run_ends(shape: Shape) -> None:
    assert Profile(shape, 10).load_at(1) is None


def test_a_soak_ramps_up() -> None:
    assert Profile("soak", 10).load_at(0.01) == pytest.approx(5)
    assert Profile("soak", 10).load_at(0) == 0
