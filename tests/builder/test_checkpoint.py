import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from builder import CheckpointError, get_variant, load_detector, random_detector
from serving.contract import coco_class_names

# Swin's original patch merging concatenates the four pixels of a patch in this (y, x) order.
ORIGINAL_PATCH_ORDER = ((0, 0), (1, 0), (0, 1), (1, 1))


@pytest.fixture
def reference(golden_config, golden_weights):
    return load_detector(golden_config, golden_weights).state_dict()


def assert_same(detector, reference):
    state = detector.state_dict()
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[key], reference[key]) for key in state)


def published_keys(data_dir, name, *categories):
    content = json.loads((data_dir / name).read_text())
    return {
        key: torch.empty(shape, device="meta") for category in categories for key, shape in content[category].items()
    }


# A quick preset of each family.
SMALLEST = {"co_dino": "co_dino_demo", "detr": "detr_r50", "rtdetrv2": "rtdetrv2_demo"}
CATEGORIES = ("deploy_buffers_recomputable", "present_but_unused_at_inference", "training_only")
PUBLISHED = [("keys_swin_l.json", "co_dino_swin_l_o365"), ("keys_r50.json", "co_dino_r50_12e")]


@pytest.mark.parametrize(("keys", "variant"), PUBLISHED)
@pytest.mark.parametrize("extra", [(), *((category,) for category in CATEGORIES), CATEGORIES])
def test_full_size_models_take_the_published_keys(data_dir, keys, variant, extra):
    tensors = published_keys(data_dir, keys, "deploy", *extra)
    detector = load_detector(variant, {"state_dict": tensors})
    assert sum(tensor.numel() for tensor in detector.state_dict().values()) == sum(
        tensor.numel() for tensor in published_keys(data_dir, keys, "deploy").values()
    )


@pytest.mark.parametrize(("keys", "variant"), PUBLISHED)
def test_an_invented_a_missing_and_a_misshapen_key_are_all_listed(data_dir, keys, variant):
    tensors = published_keys(data_dir, keys, "deploy")
    del tensors["query_head.transformer.level_embeds"]
    tensors["query_head.invented.weight"] = torch.empty(3, device="meta")
    tensors["neck.convs.0.gn.bias"] = torch.empty(7, device="meta")
    with pytest.raises(CheckpointError) as error:
        load_detector(variant, tensors)
    assert "missing: level_embeds (5, 256)" in str(error.value)
    assert "unexpected: query_head.invented.weight (3,)" in str(error.value)
    assert "neck.convs.0.1.bias is (7,), expected (256,)" in str(error.value)


def test_training_only_parts_are_skipped_by_name_only(golden_config, golden_weights, reference):
    extra = {
        "rpn_head.rpn_conv.weight": torch.zeros(1),
        "roi_head.0.bbox_head.fc_cls.weight": torch.zeros(1),
        "bbox_head.0.scales.4.scale": torch.zeros(()),
        "query_head.label_embedding.weight": torch.zeros(1),
        "query_head.loss_cls.class_weight": torch.zeros(8),
        "query_head.transformer.head_pos_embed.weight": torch.zeros(1),
        "mask_head.0.convs.0.weight": torch.zeros(1),
        "mask_iou_head.fc.weight": torch.zeros(1),
        "mask_roi_extractor.weight": torch.zeros(1),
        "query_head.transformer.pos_feats_trans.0.weight": torch.zeros(1),
        "data_preprocessor.mean": torch.zeros(3),
    }
    assert_same(load_detector(golden_config, golden_weights | extra), reference)
    with pytest.raises(CheckpointError, match=r"unexpected: rpn_heads\.weight"):
        load_detector(golden_config, golden_weights | {"rpn_heads.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda sd: sd, id="plain"),
        pytest.param(lambda sd: {"state_dict": sd, "meta": {}, "optimizer": {"state": {}}}, id="state_dict"),
        pytest.param(lambda sd: {"model": sd, "epoch": 3}, id="model"),
        pytest.param(lambda sd: {"model": {"x": 0}, "ema": {"module": sd}}, id="ema before model"),
        pytest.param(lambda sd: {"module." + key: value for key, value in sd.items()}, id="module. prefix"),
        pytest.param(
            lambda sd: {"state_dict": {"module._orig_mod." + key: value for key, value in sd.items()}},
            id="both prefixes",
        ),
        pytest.param(
            lambda sd: {k.replace("backbone.", "backbone._orig_mod."): v for k, v in sd.items()}, id="a compiled part"
        ),
        pytest.param(lambda sd: {"model_state_dict": sd, "optimizer_state_dict": {"state": {}}}, id="a tutorial's"),
        pytest.param(lambda sd: {"model": {k: v + 1 for k, v in sd.items()}, "model_ema": sd}, id="model_ema"),
        pytest.param(lambda sd: {"epoch": torch.tensor(3), "state_dict": sd}, id="a tensor beside it"),
        pytest.param(
            lambda sd: {"state_dict": sd, "ema_state_dict": {k: v + 1 for k, v in sd.items()}}, id="mmengine's EMAHook"
        ),
        pytest.param(
            lambda sd: {"state_dict": sd | {"ema_" + k.replace(".", "_"): v + 1 for k, v in sd.items()}},
            id="mmdetection 2.x's EMA hook",
        ),
        pytest.param(
            lambda sd: {"ema": {"n_averaged": torch.tensor(3), **{"module." + k: v for k, v in sd.items()}}},
            id="PyTorch's AveragedModel",
        ),
        pytest.param(lambda sd: {"state_dict": {"model." + k: v for k, v in sd.items()}}, id="Lightning"),
        pytest.param(
            lambda sd: {k: torch.nn.Parameter(v, requires_grad=False) for k, v in sd.items()}, id="parameters"
        ),
    ],
)
def test_nesting_and_prefixes(golden_config, golden_weights, reference, wrap):
    assert_same(load_detector(golden_config, wrap(golden_weights)), reference)


