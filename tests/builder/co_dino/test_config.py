import dataclasses

import pytest

from builder import VariantError, get_variant


def test_variants_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_variant("co_dino_r50_12e").num_classes = 3


def test_derive_changes_classes_and_queries_only():
    base = get_variant("co_dino_swin_l_o365")
    derived = base.derive("cats", class_names=("cat", "lynx", "puma"), num_queries=300)
    assert (derived.num_classes, derived.num_queries, derived.max_detections) == (3, 300, 300)
    assert derived.backbone == base.backbone
    assert derived.checkpoint is None
    assert derived.box_ap is None


def test_derive_lowers_detections_to_what_the_queries_give():
    assert get_variant("co_dino_r50_12e").derive("one", num_classes=1, num_queries=100).max_detections == 100


def test_class_names_must_fit_the_count():
    with pytest.raises(VariantError, match="num_classes=3 but 2 class names"):
        get_variant("co_dino_r50_12e").derive("x", num_classes=3, class_names=("a", "b"))


def test_only_lsj_pads_with_a_colour():
    lsj = get_variant("co_dino_r50_lsj_12e")
    assert (lsj.padding_value, get_variant("co_dino_r50_12e").padding_value) == (114, None)
    assert dataclasses.replace(lsj, lsj_padding=None).padding_value is None
