import pytest

from builder import VariantError, from_mmdet_config
from builder.detr.config import DetrConfig
from builder.families import FAMILIES
from builder.parts.resnet_config import ResNetConfig

# The arguments of the original's training program at their defaults, as a checkpoint or a log has them.
ARGUMENTS = {
    "lr": 1e-4,
    "lr_backbone": 1e-5,
    "batch_size": 2,
    "weight_decay": 1e-4,
    "epochs": 300,
    "lr_drop": 200,
    "clip_max_norm": 0.1,
    "frozen_weights": None,
    "backbone": "resnet50",
    "dilation": False,
    "position_embedding": "sine",
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "hidden_dim": 256,
    "dropout": 0.1,
    "nheads": 8,
    "num_queries": 100,
    "pre_norm": False,
    "masks": False,
    "aux_loss": True,
    "set_cost_class": 1,
    "set_cost_bbox": 5,
    "set_cost_giou": 2,
    "mask_loss_coef": 1,
    "dice_loss_coef": 1,
    "bbox_loss_coef": 5,
    "giou_loss_coef": 2,
    "eos_coef": 0.1,
    "dataset_file": "coco",
    "coco_path": "coco",
    "coco_panoptic_path": None,
    "remove_difficult": False,
    "output_dir": "",
    "device": "cuda",
    "seed": 42,
    "resume": "",
    "start_epoch": 0,
    "eval": False,
    "num_workers": 2,
    "world_size": 1,
    "dist_url": "env://",
    "distributed": False,
}


def without(settings, *keys):
    return {key: value for key, value in settings.items() if key not in keys}


def test_the_networks_settings(detr):
    assert from_mmdet_config(detr.config, "tiny") == DetrConfig(
        "tiny", ResNetConfig(20, 8, 8, out_indices=(3,), blocks=(1, 2, 1, 2)), 20, 32, 4, 64, 2, 2,
        num_classes=9, max_detections=20,
    )  # fmt: skip  # the order of the fields
    assert from_mmdet_config(detr.settings(dilated=True)).backbone.dilated


@pytest.mark.parametrize("key", ["num_queries", "hidden_dim", "num_classes", "backbone"])
def test_a_missing_setting_is_named(detr, key):
    with pytest.raises(VariantError, match=f"the config has no '{key}'"):
        from_mmdet_config(without(detr.config, key))


def test_blocks_of_a_known_depth_are_that_depth(detr):
    config = detr.settings()
    config["backbone"] |= {"blocks": [3, 4, 23, 3], "stem_width": 16}
    assert from_mmdet_config(config).backbone == ResNetConfig(101, 8, 16, out_indices=(3,))


def test_training_arguments_are_those_of_the_published_model():
    assert from_mmdet_config(ARGUMENTS, "mine") == DetrConfig("mine")
    dc5 = from_mmdet_config(ARGUMENTS | {"backbone": "resnet101", "dilation": True, "num_queries": 60})
    assert dc5.backbone == ResNetConfig(101, out_indices=(3,), dilated=True)
    assert (dc5.num_queries, dc5.max_detections) == (60, 60)


@pytest.mark.parametrize(
    ("changes", "classes"),
    [
        pytest.param({}, 91, id="coco"),
        pytest.param({"dataset_file": "coco_panoptic"}, 250, id="panoptic"),
        pytest.param({"dataset_file": "mine"}, 20, id="another"),
        pytest.param({"dataset_file": "mine", "num_classes": 5}, 5, id="a fork's own argument"),
    ],
)
def test_classes_follow_from_the_data_set(changes, classes):
    assert from_mmdet_config(ARGUMENTS | changes).num_classes == classes


@pytest.mark.parametrize(
    ("change", "recognised"),
    [
        pytest.param(lambda config: config, True, id="as it is"),
        pytest.param(lambda config: {"model": config}, True, id="under model"),
        pytest.param(lambda config: without(config, "type"), True, id="by its keys"),
        pytest.param(lambda config: ARGUMENTS, True, id="arguments"),
        pytest.param(lambda config: config | {"type": "models.DETR"}, True, id="qualified"),
        pytest.param(lambda config: config | {"type": "RTDETR"}, False, id="RT-DETR"),
        pytest.param(lambda config: {"type": "CoDETR"}, False, id="Co-DETR"),
        pytest.param(lambda config: {}, False, id="nothing"),
    ],
)
def test_recognised_by_type_or_keys(detr, change, recognised):
    assert FAMILIES["detr"].recognises(change(detr.config)) is recognised


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"pre_norm": True}, "pre_norm=True is not supported; expected False", id="pre-norm"),
        pytest.param({"position_embedding": "learned"}, "position_embedding='learned' is not", id="learned encoding"),
        pytest.param({"activation": "gelu"}, "activation='gelu' is not supported", id="activation"),
        pytest.param({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06 is not supported", id="norm"),
        pytest.param({"pixel_mean": [0.5, 0.5, 0.5]}, "pixel_mean=(0.5, 0.5, 0.5) is not supported", id="mean"),
        pytest.param({"num_logits": 9}, "num_logits=9 with num_classes=9; expected 10", id="logits"),
        pytest.param({"num_queries": 0}, "num_queries=0 is not possible", id="queries"),
        pytest.param({"nheads": None}, "nheads=None is not possible", id="missing"),
        pytest.param({"nheads": 5}, "embed_dim=32 is no multiple of 4 and of num_heads=5", id="heads"),
        pytest.param({"two_stage": True}, "two_stage=True is a setting this reader", id="another network's setting"),
        pytest.param({"bbox_head": {}}, "mmdetection's config of DETR", id="mmdetection"),
        pytest.param({"backbone": 5}, "backbone=5 is not supported", id="no backbone"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(detr, changes, message):
    with pytest.raises(VariantError) as error:
        from_mmdet_config(detr.config | changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"block": "basic"}, "backbone.block='basic' is not supported", id="R18"),
        pytest.param({"stride_in": "1x1"}, "backbone.stride_in='1x1'", id="stride"),
        pytest.param({"bn_eps": 1e-3}, "backbone.bn_eps=0.001", id="norm"),
        pytest.param({"planes": [8, 16, 32, 60]}, "backbone.planes=(8, 16, 32, 60)", id="planes"),
        pytest.param({"planes": []}, "backbone.planes=() is not supported", id="no planes"),
        pytest.param({"blocks": [1, 2, 1]}, "backbone.blocks=(1, 2, 1) is not supported", id="blocks"),
        pytest.param({"dilation_c5": "no"}, "backbone.dilation_c5='no' is not supported", id="dilation"),
        pytest.param({"groups": 32}, "backbone.groups=32 is a setting this reader does not know", id="ResNeXt"),
    ],
)
def test_another_backbone_is_refused_by_name(detr, changes, message):
    config = detr.settings()
    config["backbone"] |= changes
    with pytest.raises(VariantError) as error:
        from_mmdet_config(config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"masks": True}, "masks=True is not supported; expected False", id="masks"),
        pytest.param({"backbone": "resnet18"}, "backbone='resnet18' is not supported; expected 'resnet50'", id="R18"),
        pytest.param({"pre_norm": True}, "pre_norm=True", id="pre-norm"),
        pytest.param(
            {"with_box_refine": True},
            "with_box_refine=True is a setting this",
            id="Deformable DETR",
        ),
    ],
)
def test_arguments_of_other_networks_are_refused_by_name(changes, message):
    with pytest.raises(VariantError) as error:
        from_mmdet_config(ARGUMENTS | changes)
    assert message in str(error.value)
