import copy
from dataclasses import replace

import pytest

from builder import VariantError, from_mmdet_config
from builder.families import family_of
from builder.rtdetrv2.config import RTDETRv2Config
from builder.rtdetrv2.config_reader import read_config
from builder.rtdetrv2.presets import PRESETS
from serving.rules import Pixels, Suppression

# Upstream's settings of its R50 model, merged, with some that only training reads.
R50 = {
    "task": "detection",
    "model": "RTDETR",
    "criterion": "RTDETRCriterionv2",
    "postprocessor": "RTDETRPostProcessor",
    "use_focal_loss": True,
    "eval_spatial_size": [640, 640],
    "num_classes": 80,
    "remap_mscoco_category": True,
    "epoches": 72,
    "RTDETR": {"backbone": "PResNet", "encoder": "HybridEncoder", "decoder": "RTDETRTransformerv2"},
    "PResNet": {
        "depth": 50, "variant": "d", "freeze_at": 0, "return_idx": [1, 2, 3], "num_stages": 4, "freeze_norm": True,
        "pretrained": True,
    },
    "HybridEncoder": {
        "in_channels": [512, 1024, 2048], "feat_strides": [8, 16, 32], "hidden_dim": 256, "use_encoder_idx": [2],
        "num_encoder_layers": 1, "nhead": 8, "dim_feedforward": 1024, "dropout": 0.0, "enc_act": "gelu",
        "expansion": 1.0, "depth_mult": 1, "act": "silu",
    },
    "RTDETRTransformerv2": {
        "feat_channels": [256, 256, 256], "feat_strides": [8, 16, 32], "hidden_dim": 256, "num_levels": 3,
        "num_layers": 6, "num_queries": 300, "num_denoising": 100, "label_noise_ratio": 0.5, "box_noise_scale": 1.0,
        "eval_idx": -1, "num_points": [4, 4, 4], "cross_attn_method": "default", "query_select_method": "default",
    },
    "RTDETRPostProcessor": {"num_top_queries": 300},
    "val_dataloader": {
        "dataset": {
            "transforms": {
                "ops": [{"type": "Resize", "size": [640, 640]}, {"type": "ConvertPILImage", "dtype": "float32"}]
            }
        }
    },
}  # fmt: skip
SECTIONS = ("PResNet", "HybridEncoder", "RTDETRTransformerv2")


def changed(**changes):
    """The config with settings changed: `{section: {key: value}}`, or a value at the top."""
    config = copy.deepcopy(R50)
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    return config


