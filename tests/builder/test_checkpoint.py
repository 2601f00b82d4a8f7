import json

import numpy as np
import pytest
import safetensors.torch
import torch

from builder import CheckpointError, get_variant, load_detector, random_detector
from builder.checkpoint import TRAINING_ONLY
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
        "query_head.transformer.pos_feats_trans.0.weight": torch.zeros(1),
        "data_preprocessor.mean": torch.zeros(3),
    }
    assert len(TRAINING_ONLY) == 4
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


def test_code_in_a_checkpoint_is_refused(golden_config, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "payload": Executed()}, path)
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        load_detector(golden_config, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", 10_000, -1000], ids=str)
def test_broken_files_are_clear_errors(golden_config, golden_weights, tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    if isinstance(content, int):  # a real file, cut there
        save = torch.save if suffix == ".pth" else safetensors.torch.save_file
        save(golden_weights, path)
        content = path.read_bytes()[:content]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken{suffix} is truncated or not a"):
        load_detector(golden_config, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"epoch": 3}, "holds no weights.*got epoch"), ({}, "got nothing"), ([1, 2], "holds a list, not a state dict")],
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


def test_contradicting_class_count(golden_config, golden_weights):
    checkpoint = {"state_dict": golden_weights, "meta": {"dataset_meta": {"classes": ["a", "b"]}}}
    with pytest.raises(CheckpointError, match=r"names 2 classes.*has 8"):
        load_detector(golden_config, checkpoint)


def test_random_weights_are_seeded():
    variant = get_variant("co_dino_r50_12e").derive("small", num_classes=8, num_queries=50)
    first, again, other = (random_detector(variant, seed).class_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
