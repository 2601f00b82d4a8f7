from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from builder.checkpoint import random_detector
from demo.train.co_dino import CoDINOTraining
from demo.train.denoising import separating_mask
from demo.train.matching import Targets
from demo.train.model import TrainingModel
from demo.train.rtdetrv2 import RTDETRv2Training
from tests.demo.train.tiny import CO_DINO, RTDETRV2

VARIANTS = [pytest.param(CO_DINO, id="co_dino"), pytest.param(RTDETRV2, id="rtdetrv2")]


def training(variant: Any) -> TrainingModel:
    torch.manual_seed(0)
    return CoDINOTraining.of(variant) if variant.family == "co_dino" else RTDETRv2Training.of(variant)


def images(variant: Any, count: int = 1) -> tuple[Tensor, Tensor]:
    height, width = variant.input_size
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.tensor([[height, width]] * count, dtype=torch.int32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_of_queries_do_not_see_each_other(variant: Any) -> None:
    """The detector's own queries give its own output, whatever denoising queries stand beside them."""
    detector: Any = random_detector(variant)
    given = images(variant, 2)
    model = CoDINOTraining(detector) if variant.family == "co_dino" else RTDETRv2Training(detector)
    memory = model.memory(*given)
    chosen = detector.proposals(*memory)
    expected, expected_boxes = detector.predict(detector.decoder(detector.content(chosen), chosen.boxes, *memory), -1)
    hidden = torch.cat([detector.content(chosen), torch.rand(2, 6, variant.embed_dim)], 1)
    references = torch.cat([chosen.boxes, torch.rand(2, 6, 4)], 1)
    mask = separating_mask([40, 3, 3], torch.device("cpu"))
    logits, boxes = detector.predict(detector.decoder(hidden, references, *memory, mask), -1)
    assert torch.allclose(logits[:, :40], expected, atol=1e-5)
    assert torch.allclose(boxes[:, :40], expected_boxes, atol=1e-5)
    unmasked, _ = detector.predict(detector.decoder(hidden, references, *memory), -1)
    assert not torch.allclose(unmasked[:, :40], expected, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_box_is_learned_by_its_layer_and_the_one_before(variant: Any) -> None:
    """DINO looks forward twice: a layer's prediction reaches its own box head, the one before, and no further."""
    model = training(replace(variant, decoder_layers=3))
    detector: Any = model.detector
    memory = model.memory(*images(variant))
    chosen = detector.proposals(*memory)
    decoded = detector.decoder(detector.content(chosen), chosen.boxes.detach(), *memory)
    _, boxes = detector.predict(decoded, 2)
    heads = [head[0].weight for head in detector.decoder.box_heads]
    last = [head[-1].weight for head in detector.decoder.box_heads]
    reached = torch.autograd.grad(boxes.sum(), heads + last, allow_unused=True)
    assert [gradient is not None for gradient in reached] == [False, True, True] * 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_of_the_detector_is_trained(variant: Any) -> None:
    model = training(variant)
    targets = Targets(torch.tensor([[[0.5, 0.5, 0.3, 0.3]]]), torch.tensor([[2]]), torch.tensor([[True]]))
    losses = model(*images(variant), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_batch_norms_are_trained() -> None:
    model = training(RTDETRV2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    targets = Targets(torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1, dtype=torch.bool))
    model(*images(RTDETRV2, 2), targets)
    assert before
    assert [name for name, buffer in model.named_buffers() if torch.equal(buffer, before[name])] == []


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_boxes_start_as_their_anchors_and_scores_low(variant: Any) -> None:
    model = training(variant).eval()
    detector: Any = model.detector
    memory = model.memory(*images(variant))
    chosen = detector.proposals(*memory)
    logits, boxes = detector.predict(detector.decoder(detector.content(chosen), chosen.boxes, *memory), -1)
    assert torch.allclose(boxes, chosen.boxes, atol=1e-3)
    assert float(logits.sigmoid().mean()) < 0.05