PUBLISHED = {
    "rtdetrv2_r50vd": {},
    "rtdetrv2_r50vd_m": {"HybridEncoder": {"expansion": 0.5}, "RTDETRTransformerv2": {"eval_idx": 2}},
    "rtdetrv2_r18vd": {
        "PResNet": {"depth": 18, "freeze_at": -1, "freeze_norm": False},
        "HybridEncoder": {"in_channels": [128, 256, 512], "expansion": 0.5},
        "RTDETRTransformerv2": {"num_layers": 3},
    },
    "rtdetrv2_r101vd": {
        "PResNet": {"depth": 101},
        "HybridEncoder": {"hidden_dim": 384, "dim_feedforward": 2048},
        "RTDETRTransformerv2": {"feat_channels": [384, 384, 384]},
    },
    "rtdetrv2_r50vd_dsp": {"RTDETRTransformerv2": {"cross_attn_method": "discrete"}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_their_presets(name):
    variant = from_mmdet_config(changed(**PUBLISHED[name]), name)
    assert variant == replace(PRESETS[name], checkpoint=None, box_ap=None)
    assert variant.rules.pixels == Pixels("stretch", antialias=True)
    assert variant.rules.suppression == Suppression("none", score_threshold=0.0, clip=False)


def test_defaults_are_upstreams():
    config = {
        "PResNet": {"depth": 50, "return_idx": [1, 2, 3]},
        "HybridEncoder": {},
        "RTDETRTransformerv2": {"feat_channels": [256] * 3},
    }
    assert read_config(config, "rtdetrv2_r50vd") == replace(PRESETS["rtdetrv2_r50vd"], checkpoint=None, box_ap=None)


def test_the_reference_datas_config(golden_config):
    variant = from_mmdet_config(golden_config)
    assert isinstance(variant, RTDETRv2Config)
    assert (variant.num_classes, variant.max_detections, variant.input_size) == (9, 50, (96, 96))
    assert (variant.backbone.widths, variant.backbone.stem_channels) == ((16, 24, 32, 40), 16)
    assert (variant.embed_dim, variant.num_heads, variant.num_queries) == (32, 4, 24)


@pytest.mark.parametrize(
    ("section", "settings", "field", "value"),
    [
        ("RTDETRTransformerv2", {"eval_idx": 0}, "decoder_layers", 1),
        ("RTDETRTransformerv2", {"eval_idx": -2}, "decoder_layers", 5),
        ("RTDETRTransformerv2", {"num_points": 2}, "num_points", (2, 2, 2)),
        ("RTDETRTransformerv2", {"num_points": [3, 6, 3]}, "num_points", (3, 6, 3)),
        ("RTDETRTransformerv2", {"num_levels": 4, "num_points": 4}, "num_levels", 4),
        ("RTDETRTransformerv2", {"query_select_method": "agnostic"}, "selection", "agnostic"),
        ("RTDETRTransformerv2", {"learn_query_content": True}, "learned_queries", True),
        ("RTDETRTransformerv2", {"activation": "silu"}, "activation", "silu"),
        ("RTDETRTransformerv2", {"nhead": 4}, "num_heads", 4),
        ("RTDETRPostProcessor", {"num_top_queries": 100}, "max_detections", 100),
    ],
)
def test_settings_that_decide_are_read(section, settings, field, value):
    assert getattr(read_config(changed(**{section: settings})), field) == value


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"use_encoder_idx": [1, 2]}, "attended", (1, 2)),
        ({"num_encoder_layers": 0}, "num_layers", 0),
        ({"pe_temperature": 20}, "temperature", 20.0),
        ({"depth_mult": 0.34}, "num_rep_blocks", 1),
        ({"act": "swish"}, "activation", "silu"),
        ({"enc_act": "relu"}, "attention_activation", "relu"),
    ],
)
def test_settings_of_the_encoder_are_read(settings, field, value):
    assert getattr(read_config(changed(HybridEncoder=settings)).encoder, field) == value


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("PResNet", {"depth": 152}, r"PResNet\.depth=152 is not supported; expected 18 or 34 or 50 or 101"),
        ("PResNet", {"variant": "b"}, r"PResNet\.variant='b' is not supported; expected 'd'"),
        ("PResNet", {"num_stages": 3}, r"PResNet\.num_stages=3"),
        ("PResNet", {"return_idx": [1, 3]}, r"PResNet\.return_idx=\(1, 3\) is not supported"),
        ("PResNet", {"return_idx": [1, 2]}, r"PResNet\.return_idx=\(1, 2\) is not supported"),
        ("PResNet", {"blocks": [2, 2]}, r"PResNet\.blocks=\(2, 2\) is not possible"),
        ("PResNet", {"act": "mish"}, r"PResNet\.act='mish'"),
        ("PResNet", {"dcn": True}, r"PResNet\.dcn=True is a setting this reader does not know"),
        ("HybridEncoder", {"version": "v1"}, r"HybridEncoder\.version='v1'"),
        ("HybridEncoder", {"in_channels": [1, 2, 3]}, r"HybridEncoder\.in_channels=\(1, 2, 3\) does not fit"),
        ("HybridEncoder", {"num_encoder_layers": -1}, r"HybridEncoder\.num_encoder_layers=-1 is not possible"),
        ("HybridEncoder", {"use_encoder_idx": [3]}, r"encoder\.attended=\(3,\)"),
        ("HybridEncoder", {"nhead": 7}, r"encoder\.embed_dim=256 is no multiple of encoder\.num_heads=7"),
        ("RTDETRTransformerv2", {"feat_channels": [512] * 3}, r"feat_channels=\(512, 512, 512\) does not fit"),
        ("RTDETRTransformerv2", {"eval_idx": 6}, r"eval_idx=6 is not possible; expected -6 to 5"),
        ("RTDETRTransformerv2", {"num_points": [4, 4]}, r"num_points=\(4, 4\) is not possible"),
        ("RTDETRTransformerv2", {"num_levels": 2, "num_points": 4}, "num_levels=2"),
        ("RTDETRTransformerv2", {"cross_attn_method": "nearest"}, r"cross_attn_method='nearest'"),
        ("RTDETRTransformerv2", {"query_select_method": "x"}, r"query_select_method='x'"),
        ("RTDETRTransformerv2", {"eps": 0.05}, r"RTDETRTransformerv2\.eps=0\.05"),
        ("RTDETRTransformerv2", {"nhead": 0}, r"RTDETRTransformerv2\.nhead=0 is not possible"),
        ("RTDETR", {"backbone": "HGNetv2"}, r"RTDETR\.backbone='HGNetv2' is not supported; expected 'PResNet'"),
        ("RTDETR", {"decoder": "RTDETRTransformer"}, r"RTDETR\.decoder='RTDETRTransformer'"),
        ("RTDETRPostProcessor", {"use_focal_loss": False}, r"RTDETRPostProcessor\.use_focal_loss=False"),
        ("RTDETRPostProcessor", {"num_top_queries": 30000}, "max_detections=30000"),
    ],
)
def test_settings_that_are_not_implemented_are_refused_by_name(section, settings, message):
    with pytest.raises(VariantError, match=message):
        read_config(changed(**{section: settings}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_focal_loss": False}, "use_focal_loss=False"),
        ({"model": "DFINE"}, "model='DFINE'"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"PResNet": None}, "PResNet=None is not supported"),
        ({"eval_spatial_size": [640]}, r"eval_spatial_size=\(640,\) is not possible"),
        ({"eval_spatial_size": [512, 512]}, r"eval_spatial_size=\(512, 512\) differs from val_dataloader's"),
    ],
)
def test_settings_of_the_whole_config_are_refused_by_name(changes, message):
    with pytest.raises(VariantError, match=message):
        read_config(copy.deepcopy(R50) | changes)


