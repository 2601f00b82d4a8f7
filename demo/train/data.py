"""The generated images as batches for training, the same ones however often a run was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from builder.family import DetectorConfig
from demo.shapes.dataset import encode_jpeg
from demo.shapes.draw import generate
from demo.train.matching import Targets
from serving.preprocess import resize_and_pad

# Half of the training images have gone through JPEG, as most of those the server receives.
JPEG_SHARE, JPEG_QUALITIES = 0.5, (60, 96)

Batch = tuple[Tensor, Tensor, Targets]


class ShapesDataset(Dataset[tuple[Any, ...]]):
    """Images of data set `seed` as `variant` receives them, by its pixel rule, with boxes relative to the image."""

    def __init__(self, seed: int, variant: DetectorConfig) -> None:
        self.seed, self.input_size, self.rule = seed, variant.input_size, variant.rules.pixels

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return image uint8 [H, W, 3], valid (h, w), boxes cx cy w h [N, 4] in 0..1 and labels [N]."""
        sample = generate(self.seed, index)
        rng = np.random.default_rng((self.seed, index, 1))
        image = sample.image
        if rng.random() < JPEG_SHARE:
            jpeg = encode_jpeg(image, int(rng.integers(*JPEG_QUALITIES)))
            bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            image = np.ascontiguousarray(bgr[..., ::-1], np.uint8)
        padded, valid = resize_and_pad(image, *self.input_size, self.rule)
        low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / np.tile(image.shape[1::-1], 2)
        return padded, valid, boxes.astype(np.float32), sample.labels


def collate(samples: list[tuple[Any, ...]]) -> Batch:
    """Return images [B, H, W, 3], valid sizes [B, 2] and padded targets of samples of `ShapesDataset`."""
    images, valid, boxes, labels = zip(*samples, strict=True)
    B, M = len(samples), max(1, *(len(label) for label in labels))
    targets = Targets(torch.zeros(B, M, 4), torch.zeros(B, M, dtype=torch.int64), torch.zeros(B, M, dtype=torch.bool))
    for i, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        count = len(image_labels)
        targets.boxes[i, :count] = torch.from_numpy(image_boxes)
        targets.labels[i, :count] = torch.from_numpy(image_labels)
        targets.present[i, :count] = True
    return torch.from_numpy(np.stack(images)), torch.tensor(np.array(valid), dtype=torch.int32), targets


def batches(
    variant: DetectorConfig,
    seed: int,
    batch_size: int,
    steps: range,
    distinct_images: int | None = None,
    workers: int = 0,
    pinned: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of `steps`; a step always has the same images.

    Args:
        variant: decides the size and the pixel rule.
        seed: of the data set.
        batch_size: images of a step.
        steps: numbers of the steps.
        distinct_images: after how many images they are repeated; None: never.
        workers: processes that draw; 0 draws in this one.
        pinned: put batches into pinned memory, for a GPU.
    """
    numbers = range(steps.start * batch_size, steps.stop * batch_size)
    loader = DataLoader(
        ShapesDataset(seed, variant),
        batch_size,
        sampler=[number % distinct_images for number in numbers] if distinct_images else numbers,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
        pin_memory=pinned,
    )
    # Before the processes are forked: in them OpenCV would wait for threads that it had here, and has there no more.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield from loader
    finally:
        cv2.setNumThreads(threads)
