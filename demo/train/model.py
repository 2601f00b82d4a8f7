"""A detector in training: what it is trained to do, whatever its family."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from builder.co_dino.model import CoDINO
from builder.parts.layers import BoxHead
from builder.rtdetrv2.model import RTDETRv2
from demo.train.denoising import GROUPS, noisy_objects, separating_mask
from demo.train.losses import detection_losses
from demo.train.matching import Targets, hungarian, task_aligned

# Score of an untrained class head (RetinaNet, arXiv 1708.02002, section 4.1).
PRIOR = 0.01


class TrainingModel(nn.Module):
    """A detector with what only training needs: the embedding of the labels that denoising queries carry."""

    def __init__(self, detector: CoDINO | RTDETRv2) -> None:
        super().__init__()
        self.detector = detector
        self.label_embedding = nn.Embedding(detector.variant.num_classes, detector.variant.embed_dim)

    @abstractmethod
    def memory(self, images: Tensor, image_sizes: Tensor) -> Any:
        """Return the detector's memory of uint8 images [B, H, W, 3] with valid sizes int [B, 2]."""

    def forward(self, images: Tensor, image_sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the losses of a batch by name, each a scalar; their sum is what to minimise.

        Args:
            images: uint8 [B, H, W, 3] RGB.
            image_sizes: int [B, 2], valid (h, w) in pixels.
            targets: the objects.
        """
        detector: Any = self.detector
        memory = self.memory(images, image_sizes)
        scored = detector.proposals.score(*memory)
        boxes, centres = detector.proposals.boxes(scored.tokens, scored.anchors), scored.anchors[..., :2].sigmoid()
        assigned, quality = task_aligned(scored.logits, boxes, centres, targets)
        losses = _named("first_stage", detection_losses(scored.logits, boxes, assigned, targets, quality=quality))

        chosen = detector.proposals.best(scored)
        queries = detector.content(chosen)
        noisy = noisy_objects(targets, self.label_embedding.num_embeddings)
        decoded = detector.decoder(
            torch.cat([queries, self.label_embedding(noisy.labels)], dim=1),
            torch.cat([chosen.boxes.detach(), noisy.boxes], dim=1),  # the first stage learns from its own loss alone
            *memory,
            separating_mask([queries.shape[1]] + [noisy.group] * GROUPS, images.device),
        )
        layers = [detector.predict(decoded, layer) for layer in range(len(decoded.hidden))]
        logits, boxes = (torch.stack(part) for part in zip(*layers, strict=True))
        cut = [queries.shape[1], noisy.labels.shape[1]]
        (logits, noisy_logits), (boxes, noisy_boxes) = logits.split(cut, 2), boxes.split(cut, 2)
        losses |= _named("decoder", detection_losses(logits, boxes, hungarian(logits, boxes, targets), targets))
        assigned, counted = (x.expand(len(logits), -1, -1) for x in (noisy.assigned, noisy.counted))
        denoising = detection_losses(noisy_logits, noisy_boxes, assigned, targets, counted, GROUPS)
        return losses | _named("denoising", denoising)


def _named(stage: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{stage}/{name}": loss for name, loss in losses.items()}


def initialize_sampling(module: nn.Module, heads: int, levels: int, points: int) -> None:
    """Let every head look in a direction of its own, point i at i + 1 units (Deformable DETR, appendix A.4)."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1.0)
    grid = directions[:, None, None] * steps[:, None]  # [heads, 1, points, 2]
    offsets, weights = module.get_submodule("sampling_offsets"), module.get_submodule("attention_weights")
    assert isinstance(offsets, nn.Linear)
    assert isinstance(weights, nn.Linear)
    nn.init.zeros_(offsets.weight)
    nn.init.zeros_(weights.weight)
    with torch.no_grad():
        offsets.bias.copy_(grid.expand(-1, levels, -1, -1).flatten())


def initialize_heads(detector: CoDINO | RTDETRv2, *class_heads: nn.Module) -> None:
    """Let boxes be their anchors, and scores low."""
    for module in detector.modules():
        if isinstance(module, BoxHead):
            nn.init.zeros_(module[-1].weight)  # type: ignore[arg-type]  # a Linear
    for head in class_heads:
        assert isinstance(head, nn.Linear)
        nn.init.constant_(head.bias, -math.log(1 / PRIOR - 1))
