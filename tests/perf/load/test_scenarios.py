from __future__ import annotations

from collections import Counter

import pytest

from perf.load.scenarios import BAD_IMAGES, MIX, PictureKind, Scenario
from serving.errors import InvalidImageError
from serving.preprocess import preprocess

SMALL = [PictureKind("jpeg", 16, 8, 3), PictureKind("png", 8, 8, 1)]


def test_pictures_come_by_weight_and_bad_ones_by_their_share() -> None:
    scenario = Scenario(SMALL, bad_share=0.2, seed=1)
    shots = [scenario.next_shot() for _ in range(5000)]
    counts = Counter(shot.name for shot in shots if not shot.is_bad)
    assert counts["jpeg 16x8"] / counts["png 8x8"] == pytest.approx(3, rel=0.15)
    assert sum(shot.is_bad for shot in shots) / len(shots) == pytest.approx(0.2, abs=0.03)


def test_a_seed_decides_the_sequence() -> None:
    def names(seed: int) -> list[str]:
        scenario = Scenario(SMALL, bad_share=0.3, seed=seed)
        return [scenario.next_shot().name for _ in range(20)]

    assert names(1) == names(1)
    assert names(1) != names(2)


@pytest.mark.parametrize(("share", "bad"), [(0.0, False), (1.0, True)], ids=["none is bad", "all are bad"])
def test_shares_at_their_ends(share: float, bad: bool) -> None:
    scenario = Scenario(SMALL, bad_share=share)
    assert {scenario.next_shot().is_bad for _ in range(50)} == {bad}


def test_bad_images_are_refused_and_good_ones_are_not() -> None:
    for _, image in BAD_IMAGES:
        with pytest.raises(InvalidImageError):
            preprocess(image, 32, 32)
    assert preprocess(Scenario(SMALL, bad_share=0).next_shot().image, 32, 32).images.shape == (32, 32, 3)


def test_names_tell_kinds_apart() -> None:
    names = [kind.name for kind in MIX] + [name for name, _ in BAD_IMAGES]
    assert len(set(names)) == len(names)
    assert all(name.startswith("bad") for name, _ in BAD_IMAGES)
