"""Every published checkpoint's keys and shapes fit their preset, strictly (tests/data/keys_rtdetrv2.json)."""

import json
import re

import pytest
import torch

from builder import CheckpointError, get_variant, load_detector
from builder.checkpoint import read_checkpoint
from builder.rtdetrv2.model import RTDETRv2
from builder.rtdetrv2.presets import PRESETS
from builder.rtdetrv2.weights import renamed

TYPES = {"i64": torch.int64, "bool": torch.bool}


def expanded(short):
    """The tensors of the reference data's short notation, on the meta device."""
    tensors = {}
    for key, value in short.items():
        shape, kind = (value, None) if isinstance(value, list) else ([value], None)
        if shape and isinstance(shape[-1], str):
            shape, kind = shape[:-1], TYPES[shape[-1]]
        prefix, _, group = key.rpartition(".")
        if group in ("{bn}", "{fbn}"):
            names = ("weight", "bias", "running_mean", "running_var")
            tensors |= {f"{prefix}.{name}": torch.empty(shape, device="meta") for name in names}
            if group == "{bn}":
                counter = torch.empty([], device="meta", dtype=torch.int64)
                tensors[f"{prefix}.num_batches_tracked"] = counter
        elif group == "{wb}":
            tensors[f"{prefix}.weight"] = torch.empty(shape, device="meta")
            tensors[f"{prefix}.bias"] = torch.empty(shape[:1], device="meta")
        else:
            tensors[key] = torch.empty(shape, device="meta", dtype=kind or torch.float32)
    return tensors


@pytest.fixture(scope="module")
def published(data_dir):
    return json.loads((data_dir / "keys_rtdetrv2.json").read_text())


def checkpoint_of(published, variant):
    """Key and meta tensor of everything in one published checkpoint."""
    name = variant.removeprefix("rtdetrv2_")
    other = published["other_variants"].get(name, {})
    same = other.get("same_keys_as") or other.get("identical_keys_and_shapes_to") or name
    model = published["models"][same]
    tensors = {key: tensor for group in model.values() for key, tensor in expanded(group).items()}
    return tensors | expanded(other.get("changed_shapes", {}))


def test_there_is_a_preset_for_every_published_model(published):
    assert set(PRESETS) == {f"rtdetrv2_{name}" for name in published["variants"]}


@pytest.mark.parametrize("name", PRESETS)
def test_keys_of_every_published_model(published, name):
    tensors = checkpoint_of(published, name)
    assert len(tensors) == published["variants"][name.removeprefix("rtdetrv2_")]["n_keys"]
    state = renamed(tensors, get_variant(name))
    with torch.device("meta"):
        expected = RTDETRv2(get_variant(name)).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: tuple(value.shape) for key, value in expected.items()
    }
    counts = published["variants"][name.removeprefix("rtdetrv2_")]["key_counts"]
    assert len(state) == counts["deploy"]


@pytest.mark.parametrize("name", PRESETS)
def test_settings_of_every_published_model(published, name):
    facts, variant = published["variants"][name.removeprefix("rtdetrv2_")], PRESETS[name]
    assert (variant.box_ap, variant.checkpoint) == (facts["AP"], facts["file"])
    assert (variant.backbone.depth, list(variant.backbone.blocks)) == (
        facts["backbone_depth"],
        facts["backbone_blocks"],
    )
    assert list(variant.backbone.out_channels) == facts["feat_channels_backbone"]
    assert variant.backbone.frozen_norm == facts["freeze_norm"]
    encoder = variant.encoder
    assert (encoder.embed_dim, encoder.num_heads) == (facts["enc_hidden_dim"], facts["enc_nhead"])
    assert (encoder.feedforward_dim, encoder.expansion) == (facts["enc_dim_feedforward"], facts["expansion"])
    assert (encoder.num_rep_blocks, encoder.fusion_dim) == (facts["rep_blocks"], facts["csp_hidden"])
    assert (variant.embed_dim, variant.num_heads) == (facts["dec_hidden_dim"], facts["dec_nhead"])
    assert variant.decoder_layers == facts["dec_layers_run"] == facts["eval_idx"] + 1
    assert (variant.trained_layers or variant.decoder_layers) == facts["dec_layers_in_file"]
    assert list(variant.num_points) == facts["num_points_list"]
    assert (variant.sampling, variant.selection) == (facts["cross_attn_method"], facts["query_select_method"])
    assert (variant.num_queries, variant.max_detections) == (facts["num_queries"], facts["num_top_queries"])
    assert list(variant.input_size) == facts["eval_spatial_size"]
    assert len(variant.with_class_names().class_names) == facts["num_classes"]


@pytest.mark.parametrize(
    "nest",
    [
        pytest.param(lambda s: {"ema": {"module": s, "updates": 7}, "model": {"x": torch.ones(1)}}, id="average first"),
        pytest.param(lambda s: {"model": s, "last_epoch": 3}, id="no average"),
        pytest.param(lambda s: {f"module.{key}": value for key, value in s.items()}, id="data-parallel"),
    ],
)
def test_nestings(golden_config, golden_weights, nest):
    read = read_checkpoint(nest(golden_weights)).tensors
    assert set(read) == set(golden_weights)
    load_detector(golden_config, nest(golden_weights))


