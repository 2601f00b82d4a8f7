import argparse
import json

import pytest
import torch

from builder import CheckpointError, get_variant, load_detector
from builder.detr.config import COCO_NAMES
from tests.builder.detr.golden import assert_close

KEYS = {"keys_detr_r50.json": ("detr_r50", "detr_r50_dc5"), "keys_detr_r101.json": ("detr_r101", "detr_r101_dc5")}
PUBLISHED = [pytest.param(file, variant, id=variant) for file, variants in KEYS.items() for variant in variants]


def published(data_dir, file):
    shapes = json.loads((data_dir / file).read_text())["deploy"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture
def tensors(data_dir):
    return published(data_dir, "keys_detr_r50.json")


@pytest.mark.parametrize(("file", "variant"), PUBLISHED)
def test_full_size_models_take_the_published_keys(data_dir, file, variant):
    tensors = published(data_dir, file)
    detector = load_detector(variant, {"model": tensors})
    assert len(detector.state_dict()) == len(tensors) == json.loads((data_dir / file).read_text())["n_keys_total"]
    assert detector.variant.class_names == COCO_NAMES


@pytest.mark.parametrize(("file", "variant"), PUBLISHED)
def test_an_invented_a_missing_and_a_misshapen_key_are_all_listed(data_dir, file, variant):
    tensors = published(data_dir, file)
    del tensors["transformer.decoder.norm.bias"]
    tensors["transformer.invented.weight"] = torch.empty(3, device="meta")
    tensors["input_proj.bias"] = torch.empty(7, device="meta")
    with pytest.raises(CheckpointError) as error:
        load_detector(variant, tensors)
    assert "missing: decoder.norm.bias (256,)" in str(error.value)
    assert "unexpected: invented.weight (3,)" in str(error.value)
    assert "input_proj.bias is (7,), expected (256,)" in str(error.value)


def test_counters_and_imagenets_classifier_are_left_out_by_name(detr):
    extra = {
        "backbone.0.body.bn1.num_batches_tracked": torch.tensor(5),
        "backbone.0.body.fc.weight": torch.zeros(1),
        "backbone.0.body.fc.bias": torch.zeros(1),
    }
    state = load_detector(detr.config, detr.weights | extra).state_dict()
    assert state.keys() == detr.detector().state_dict().keys()
    with pytest.raises(CheckpointError, match=r"unexpected: fc\.weight"):
        load_detector(detr.config, detr.weights | {"fc.weight": torch.zeros(1)})


def test_its_own_names_load_again(detr):
    detector = detr.detector()
    again = load_detector(detr.config, detector.state_dict())
    assert all(torch.equal(again.state_dict()[key], value) for key, value in detector.state_dict().items())


def training_file(path, weights, **arguments):
    """Write what the original's training program saves, an optimizer and its arguments beside the weights."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    content = {"model": weights, "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(content | {"args": argparse.Namespace(**arguments)}, path)
    return path


def test_a_file_of_the_original_training_program_loads(tmp_path, detr):
    path = training_file(tmp_path / "checkpoint.pth", detr.weights, dilation=False, nheads=4)
    expected = detr.detector().state_dict()
    for weights in (path, torch.load(path, weights_only=False)):  # the file, and what people have loaded themselves
        state = load_detector(detr.config, weights).state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"dilation": True}, "trained with dilation=True, variant 'custom' has False", id="dilation"),
        pytest.param({"nheads": 8}, "trained with nheads=8, variant 'custom' has 4", id="heads"),
    ],
)
def test_arguments_that_no_tensor_shows_must_be_the_variants(tmp_path, detr, arguments, message):
    with pytest.raises(CheckpointError, match=message):
        load_detector(detr.config, training_file(tmp_path / "checkpoint.pth", detr.weights, **arguments))


@pytest.mark.parametrize(
    ("file", "dilated", "message"),
    [
        pytest.param("detr-r50-dc5-f0fb7ef5.pth", False, "file of detr_r50_dc5, variant 'custom' is not", id="DC5"),
        pytest.param("detr-r50-e632da11.pth", True, "file of detr_r50, variant 'custom' is one of DC5", id="plain"),
    ],
)
def test_a_published_dc5_file_is_told_by_its_name(tmp_path, detr, file, dilated, message):
    torch.save({"model": detr.weights}, tmp_path / file)
    load_detector(detr.settings(not dilated), tmp_path / file)
    with pytest.raises(CheckpointError, match=message):
        load_detector(detr.settings(dilated), tmp_path / file)


def prefixed(weights):
    """Return weights as the original's segmentation model has them."""
    return {f"detr.{key}": value for key, value in weights.items()} | {"mask_head.lay1.weight": torch.zeros(1)}


def basic(weights):
    """Return weights with a backbone of two convolutions a block."""
    return {key: value for key, value in weights.items() if ".conv3." not in key and ".bn3." not in key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(prefixed, "is DETR's segmentation model", id="masks"),
        pytest.param(lambda sd: sd | {"transformer.encoder.norm.weight": torch.zeros(256)}, "pre_norm", id="pre-norm"),
        pytest.param(
            lambda sd: sd | {"backbone.1.row_embed.weight": torch.zeros(50, 128)}, "learned position", id="learned"
        ),
        pytest.param(basic, "has a backbone of basic blocks (R18 or R34), variant 'detr_r50' has R50", id="R18"),
        pytest.param(
            lambda sd: {key: value for key, value in sd.items() if "encoder.layers.5" not in key},
            "has 5 encoder layers, variant 'detr_r50' has 6",
            id="layers",
        ),
        pytest.param(
            lambda sd: sd | {"query_embed.weight": torch.zeros(300, 256)},
            "has 300 queries, variant 'detr_r50' has 100",
            id="queries",
        ),
        pytest.param(
            lambda sd: {key[16:]: value for key, value in sd.items() if key.startswith("backbone.0.body.")},
            "weights of a backbone alone",
            id="ImageNet",
        ),
        pytest.param(lambda sd: {"query_head.x": torch.zeros(1)}, "weights of Co-DETR", id="Co-DETR"),
        pytest.param(lambda sd: {"transformer.level_embed": torch.zeros(1)}, "Deformable DETR", id="Deformable DETR"),
        pytest.param(lambda sd: {"bbox_head.fc_cls.bias": torch.zeros(1)}, "mmdetection", id="mmdetection"),
        pytest.param(
            lambda sd: {"class_labels_classifier.bias": torch.zeros(1)},
            "Hugging Face's transformers",
            id="transformers",
        ),
        pytest.param(lambda sd: {"decoder.dec_score_head.0.bias": torch.zeros(1)}, "an RT-DETR", id="RT-DETR"),
    ],
)
def test_the_first_line_says_what_a_wrong_file_is(tensors, change, message):
    with pytest.raises(CheckpointError) as error:
        load_detector("detr_r50", {"model": change(tensors)})
    assert message in str(error.value).splitlines()[0]