@pytest.mark.parametrize("section", SECTIONS[:2])
def test_a_missing_section_is_named(section):
    config = changed()
    del config[section]
    with pytest.raises(VariantError, match=f"{section}=None is not supported; expected a dict"):
        from_mmdet_config(config)


@pytest.mark.parametrize("step", [{"type": "Normalize", "mean": [0.5]}, {"type": "ConvertPILImage", "scale": False}])
def test_other_pixels_are_refused(step):
    config = changed()
    config["val_dataloader"]["dataset"]["transforms"]["ops"].append(step)
    with pytest.raises(VariantError, match=r"val_dataloader\.dataset\.transforms\.ops has"):
        read_config(config)


def test_the_size_is_that_of_evaluation():
    config = changed(eval_spatial_size=[320, 480])
    config["val_dataloader"]["dataset"]["transforms"]["ops"][0]["size"] = [320, 480]
    assert read_config(config).input_size == (320, 480)
    del config["eval_spatial_size"]
    assert read_config(config).input_size == (320, 480)


@pytest.mark.parametrize("name", PRESETS)
def test_a_manifest_restores_the_configuration(name):
    import json
    from dataclasses import asdict

    variant = PRESETS[name]
    assert family_of(variant).restore(json.loads(json.dumps(asdict(variant)))) == variant
