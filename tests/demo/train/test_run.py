from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from builder.checkpoint import load_detector
from builder.co_dino.config import SwinConfig, Variant
from demo.shapes import CLASS_NAMES
from demo.shapes.draw import generate
from demo.train.matching import iou_and_giou
from demo.train.run import Settings, ShapesDataset, collate, export_weights, train
from serving.errors import CodetrError

TINY = Variant(
    "tiny",
    SwinConfig(32, (1, 1, 1, 1), (1, 2, 4, 8), window_size=7),
    num_classes=8,
    num_queries=40,
    embed_dim=64,
    num_heads=2,
    num_self_heads=2,
    feedforward_dim=128,
    encoder_layers=1,
    decoder_layers=2,
    input_size=(96, 144),
    class_names=CLASS_NAMES,
)
SETTINGS = Settings(
    steps=60, batch_size=2, seed=5, distinct_images=2, learning_rate=1e-3, warmup_steps=10, ema_decay=0.8
)


def run(folder: Path, settings: Settings) -> str:
    shown = io.StringIO()
    console = Console(file=shown, width=400)
    detector = train(TINY, folder, settings, device="cpu", workers=0, console=console)
    export_weights(detector, folder / "weights.safetensors", {"data_seed": str(settings.seed)})
    return shown.getvalue()


def test_two_images_are_learned_by_heart(tmp_path: Path) -> None:
    shown = run(tmp_path, SETTINGS)
    assert "decoder/giou" in shown
    detector = load_detector(TINY, tmp_path / "weights.safetensors")
    images, sizes, targets = collate([ShapesDataset(SETTINGS.seed, 96, 144)[index] for index in range(2)])
    boxes, _, labels = detector(images, sizes)
    centred = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)
    assert targets.present.any()
    for image in range(2):
        count = int(targets.present[image].sum())
        iou, _ = iou_and_giou(targets.boxes[image, :count, None], centred[image, None, : count + 2])
        right = labels[image, : count + 2] == targets.labels[image, :count, None]
        found = (iou * right).amax(1)
        assert found.min() > 0.4
        assert found.mean() > 0.75


def test_an_interrupted_run_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, steps=6)
    monkeypatch.setattr("demo.train.losses.WRONG_LABELS", 0.0)
    monkeypatch.setattr("demo.train.losses.CORNER_SHIFT", 0.0)  # noise differs between runs
    monkeypatch.setattr("demo.train.run.SAVE_EVERY", 2)
    whole = train(TINY, tmp_path / "whole", settings, device="cpu", workers=0, console=Console(quiet=True))

    taken = []

    def stop(*_: object) -> None:
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("demo.train.run._progress.__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "cut", settings, device="cpu", workers=0, console=Console(quiet=True))
    resumed = train(TINY, tmp_path / "cut", settings, device="cpu", workers=0, console=Console(quiet=True))
    assert len(taken) == 3 + 4  # steps 1 to 3, then again from the checkpoint of step 2
    for name, value in whole.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name], value, atol=1e-5), name


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, steps=1))
    with pytest.raises(CodetrError, match="choose another output folder"):
        run(tmp_path, replace(SETTINGS, steps=2))


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    run(tmp_path / "first", replace(SETTINGS, steps=1))
    weights = tmp_path / "first" / "weights.safetensors"
    still = replace(SETTINGS, steps=1, learning_rate=0.0, weights=str(weights))
    run(tmp_path / "second", still)
    first, second = load_detector(TINY, weights), load_detector(TINY, tmp_path / "second" / "weights.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_training_images_are_padded_and_their_boxes_relative_to_the_image() -> None:
    data = ShapesDataset(seed=9, height=96, width=144)
    portraits = 0
    for index in range(12):
        padded, (valid_h, valid_w), boxes, labels = data[index]
        sample = generate(9, index)
        height, width = sample.image.shape[:2]
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        assert padded.shape == (96, 144, 3)
        assert not padded[valid_h:].any()
        assert not padded[:, valid_w:].any()
        assert np.allclose(corners * [width, height, width, height], sample.boxes, atol=1e-3)
        assert labels.tolist() == sample.labels.tolist()
        portraits += height > width
    assert portraits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_equal_the_operator() -> None:
    from builder.operators.ms_deform_attn import reference_ms_deform_attn
    from demo.train.fast_sampling import ms_deform_attn

    torch.manual_seed(0)
    shapes, B, Q = [6, 9, 3, 5], 2, 19
    valid = torch.tensor([[[6, 9], [3, 5]], [[4, 7], [2, 4]]], dtype=torch.int32, device="cuda")
    value, grad = torch.randn(B, 69, 2, 32, device="cuda"), torch.randn(B, Q, 64, device="cuda")
    for width in (2, 4):
        references = torch.rand(B, Q, 2, width, device="cuda")
        offsets, logits = torch.randn(B, Q, 2, 2, 4, 2, device="cuda") * 2, torch.randn(B, Q, 2, 2, 4, device="cuda")
        results = []
        for function in (reference_ms_deform_attn, ms_deform_attn):
            leaves = [x.clone().requires_grad_() for x in (value, offsets, logits)]
            out = function(leaves[0], references, leaves[1], leaves[2], shapes, valid)
            results.append([out, *torch.autograd.grad(out, leaves, grad)])
        for expected, got in zip(*results, strict=True):
            assert torch.allclose(expected, got, atol=1e-4)
