"""Where tokens are: valid level sizes, sine embeddings and reference points, all in float32.

The valid part of an image is always a rectangle at the top left, so a level's mask is known by its valid height and
width, and nothing here accumulates over a mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to the denominator of the normalised positions (mmdetection `SinePositionalEncoding`).
POSITION_EPS = 1e-6

Shapes = list[tuple[int, int]]


def level_valid_shapes(image_sizes: Tensor, input_shape: tuple[int, int], shapes: Shapes) -> Tensor:
    """Return int32 [B, L, 2]: how many rows and columns of each level lie inside the valid image.

    A token is valid if the mask pixel that nearest-neighbour down-sampling picks for it is, the rule of mmdetection.
    `image_sizes` is int [B, 2], the valid (h, w) of an input of `input_shape` pixels.
    """
    levels = [
        torch.stack(
            [
                (_nearest_source(size, length, image_sizes.device) < image_sizes[:, axis, None]).sum(1)
                for axis, (size, length) in enumerate(zip(shape, input_shape, strict=True))
            ],
            dim=1,
        )
        for shape in shapes
    ]
    return torch.stack(levels, dim=1).int()


def _nearest_source(size: int, source_size: int, device: torch.device) -> Tensor:
    """Return float32 [size]: the source index of each output index, rounded as `F.interpolate(mode="nearest")` does."""
    scale = torch.tensor(source_size / size, dtype=torch.float32, device=device)
    return torch.floor(torch.arange(size, dtype=torch.float32, device=device) * scale)


def token_mask(valid_shapes: Tensor, shapes: Shapes) -> Tensor:
    """Return bool [B, S], true on tokens inside the valid image; `valid_shapes` is int32 [B, L, 2]."""
    masks = [
        (torch.arange(h, device=valid_shapes.device) < valid_shapes[:, level, :1])[:, :, None]
        & (torch.arange(w, device=valid_shapes.device) < valid_shapes[:, level, 1:])[:, None, :]
        for level, (h, w) in enumerate(shapes)
    ]
    return torch.cat([mask.flatten(1) for mask in masks], dim=1)


def valid_ratios(valid_shapes: Tensor, shapes: Shapes) -> Tensor:
    """Return float32 [B, L, 2]: the valid share (x, y) of each level."""
    return valid_shapes.flip(-1) / torch.tensor(shapes, device=valid_shapes.device).flip(-1)


def token_centres(shape: tuple[int, int], valid_shape: Tensor) -> Tensor:
    """Return float32 [B, h*w, 2]: token centres (x, y) of one level, 0..1 of its valid part, beyond 1 in the padding.

    `valid_shape` is int [B, 2], the level's valid (h, w).
    """
    h, w = shape
    y = (torch.arange(h, device=valid_shape.device) + 0.5) / valid_shape[:, :1]  # [B, h]
    x = (torch.arange(w, device=valid_shape.device) + 0.5) / valid_shape[:, 1:]  # [B, w]
    grid = torch.stack([x[:, None, :].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)], dim=-1)
    return grid.flatten(1, 2)


def sine_position_embedding(shape: tuple[int, int], valid_shape: Tensor, channels: int, temperature: float) -> Tensor:
    """Return float32 [B, h*w, channels], the position of each token of one level: first y, then x.

    Source: DETR (arXiv 2005.12872), appendix A.4, normalised to 0..2 pi over the valid part; positions count from 1,
    stop at the valid edge along their own axis, and are 0 where the other axis is padding.
    """
    (h, w), device = shape, valid_shape.device
    height, width = valid_shape[:, :1, None], valid_shape[:, 1:, None].transpose(1, 2)  # [B, 1, 1]
    row = torch.arange(1, h + 1, device=device)[None, :, None]
    column = torch.arange(1, w + 1, device=device)[None, None, :]
    y = torch.where(column <= width, torch.minimum(row, height) / (height + POSITION_EPS), 0.0)  # [B, h, w]
    x = torch.where(row <= height, torch.minimum(column, width) / (width + POSITION_EPS), 0.0)
    position = torch.stack([y, x], dim=-1).flatten(1, 2) * 2 * math.pi
    return sine_embedding(position, channels // 2, temperature)


def looked_up_positions(shapes: Shapes, valid_shapes: Tensor, level_embeds: Tensor, temperature: float) -> Tensor:
    """Return float32 [B, S, C]: of the tokens of all levels `sine_position_embedding` plus their level's embedding.

    To the bit, but sines are made for each row and each column and looked up for the tokens. Of more than eight parts
    Inductor writes a table down; of fewer it would make the sines for every token again.

    Args:
        shapes: (h, w) of each of five levels or more.
        valid_shapes: int [B, L, 2], their valid (h, w).
        level_embeds: [L, C], C a multiple of 4.
        temperature: of the wavelengths, as of `sine_position_embedding`.
    """
    device, half, begin = valid_shapes.device, level_embeds.shape[1] // 2, 0
    tables, places = [], []
    for (h, w), valid_shape, embedding in zip(shapes, valid_shapes.unbind(1), level_embeds.float(), strict=True):
        height, width = valid_shape[:, :1], valid_shape[:, 1:]  # [B, 1]
        row, column = torch.arange(h + 1, device=device), torch.arange(w + 1, device=device)  # 0 stands for padding
        for steps, valid, of_level in zip((row, column), (height, width), embedding.split(half), strict=True):
            position = torch.minimum(steps, valid) / (valid + POSITION_EPS) * 2 * math.pi
            tables.append(sine_embedding(position.unsqueeze(-1), half, temperature) + of_level)
        y = torch.where(column[1:] <= width.unsqueeze(-1), row[1:, None], 0)  # [B, h, w]
        x = torch.where(row[1:, None] <= height.unsqueeze(-1), column[1:], 0)
        places.append(torch.stack([begin + y, begin + h + 1 + x], dim=-1).flatten(1, 2))
        begin += h + w + 2
    of_image = begin * torch.arange(valid_shapes.shape[0], device=device)[:, None, None]
    return F.embedding(torch.cat(places, dim=1) + of_image, torch.cat(tables, dim=1).flatten(0, 1)).flatten(-2)


def sine_embedding(coordinates: Tensor, channels: int, temperature: float) -> Tensor:
    """Return float32 [..., K*channels]: interleaved sine and cosine of each of K `coordinates` [..., K], in radians."""
    exponent = 2 * (torch.arange(channels, device=coordinates.device) // 2) / channels
    angles = coordinates.unsqueeze(-1) / temperature**exponent  # [..., K, channels]
    pairs = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1)
    return pairs.flatten(-3)
