"""The demo's Co-DINO in training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from builder.co_dino.config import Variant
from builder.co_dino.deformable import MultiScaleDeformableAttention
from builder.co_dino.model import CoDINO
from demo.train.model import TrainingModel, initialize_heads, initialize_sampling


class CoDINOTraining(TrainingModel):
    """Co-DINO with its losses."""

    detector: CoDINO

    @classmethod
    def of(cls, variant: Variant) -> CoDINOTraining:
        """Return a network of random weights to start training from."""
        detector = CoDINO(variant)
        initialize(detector)
        return cls(detector)

    def memory(self, images: Tensor, image_sizes: Tensor) -> Any:
        """As `TrainingModel.memory`."""
        return self.detector.encode(self.detector.normalize(images, image_sizes), image_sizes)


def initialize(detector: CoDINO) -> None:
    """Set the weights to start training from, as Swin and Deformable DETR do."""
    for name, module in detector.named_modules():
        if isinstance(module, nn.Linear):
            swin = name.startswith("backbone")
            nn.init.trunc_normal_(module.weight, std=0.02) if swin else nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in detector.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            initialize_sampling(module, *module.samples)
    for name, parameter in detector.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02)
    nn.init.normal_(detector.level_embeds)
    initialize_heads(detector, detector.class_head, detector.proposals.class_head)