def original_release(weights):
    """Rename and reorder mmdetection's tensors as the authors' original release has them."""
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in (
            ("backbone.stages.", "backbone.layers."),
            (".attn.w_msa.", ".attn."),
            (".ffn.layers.0.0.", ".mlp.fc1.") if key.startswith("backbone") else ("", ""),
            (".ffn.layers.1.", ".mlp.fc2.") if key.startswith("backbone") else ("", ""),
            ("patch_embed.projection.", "patch_embed.proj."),
            ("query_head.dn_generator.label_embedding", "query_head.label_embedding"),
        ):
            key = key.replace(ours, theirs) if ours else key
        if key.startswith("backbone.") and ".downsample." in key:
            patches = value.unflatten(-1, (-1, 2, 2))  # [..., C, y, x]
            value = torch.cat([patches[..., y, x] for y, x in ORIGINAL_PATCH_ORDER], dim=-1)
        renamed[key] = value
    return renamed


def test_original_release_naming_and_patch_merging_order(golden_config, golden_weights, reference):
    renamed = original_release(golden_weights)
    assert any(key.startswith("backbone.layers.0.blocks.0.mlp.fc1") for key in renamed)
    assert_same(load_detector(golden_config, renamed), reference)


def test_pth_file_with_training_history(golden_config, golden_weights, reference, tmp_path):
    path = tmp_path / "epoch_12.pth"
    history = {"loss": np.arange(3.0), "lr": np.float64(1e-4)}
    torch.save({"state_dict": golden_weights, "message_hub": history, "meta": {"epoch": 12}}, path)
    assert_same(load_detector(golden_config, path), reference)


def test_safetensors_file(golden_config, reference, tmp_path):
    path = tmp_path / "detector.safetensors"
    names = tuple("abcdefgh")
    safetensors.torch.save_file(reference, path, metadata={"class_names": ",".join(names)})
    detector = load_detector(golden_config, str(path))
    assert_same(detector, reference)
    assert detector.variant.class_names == names


class Executed:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_not_run(golden_config, golden_weights, reference, tmp_path, capfd):
    path = tmp_path / "odd.pth"
    torch.save({"state_dict": golden_weights, "payload": Executed()}, path)
    assert_same(load_detector(golden_config, path), reference)
    torch.save({"state_dict": {**golden_weights, "query_head.transformer.level_embeds": Executed()}}, path)
    with pytest.raises(CheckpointError, match=r"missing: level_embeds[^$]*level_embeds is a __builtin__\.print"):
        load_detector(golden_config, path)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no weights.*got epoch"),
        ({}, "got nothing"),
        ([1, 2], "holds a list, not a state dict"),
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        (torch.nn.Linear(1, 1), r"a whole pickled module, torch\.nn\..*Linear; save its weights instead"),
        ({"model": torch.nn.Linear(1, 1), "epoch": 3}, r"a whole pickled module, torch\.nn\..*Linear"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}, "\x1b[31m": 1}, r"got optimizer, \\x1b\[31m"),
    ],
)
def test_foreign_contents_are_clear_errors(golden_config, tmp_path, content, message):
    path = tmp_path / "foreign.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_detector(golden_config, path)