def test_its_own_names_load_too(golden_config, golden_weights, detector):
    state = detector.state_dict()
    again = load_detector(golden_config, state).state_dict()
    assert set(again) == set(state)
    assert all(torch.equal(again[key], state[key]) for key in state)
    trained = RTDETRv2(detector.variant, auxiliary=True).state_dict()
    load_detector(golden_config, trained)


def test_what_inference_does_not_use_may_be_missing_or_of_another_size(golden_config, golden_weights):
    unused = re.compile(r"num_batches_tracked|denoising|dec_score_head\.[01]\.|num_points_scale")
    weights = {key: value for key, value in golden_weights.items() if not unused.search(key)}
    assert len(weights) < len(golden_weights)
    load_detector(golden_config, weights | {"decoder.anchors": torch.zeros(1, 5, 4)})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(lambda w: w.pop("decoder.enc_output.norm.bias"), "missing: proposals.norm.bias", id="missing"),
        pytest.param(
            lambda w: w.update({"decoder.other": torch.ones(2)}), "unexpected: decoder.other", id="unexpected"
        ),
        pytest.param(
            lambda w: w.update({"decoder.dec_bbox_head.3.layers.0.bias": torch.ones(32)}),
            "unexpected: decoder.box_heads.3",
            id="a layer that was never trained",
        ),
        pytest.param(
            lambda w: w.update({"backbone.conv1.conv1_1.conv.weight": torch.ones(8, 3, 7, 7)}),
            "wrong shape: backbone.stem.0.conv.weight",
            id="another shape",
        ),
    ],
)
def test_any_other_key_is_an_error(golden_config, golden_weights, change, fault):
    weights = dict(golden_weights)
    change(weights)
    with pytest.raises(CheckpointError, match=re.escape(fault)):
        load_detector(golden_config, weights)


@pytest.mark.parametrize(
    ("checkpoint", "variant", "cause"),
    [
        ("rtdetrv2_r18vd", "rtdetrv2_r50vd", "has a backbone R18vd, variant 'rtdetrv2_r50vd' has R50vd"),
        ("rtdetrv2_r50vd", "rtdetrv2_r34vd", "has a backbone R50vd, variant 'rtdetrv2_r34vd' has R34vd"),
        ("rtdetrv2_r101vd", "rtdetrv2_r50vd", "has a backbone R101vd"),
        ("rtdetrv2_r50vd_m", "rtdetrv2_r50vd", "128 channels within its fusion blocks, .* has 256"),
        ("rtdetrv2_r18vd", "rtdetrv2_r18vd_sp2", "has 12 sampling points a head, .* has 6"),
    ],
)
def test_the_wrong_variant_is_told(published, checkpoint, variant, cause):
    with pytest.raises(CheckpointError, match=cause):
        load_detector(variant, checkpoint_of(published, checkpoint))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("decoder.class_embed.0.weight", "RT-DETR as transformers has it"),
        ("query_head.cls_branches.0.weight", "a Co-DETR"),
        ("decoder.pre_bbox_head.layers.0.weight", "D-FINE"),
        ("encoder.input_proj.0.0.weight", "the first RT-DETR"),
        ("backbone.stem.stem1.conv.weight", "backbone other than ResNet-vd"),
        ("transformer.encoder.layers.0.norm1.bias", "a DETR"),
        ("22.cv1.weight", "a YOLO"),
        ("res_layers.0.blocks.0.branch2a.conv.weight", "a backbone alone"),
    ],
)
def test_another_network_is_told(key, words):
    with pytest.raises(CheckpointError, match=f"these are weights of .*{words}"):
        load_detector("rtdetrv2_r18vd", {key: torch.ones(1), "another.weight": torch.ones(1)})


@pytest.fixture
def fine_tuned(golden_weights):
    """Weights of two classes."""
    heads = re.compile(r"decoder\.(enc_score_head|dec_score_head\.\d)\.")
    return {key: value[:2] if heads.match(key) else value for key, value in golden_weights.items()}


def test_a_fine_tuned_checkpoint_with_other_classes(golden_config, fine_tuned):
    with pytest.raises(CheckpointError, match="has 2 classes, variant 'custom' has 9"):
        load_detector(golden_config, fine_tuned)
    detector = load_detector({**golden_config, "num_classes": 2, "num_top_queries": 48}, fine_tuned)
    _, _, labels = detector(torch.zeros(1, 96, 96, 3, dtype=torch.uint8), torch.tensor([[96, 96]]))
    assert labels.shape == (1, 48)
    assert labels.max() < 2


def test_class_names_of_a_checkpoint_are_taken(golden_config, fine_tuned):
    detector = load_detector(golden_config, {"model": fine_tuned, "meta": {"dataset_meta": {"classes": ["a", "b"]}}})
    assert detector.variant.class_names == ("a", "b")
    assert detector.variant.max_detections == 48  # of 24 queries
