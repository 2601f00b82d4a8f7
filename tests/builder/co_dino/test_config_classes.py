import pytest

from builder import VariantError, from_mmdet_config
from tests.public_configs import ORIGINAL_R50, R50, changed, load

NAMES = ["cat", "lynx", "puma"]


def config(path, value, name=R50):
    return changed(changed(load(name), "model.query_head.num_classes", 3), path, value)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (R50, "metainfo.classes"),
        (R50, "metainfo.CLASSES"),
        (R50, "train_dataloader.dataset.metainfo.classes"),
        (R50, "train_dataloader.dataset.dataset.metainfo.classes"),
        (R50, "test_dataloader.dataset.metainfo.classes"),
        (R50, "val_dataloader.dataset.metainfo.CLASSES"),
        (R50, "classes"),
        (ORIGINAL_R50, "data.test.classes"),
        (ORIGINAL_R50, "data.train.dataset.classes"),
        (ORIGINAL_R50, "classes"),
    ],
)
def test_reads_class_names(name, path):
    assert from_mmdet_config(config(path, NAMES, name)).class_names == tuple(NAMES)


def test_names_of_concatenated_data_sets():
    datasets = [{"metainfo": {"classes": NAMES}}] * 2
    assert from_mmdet_config(config("train_dataloader.dataset.datasets", datasets)).class_names == tuple(NAMES)


def test_the_bare_model_has_no_names():
    assert from_mmdet_config(config("metainfo.classes", NAMES)["model"]).class_names is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("cat", r"metainfo.classes='cat' is no list of class names", id="a string is no list of letters"),
        pytest.param("labels.txt", "is no list of class names", id="a file"),
        pytest.param(["cat", 2, "puma"], "is no list of class names", id="a number"),
        pytest.param(["cat", "", "puma"], "is no list of class names", id="an empty name"),
        pytest.param([], "is no list of class names", id="none"),
        pytest.param(["cat", "lynx"], "num_classes=3 but 2 class names", id="another count"),
    ],
)
def test_other_class_names_are_refused(value, message):
    with pytest.raises(VariantError, match=message):
        from_mmdet_config(config("metainfo.classes", value))


def test_places_must_agree():
    both = changed(config("metainfo.classes", NAMES), "test_dataloader.dataset.metainfo.classes", NAMES[::-1])
    with pytest.raises(VariantError, match=r"metainfo.classes and test_dataloader.*different class names"):
        from_mmdet_config(both)
    stale = changed(config("metainfo.classes", NAMES), "classes", ["dog"])
    assert from_mmdet_config(stale).class_names == tuple(NAMES)