def test_missing_file(golden_config, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.pth; `codetr variants` names"):
        load_detector(golden_config, tmp_path / "nowhere.pth")


@pytest.mark.parametrize("meta", [{"dataset_meta": {"classes": list("abcdefgh")}}, {"CLASSES": tuple("abcdefgh")}])
def test_class_names_come_from_the_meta_data(golden_config, golden_weights, meta):
    detector = load_detector(golden_config, {"state_dict": golden_weights, "meta": meta})
    assert detector.variant.class_names == tuple("abcdefgh")


def test_class_names_default_to_coco(data_dir):
    tensors = published_keys(data_dir, "keys_r50.json", "deploy")
    assert load_detector("co_dino_r50_12e", tensors).variant.class_names == coco_class_names()


def keys(*names):
    return {name: torch.empty(1, device="meta") for name in names}


SWIN_BLOCK = "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight"
QUERY_HEAD = "query_head.transformer.encoder.layers.0.norms.0.weight"
OTHERS = [
    (
        "ViT",
        keys("backbone.pos_embed", "backbone.blocks.0.attn.qkv.weight", QUERY_HEAD),
        "has a ViT backbone; supported",
    ),
    ("ConvNeXt", keys("backbone.downsample_layers.0.0.weight", QUERY_HEAD), "has a ConvNeXt backbone"),
    ("InternImage", keys("backbone.levels.0.blocks.0.dcn.offset.weight", QUERY_HEAD), "has an InternImage backbone"),
    ("Co-Deformable-DETR", keys(SWIN_BLOCK, QUERY_HEAD, "query_head.cls_branches.0.bias"), "is a Co-Deformable-DETR"),
    ("DINO", keys("transformer.encoder.layers.0.self_attn.sampling_offsets.bias", "label_enc.weight"), "IDEA Research"),
    (
        "mmdetection DINO",
        keys(SWIN_BLOCK, "memory_trans_fc.bias", "bbox_head.cls_branches.0.bias"),
        "DINO as mmdetection",
    ),
    ("RT-DETR", keys("decoder.dec_score_head.0.weight", "backbone.conv1.conv1_1.conv.weight"), "of an RT-DETR"),
    (
        "DETR",
        keys("transformer.encoder.layers.0.norm1.weight", "class_embed.weight", "bbox_embed.layers.0.bias"),
        "DETR;",
    ),
    ("YOLO", keys("model.0.conv.weight", "model.1.conv.weight"), "a YOLO"),
    (
        "Faster R-CNN",
        keys("backbone.conv1.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.bias"),
        "stage",
    ),
    (
        "ImageNet Swin",
        keys("layers.0.blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "head.bias"),
        "backbone alone",
    ),
    ("ImageNet R50", keys("conv1.weight", "layer1.0.conv1.weight", "fc.bias"), "backbone alone"),
]


@pytest.mark.parametrize(("tensors", "message"), [pytest.param(*rest, id=name) for name, *rest in OTHERS])
@pytest.mark.parametrize("wrap", [dict, lambda sd: {"model": sd}], ids=["plain", "nested"])
def test_the_first_line_says_what_a_wrong_file_is(tensors, message, wrap):
    with pytest.raises(CheckpointError) as error:
        load_detector("co_dino_r50_12e", wrap(tensors))
    first, *lines = str(error.value).splitlines()
    assert message in first
    assert len(lines) < 20
    assert len(error.value.faults) > 500


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (get_variant("co_dino_r50_12e"), "has a Swin-L backbone, variant 'co_dino_r50_12e' has R50"),
        (get_variant("co_dino_swin_l_12e").derive("q", num_queries=300), "has 900 queries, variant 'q' has 300"),
        (dataclasses.replace(get_variant("co_dino_swin_l_12e"), encoder_layers=9), "has 6 encoder layers"),
        (dataclasses.replace(get_variant("co_dino_swin_l_12e"), decoder_layers=5), "has 6 decoder layers"),
        (dataclasses.replace(get_variant("co_dino_swin_l_12e"), num_levels=4), "has 5 feature levels"),
    ],
)
def test_the_first_line_names_the_setting_that_differs(data_dir, variant, message):
    with pytest.raises(CheckpointError) as error:
        load_detector(variant, published_keys(data_dir, "keys_swin_l.json", "deploy"))
    assert message in str(error.value).splitlines()[0]


def test_contradicting_class_count(golden_config, golden_weights):
    checkpoint = {"state_dict": golden_weights, "meta": {"dataset_meta": {"classes": ["a", "b"]}}}
    with pytest.raises(CheckpointError, match=r"names 2 classes.*has 8"):
        load_detector(golden_config, checkpoint)


