from dataclasses import replace
from pathlib import Path

import pytest

from builder.pipeline.coco import CocoFile
from builder.pipeline.coco_entries import CocoCategory
from perf.accuracy.dataset import Dataset, Picture
from perf.accuracy.published import verdict
from serving.contract import coco_class_names

SIZE = (800, 1333)


def val2017(images: int = 5000, names: tuple[str, ...] = coco_class_names()) -> Dataset:
    found = tuple(Picture(i, i, Path("x.jpg"), 10, 10) for i in range(images))
    categories = tuple(CocoCategory(i, i, name) for i, name in enumerate(names))
    return Dataset(CocoFile(Path("instances_val2017.json"), "", (), categories, ()), found)


@pytest.mark.parametrize(
    ("ap", "dataset", "size", "words"),
    [
        pytest.param(0.6405, val2017(), SIZE, "published box AP 64.1, measured 64.05: agrees within 0.2", id="agrees"),
        pytest.param(0.6429, val2017(), SIZE, "agrees within 0.2", id="just agrees"),
        pytest.param(0.643, val2017(), SIZE, "measured 64.30: agrees within 0.2", id="on the limit"),
        pytest.param(0.6388, val2017(), SIZE, "differs by -0.22, more than 0.2; check that weights", id="less"),
        pytest.param(0.66, val2017(), SIZE, "differs by +1.90", id="more"),
        pytest.param(0.6, val2017(), (608, 608), "the input is 608x608 (height x width), the published", id="size"),
        pytest.param(
            0.641, val2017(100), SIZE, "no verdict, .* 100 images were measured instead of its 5000", id="some"
        ),
        pytest.param(0.641, replace(val2017(), is_whole=False), SIZE, "no verdict, .* 5000 images were", id="limited"),
        pytest.param(0.641, val2017(names=("a",)), SIZE, "no verdict, .*has 1 categories that are not", id="other"),
    ],
)
def test_the_verdict_says_what_it_rests_on(ap: float, dataset: Dataset, size: tuple[int, int], words: str) -> None:
    line = verdict(ap, 64.1, 80, dataset, size, SIZE)
    assert all(part in line for part in words.split(".*"))
    assert "\n" not in line


def test_a_variant_of_other_classes_is_published_on_other_images() -> None:
    assert "that of another data set than COCO" in verdict(0.569, 56.9, 1203, val2017(), SIZE, SIZE)
