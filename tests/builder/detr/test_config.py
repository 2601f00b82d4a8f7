import dataclasses
import json

import pytest

from builder import VariantError, get_variant
from builder.detr.config import COCO_NAMES, PRESETS, DetrConfig
from builder.families import FAMILIES, restore_variant
from builder.family import NO_CLASS
from serving.contract import coco_class_names

PUBLISHED = {
    "detr_r50": (50, False, 42.0, "detr-r50-e632da11.pth"),
    "detr_r50_dc5": (50, True, 43.3, "detr-r50-dc5-f0fb7ef5.pth"),
    "detr_r101": (101, False, 43.5, "detr-r101-2c7b67e5.pth"),
    "detr_r101_dc5": (101, True, 44.9, "detr-r101-dc5-a2e86def.pth"),
}


def test_presets_are_the_published_models():
    assert {
        name: (each.backbone.depth, each.backbone.dilated, each.box_ap, each.checkpoint)
        for name, each in PRESETS.items()
    } == PUBLISHED
    for name, preset in PRESETS.items():
        assert get_variant(name) is preset
        assert (preset.num_queries, preset.max_detections, preset.num_classes, preset.num_heads) == (100, 100, 91, 8)
        assert not preset.uses_operator


@pytest.mark.parametrize(
    ("id_", "name"),
    [
        pytest.param(1, "person", id="the first"),
        pytest.param(13, "stop sign", id="after the second hole"),
        pytest.param(67, "dining table", id="between holes"),
        pytest.param(90, "toothbrush", id="the last"),
        *(pytest.param(i, NO_CLASS, id=f"unused {i}") for i in (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)),
    ],
)
def test_labels_are_cocos_category_ids(id_, name):
    assert COCO_NAMES[id_] == name


def test_all_of_cocos_names_are_there_in_their_order():
    assert len(COCO_NAMES) == 91
    assert tuple(name for name in COCO_NAMES if name != NO_CLASS) == coco_class_names()
    assert get_variant("detr_r50").real_classes == 80


def test_91_classes_without_names_are_cocos_ids():
    assert DetrConfig("x").with_class_names().class_names == COCO_NAMES
    assert DetrConfig("x", num_classes=2).with_class_names().class_names == ("class 0", "class 1")
    assert DetrConfig("x", class_names=("a",) * 91).with_class_names().class_names == ("a",) * 91


def test_a_canvas_holds_every_usual_image():
    assert get_variant("detr_r50").input_size == (1344, 1344)
    assert get_variant("detr_r50_dc5").input_size == (800, 800 * 640 // 480)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"num_queries": 50}, "50 queries give one candidate each", id="more answers than queries"),
        pytest.param({"embed_dim": 100}, "embed_dim=100 is no multiple of 4 and of num_heads=8", id="heads"),
        pytest.param({"embed_dim": 42, "num_heads": 1}, "embed_dim=42 is no multiple of 4", id="sine and cosine"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(VariantError, match=message):
        DetrConfig("x", **settings)


@pytest.mark.parametrize("name", PRESETS)
def test_a_manifest_gives_it_back(name):
    network = {"family": "detr", **dataclasses.asdict(PRESETS[name])}
    assert restore_variant(json.loads(json.dumps(network))) == PRESETS[name]


def test_only_dc5_warns_of_padding():
    warnings = FAMILIES["detr"].warnings
    assert warnings(PRESETS["detr_r50"], 800, 1344) == []
    (text,) = warnings(PRESETS["detr_r101_dc5"], 800, 1066)
    assert "detr_r101_dc5 is a DC5 model" in text
    assert "800x1066" in text