def test_its_own_class_names_decide_over_a_preset(data_dir):
    tensors = published_keys(data_dir, "keys_r50.json", "deploy")
    for key in [key for key in tensors if "cls_branches" in key]:
        tensors[key] = torch.empty(3, *tensors[key].shape[1:], device="meta")
    meta = {"dataset_meta": {"classes": ("cat", "lynx", "puma")}}
    variant = load_detector("co_dino_r50_12e", {"state_dict": tensors, "meta": meta}).variant
    assert (variant.class_names, variant.num_classes) == (("cat", "lynx", "puma"), 3)
    assert variant.box_ap is None
    with pytest.raises(CheckpointError, match=r"another class count: the checkpoint has 3 classes, variant .* has 80"):
        load_detector("co_dino_r50_12e", tensors)


@pytest.mark.parametrize("classes", [1, 365, 1203])
def test_any_number_of_classes(data_dir, classes):
    tensors = published_keys(data_dir, "keys_r50.json", "deploy", *CATEGORIES)
    for key in [key for key in tensors if "query_head.cls_branches" in key]:
        tensors[key] = torch.empty(classes, *tensors[key].shape[1:], device="meta")
    meta = {"CLASSES": tuple(f"thing {i}" for i in range(classes))}
    detector = load_detector("co_dino_r50_12e", {"state_dict": tensors, "meta": meta})
    assert len(detector.variant.class_names) == detector.variant.num_classes == classes


@pytest.mark.parametrize("names", ["cat", b"cat", 3, [1, 2], {"cat": 0}])
def test_class_names_that_are_no_list(golden_config, golden_weights, names):
    with pytest.raises(CheckpointError, match="expected a list of names"):
        load_detector(golden_config, {"state_dict": golden_weights, "meta": {"CLASSES": names}})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b,c,d,e,f,g,h", tuple("abcdefgh")),
        (json.dumps(["a, b", *"bcdefgh"]), ("a, b", *"bcdefgh")),
        ("[not JSON", None),
        ("[1, 2]", None),
    ],
)
def test_class_names_of_a_safetensors_file(golden_config, golden_weights, tmp_path, text, names):
    safetensors.torch.save_file(golden_weights, tmp_path / "x.safetensors", metadata={"class_names": text})
    if names is None:
        with pytest.raises(CheckpointError, match=r"x\.safetensors: its meta data gives the classes"):
            load_detector(golden_config, tmp_path / "x.safetensors")
    else:
        assert load_detector(golden_config, tmp_path / "x.safetensors").variant.class_names == names


def test_a_mapping_that_holds_itself(golden_config):
    content = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_detector(golden_config, content)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_floating_point_numbers(golden_config, golden_weights, dtype):
    key = "query_head.transformer.level_embeds"
    with pytest.raises(CheckpointError, match=rf"wrong type: level_embeds is {dtype}, expected floating point"):
        load_detector(golden_config, golden_weights | {key: golden_weights[key].to(dtype)})


def test_meta_data_without_names(golden_config, golden_weights):
    for meta in ({"CLASSES": None}, {"dataset_meta": {}}, {"dataset_meta": None}, None, "epoch 3"):
        assert load_detector(golden_config, {"state_dict": golden_weights, "meta": meta}).variant.class_names


def test_random_weights_are_seeded():
    variant = get_variant("co_dino_r50_12e").derive("small", num_classes=8, num_queries=50)
    first, again, other = (random_detector(variant, seed).class_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_weights_keep_the_class_names():
    detector = random_detector(get_variant("co_dino_r50_12e").derive("named", class_names=("cat", "dog")))
    assert detector.variant.class_names == ("cat", "dog")


def test_detectors_are_for_inference(golden_config, golden_weights):
    loaded = load_detector(golden_config, golden_weights)
    for detector in (loaded, random_detector(loaded.variant)):
        assert not detector.training
        assert not any(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(golden_config, golden_weights, value):
    spoiled = golden_weights["query_head.transformer.level_embeds"].clone()
    spoiled[0, :2] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite, in 1 of \d+ keys.*take an earlier one") as error:
        load_detector(golden_config, golden_weights | {"query_head.transformer.level_embeds": spoiled})
    assert error.value.faults == (f"NaN or infinite: level_embeds, 2 of {spoiled.numel()}",)


@pytest.mark.parametrize(
    ("theirs", "ours"), [(theirs, ours) for theirs in SMALLEST for ours in SMALLEST if theirs != ours]
)
def test_weights_of_another_family_are_called_so(theirs, ours):
    """By this program's own names too, as shipped weights and saved detectors have them."""
    with pytest.raises(
        CheckpointError, match=f"^these are weights of {theirs}, and variant '.*' is of {ours}; `codetr"
    ):
        load_detector(SMALLEST[ours], random_detector(SMALLEST[theirs]).state_dict())
