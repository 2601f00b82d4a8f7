from builder.co_dino.presets import PRESETS

# By the model tables of both READMEs.
PUBLISHED_AP = {
    "co_dino_r50_lsj_12e": 52.0,
    "co_dino_r50_12e": 52.1,
    "co_dino_r50_lsj_36e": 54.8,
    "co_dino_swin_l_12e": 58.9,
    "co_dino_swin_l_lsj_12e": 59.3,
    "co_dino_swin_l_36e": 60.0,
    "co_dino_swin_l_lsj_36e": 60.7,
    "co_dino_swin_l_o365": 64.1,
    "co_dino_r50_9enc_lsj_12e": 52.6,
    "co_dino_r50_9enc_lsj_36e": 55.4,
    "co_dino_swin_l_24e": 59.8,
    "co_dino_swin_l_lsj_24e": 60.4,
    "co_dino_swin_l_lsj_lvis_36e": 56.9,
    "co_dino_swin_l_lsj_o365_lvis": 64.5,
}


def test_the_published_models():
    assert {name: variant.box_ap for name, variant in PRESETS.items()} == PUBLISHED_AP
    assert all(variant.checkpoint.endswith(".pth") for variant in PRESETS.values())
    assert len({variant.checkpoint for variant in PRESETS.values()}) == len(PRESETS)


def test_names_say_what_the_networks_are():
    for name, variant in PRESETS.items():
        assert variant.masks_padding != ("_lsj" in name)
        assert variant.backbone.label == ("R50" if "_r50" in name else "Swin-L")
        assert variant.num_classes == (1203 if "lvis" in name else 80)
        assert variant.encoder_layers == (9 if "9enc" in name else 6)
        assert name.endswith((f"_{variant.epochs}e", "o365", "o365_lvis"))
