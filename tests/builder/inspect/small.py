"""A small detector with a backbone, an encoder, a choice of proposals and a decoder, and its damage."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import nn

from builder.inspect.marked import MarkedEngine, torch_run
from builder.inspect.marks import mark_program
from builder.parts.layers import MLP, LayerNorm, MultiHeadAttention, gather_tokens

HEIGHT, WIDTH = 32, 64
DEPTHS = {"backbone": "backbone.1", "encoder": "encoder.ffn.0", "decoder": "decoder.ffn.2"}
KINDS = ("weights x 1.01", "bias dropped", "rounded to FP16")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.norm1 = MultiHeadAttention(16, 2), LayerNorm(16)
        self.ffn, self.norm2 = MLP(16, 32, 16), LayerNorm(16)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x, x, x))
        return self.norm2(x + self.ffn(x))


class Proposals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(16, 1)

    def forward(self, memory):
        places = self.score(memory).float()[..., 0].topk(6, dim=1).indices
        return gather_tokens(memory, places)


class SmallDetector(nn.Module):
    """The inputs and outputs of a detector; scores of its queries are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.variant = SimpleNamespace(max_detections=4)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 16, 1), nn.ReLU())
        self.encoder, self.proposals, self.decoder = Layer(), Proposals(), Layer()
        self.queries = nn.Embedding(6, 16)
        self.box_head, self.class_head = nn.Linear(16, 4), nn.Linear(16, 3)

    @property
    def device(self):
        return self.class_head.weight.device

    def set_precision(self, dtype):
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                parameter.data = parameter.data.to(dtype)
        return self

    def forward(self, images, image_sizes):
        pixels = images.float().permute(0, 3, 1, 2) / 255 + image_sizes.float().mean(1)[:, None, None, None] * 1e-3
        tokens = self.backbone(pixels.to(self.class_head.weight.dtype)).flatten(2).transpose(1, 2)
        queries = self.proposals(self.encoder(tokens)) + self.queries.weight
        hidden = self.decoder(queries)
        scores, places = self.class_head(hidden).float().sigmoid().flatten(1).topk(4, dim=1)
        boxes = self.box_head(hidden).float().sigmoid().gather(1, (places // 3)[..., None].expand(-1, -1, 4))
        return boxes, scores, (places % 3).int()


def small_detector():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return SmallDetector().eval().requires_grad_(False)


def damaged(detector, module, kind):
    """Return the detector with one layer damaged on purpose."""
    detector = copy.deepcopy(detector)
    layer = detector.get_submodule(module)
    if kind == KINDS[0]:
        layer.weight.mul_(1.01)
    elif kind == KINDS[1]:
        layer.bias.zero_()
    else:
        layer.weight.copy_(layer.weight.half().float())
    return detector


def samples(count=2):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, HEIGHT, WIDTH, 3), generator=random, dtype=torch.uint8).numpy()
    sizes = torch.tensor([[HEIGHT, WIDTH]], dtype=torch.int32).numpy()
    return [(f"noise {i}", images[i], sizes) for i in range(count)]


def marked_eager(program):
    """A program of one batch as an engine that nothing compiles."""
    marked, marks = mark_program(program)
    run = torch_run(marked.module(check_guards=False), marks, "cpu", 2)
    return MarkedEngine(marks, run, "the exported program", is_the_engine=False)
