"""The demo's RT-DETRv2 in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from builder.rtdetrv2.config import RTDETRv2Config
from builder.rtdetrv2.deformable import DeformableAttention
from builder.rtdetrv2.model import RTDETRv2
from demo.train.model import TrainingModel, initialize_heads, initialize_sampling


class RTDETRv2Training(TrainingModel):
    """RT-DETRv2 with its losses; its batch norms are trained."""

    detector: RTDETRv2

    @classmethod
    def of(cls, variant: RTDETRv2Config) -> RTDETRv2Training:
        """Return a network of random weights to start training from."""
        detector = RTDETRv2(variant, auxiliary=True)
        initialize(detector)
        # Convolutions in bfloat16 want channels last, as the images are.
        return cls(detector.to(memory_format=torch.channels_last))  # type: ignore[call-overload]  # not in its stub

    def memory(self, images: Tensor, image_sizes: Tensor) -> Any:
        """As `TrainingModel.memory`; images fill the input."""
        return self.detector.encode(self.detector.normalize(images))


def initialize(detector: RTDETRv2) -> None:
    """Set the weights to start training from, as ResNet and Deformable DETR do."""
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in detector.modules():
        if isinstance(module, DeformableAttention):
            points = module.num_points
            assert len(set(points)) == 1, points
            initialize_sampling(module, module.num_heads, len(points), points[0])
    initialize_heads(detector, detector.class_head, detector.proposals.class_head, *detector.auxiliary_heads)