def test_another_depth_is_told(data_dir):
    with pytest.raises(CheckpointError, match="has a backbone R101, variant 'detr_r50' has R50"):
        load_detector("detr_r50", published(data_dir, "keys_detr_r101.json"))


@pytest.mark.parametrize("classes", [1, 5, 80])
def test_a_fine_tuned_checkpoint_has_its_own_classes(tensors, classes):
    tensors["class_embed.weight"] = torch.empty(classes + 1, 256, device="meta")
    tensors["class_embed.bias"] = torch.empty(classes + 1, device="meta")
    names = ("N/A", *(f"class {i}" for i in range(1, classes)))
    variant = load_detector(get_variant("detr_r50").derive("mine", class_names=names), tensors).variant
    assert (variant.num_classes, variant.class_names, variant.max_detections) == (classes, names, 100)
    assert load_detector(get_variant("detr_r50").derive("mine", num_classes=classes), tensors).variant.class_names
    with pytest.raises(CheckpointError, match=rf"the checkpoint has {classes} classes .* ids 1 to 4 make 5 classes"):
        load_detector("detr_r50", tensors)


def test_loaded_weights_compute_as_stored_ones(detr):
    """One changed number in any of a few tensors shows: none is left at its random start."""
    pixels, sizes = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)), torch.tensor([[64, 96]])
    expected = detr.detector().network(pixels, sizes)
    again = load_detector(detr.config, {f"module.{key}": value.half().float() for key, value in detr.weights.items()})
    assert_close(again.network(pixels, sizes)[0], expected[0], 0.1)
