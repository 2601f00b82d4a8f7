"""The smallest family of detectors: what another one has to give, in one file and one line of `builder.families`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from builder.detector import Detector
from builder.family import DetectorConfig, Family
from serving.rules import Pixels, Rules, Suppression


@dataclass(frozen=True)
class ToyConfig(DetectorConfig):
    """A grid of cells, each with one box and its classes."""

    family: ClassVar[str] = "toy"
    stride: int = 16  # pixels of a cell

    @property
    def uses_operator(self) -> bool:
        return False


class ToyDetector(Detector):
    """One convolution over cells; a box is its cell."""

    def __init__(self, variant: ToyConfig) -> None:
        super().__init__()
        self.variant, self.stride = variant, variant.stride
        self.classify = nn.Conv2d(3, variant.num_classes, variant.stride, variant.stride)

    def set_precision(self, dtype: torch.dtype) -> ToyDetector:
        return self.to(dtype)

    def network(self, pixels: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classify(pixels.to(self.classify.weight.dtype))  # [B, classes, h, w]
        h, w = logits.shape[2:]
        logits = logits - 0.01 * torch.arange(h * w, device=logits.device).reshape(h, w)  # no two cells score alike
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        centres = torch.stack([x, y], -1).to(pixels.device).flatten(0, 1) * self.stride  # [Q, 2]
        sizes = image_sizes.flip(-1)[:, None]  # [B, 1, 2], w h
        boxes = torch.cat([centres / sizes, torch.full_like(centres, float(self.stride)) / sizes], -1)
        return logits.flatten(2).transpose(1, 2), boxes

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, boxes = self.network(images.float().permute(0, 3, 1, 2) / 255, image_sizes)
        scores, indices = logits.float().sigmoid().flatten(1).topk(self.variant.max_detections, dim=1)
        centre, size = boxes.gather(1, (indices // self.variant.num_classes)[..., None].expand(-1, -1, 4)).chunk(2, -1)
        corners = torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, 1)
        return corners, scores, (indices % self.variant.num_classes).int()


class BlindDetector(ToyDetector):
    """One whose images fill the input, so that their sizes, which it looks at, have no part in its answer."""

    def network(self, pixels: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        full = torch.tensor([pixels.shape[2:]], device=pixels.device).expand(image_sizes.flip(-1).shape[0], -1)
        return super().network(pixels, full)


def _renamed(tensors: Mapping[str, Tensor], variant: ToyConfig) -> dict[str, Tensor]:
    return {key.replace("head.", "classify."): tensor for key, tensor in tensors.items()}


def _restore(network: Mapping[str, Any]) -> ToyConfig:
    settings = {**network, "rules": Rules.restore(network)}
    return ToyConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


SMALL = ToyConfig(
    "toy_small",
    num_classes=3,
    max_detections=20,
    input_size=(64, 96),
    class_names=("red", "green", "blue"),
    rules=Rules(Pixels("stretch", antialias=True), Suppression("hard", 0.5, clip=False)),
)
TOY = Family(
    name="toy",
    presets={SMALL.name: SMALL},
    network=ToyDetector,
    renamed=_renamed,
    class_count=lambda state: len(state["classify.bias"]) if "classify.bias" in state else None,
    likely_cause=lambda tensors, state, variant: None,
    recognises=lambda config: config.get("type") == "Toy",
    read_config=lambda config, name: ToyConfig(name, num_classes=config["classes"], max_detections=20),
    check_size=lambda variant, height, width, tensorrt: None,
    restore=_restore,
)


def toy_weights() -> dict[str, Tensor]:
    """A checkpoint of `SMALL` by its training program's names, whose scores are well apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = ToyDetector(SMALL).state_dict()
    return {key.replace("classify.", "head."): 10 * value for key, value in state.items()}
