"""Trains the small Co-DINO of the demo on generated shapes: one command, resumable, one GPU."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from builder.checkpoint import load_detector
from builder.co_dino.config import Variant
from builder.co_dino.deformable import MultiScaleDeformableAttention
from builder.co_dino.model import CoDINO
from builder.parts.layers import BoxHead
from demo.shapes.dataset import encode_jpeg
from demo.shapes.draw import generate
from demo.train.losses import TrainingModel
from demo.train.matching import Targets
from serving.errors import CodetrError
from serving.preprocess import resize_and_pad

# Half of the training images have gone through JPEG, as most of those the server receives.
JPEG_SHARE, JPEG_QUALITIES = 0.5, (60, 96)
# Score of an untrained class head (RetinaNet, arXiv 1708.02002, section 4.1).
PRIOR = 0.01
LOG_EVERY, SAVE_EVERY = 50, 500  # steps

Batch = tuple[Tensor, Tensor, Targets]


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a training run."""

    steps: int = 4700
    batch_size: int = 32
    seed: int = 1
    learning_rate: float = 4e-4
    weight_decay: float = 0.02
    warmup_steps: int = 500
    flat_share: float = 0.4  # of the steps before the learning rate falls
    max_gradient: float = 0.5  # norm
    ema_decay: float = 0.999
    distinct_images: int | None = None  # None: never the same image twice
    weights: str | None = None  # file of weights to start from; None: random ones


def train_demo(variant: Variant, output: Path, command: str, device: str, workers: int, console: Console) -> Path:
    """Train the demo detector as its shipped weights were: once from random weights, once more from the result.

    Returns:
        The path of the float16 weights, in `output`.
    """
    first, last = output / "first.safetensors", output / "co_dino_demo_fp16.safetensors"
    stages = (
        (first, Settings()),
        (last, Settings(3200, seed=3, learning_rate=2e-4, warmup_steps=100, flat_share=0.2, weights=str(first))),
    )
    for path, settings in stages:
        if not path.exists():
            detector = train(variant, output / path.stem, settings, device=device, workers=workers, console=console)
            export_weights(detector, path, {"training_command": command, "data_seed": "1 and 3"})
    return last


def train(
    variant: Variant,
    output: Path,
    settings: Settings,
    *,
    device: str = "cuda",
    workers: int = 15,
    console: Console | None = None,
) -> CoDINO:
    """Train `variant` on shapes and return the averaged detector, on the CPU in float32.

    An earlier run's `output/checkpoint.pt` is continued.

    Args:
        variant: the network; its classes must be the shapes.
        output: folder of the checkpoint.
        settings: of the run; a checkpoint made with others is refused.
        device: "cuda" (bfloat16 autocast and the fast sampling kernels) or "cpu".
        workers: processes that draw images.
        console: where progress and losses are shown.

    Raises:
        CodetrError: the checkpoint was made with other settings, or there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise CodetrError("no CUDA device for training; use --device cpu (slow) or another machine")
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    run = _Run(variant, output, settings, device)
    with _progress(console or Console(), settings.steps, run.step) as report, _sampling(device):
        for batch in _batches(variant, settings, run.step, workers):
            losses = run.train_step(batch)
            report(run.step, losses, run.scheduled_rate())
            if run.step == settings.steps or run.step % SAVE_EVERY == 0:
                run.save()
    return run.averaged.cpu().eval().requires_grad_(False)


def export_weights(detector: CoDINO, path: Path, metadata: dict[str, str]) -> None:
    """Write the detector's weights as float16 safetensors with its class names and `metadata`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in detector.state_dict().items()}
    names = {"class_names": ",".join(detector.variant.class_names or ()), "variant": detector.variant.name}
    save_file(tensors, path, {**names, **metadata})


class _Run:
    """The state of a training run: the network, its running average, the optimiser and the step reached."""

    def __init__(self, variant: Variant, output: Path, settings: Settings, device: str) -> None:
        self.settings, self.device = settings, device
        self.path = output / "checkpoint.pt"
        detector = CoDINO(variant)
        if settings.weights is None:
            initialize(detector)
        else:
            detector.load_state_dict(load_detector(variant, settings.weights).state_dict())
        self.model = TrainingModel(detector).to(device)
        self.averaged = copy.deepcopy(self.model.detector).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, settings), lr=settings.learning_rate, fused=device == "cuda"
        )
        self.step = 0
        if self.path.exists():
            self._load()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step of the optimiser and of the running average; return the losses."""
        images, image_sizes, targets = _to(batch, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.scheduled_rate()
        pixels = self.model.detector._normalize(images, image_sizes)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            losses: dict[str, Tensor] = self.model(pixels, image_sizes, targets)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._average()
        return {name: loss.detach() for name, loss in losses.items()}

    def scheduled_rate(self) -> float:
        """Return the learning rate of this step: warm-up, flat, half a cosine to 1 %."""
        settings = self.settings
        flat_until = settings.flat_share * settings.steps
        fallen = max(0.0, self.step - flat_until) / (settings.steps - flat_until)
        factor = 0.01 + 0.99 * (1 + math.cos(math.pi * fallen)) / 2
        return settings.learning_rate * min(1.0, (self.step + 1) / settings.warmup_steps) * factor

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        averaged: list[Tensor] = list(self.averaged.parameters())
        weights: list[Tensor] = list(self.model.detector.parameters())
        torch._foreach_lerp_(averaged, weights, 1 - decay)

    def save(self) -> None:
        """Write the checkpoint; a run killed meanwhile keeps the earlier one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "optimizer")}
        new = self.path.with_suffix(".new")
        torch.save({"settings": asdict(self.settings), "step": self.step, **state}, new)
        os.replace(new, self.path)

    def _load(self) -> None:
        checkpoint = torch.load(self.path, map_location=self.device, weights_only=True)
        if checkpoint["settings"] != asdict(self.settings):
            raise CodetrError(
                f"{self.path} was made with {checkpoint['settings']}, not {asdict(self.settings)}; "
                "delete it or choose another output folder"
            )
        for name in ("model", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(checkpoint[name])
        self.step = checkpoint["step"]


# ------------------------------------------------------------------------------------------------------ data


class ShapesDataset(Dataset[tuple[Any, ...]]):
    """Images of data set `seed` as the network receives them: resized, padded, with boxes relative to the image."""

    def __init__(self, seed: int, height: int, width: int) -> None:
        self.seed, self.height, self.width = seed, height, width

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return image uint8 [H, W, 3], valid (h, w), boxes cx cy w h [N, 4] in 0..1 and labels [N]."""
        sample = generate(self.seed, index)
        rng = np.random.default_rng((self.seed, index, 1))
        image = sample.image
        if rng.random() < JPEG_SHARE:
            jpeg = encode_jpeg(image, int(rng.integers(*JPEG_QUALITIES)))
            bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            image = np.ascontiguousarray(bgr[..., ::-1], np.uint8)
        padded, valid = resize_and_pad(image, self.height, self.width)
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


def _batches(variant: Variant, settings: Settings, first_step: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of the steps from `first_step` on; step i has the same images however often it was resumed."""
    height, width = variant.input_size
    numbers = range(first_step * settings.batch_size, settings.steps * settings.batch_size)
    distinct = settings.distinct_images or settings.steps * settings.batch_size
    indices = [number % distinct for number in numbers]
    loader = DataLoader(
        ShapesDataset(settings.seed, height, width),
        settings.batch_size,
        sampler=indices,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )
    yield from loader


def _one_thread(_: int) -> None:
    cv2.setNumThreads(1)


def _to(batch: Batch, device: str) -> Batch:
    images, image_sizes, targets = batch
    return images.to(device), image_sizes.to(device), Targets(*(tensor.to(device) for tensor in targets))


# ------------------------------------------------------------------------------------------------- start, log


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
            _initialize_sampling(module)
        elif isinstance(module, BoxHead):
            nn.init.zeros_(module[-1].weight)  # type: ignore[arg-type]  # a Linear
    for name, parameter in detector.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02)
    nn.init.normal_(detector.level_embeds)
    for head in (detector.class_head, detector.proposals.class_head):
        nn.init.constant_(head.bias, -math.log(1 / PRIOR - 1))


def _initialize_sampling(module: MultiScaleDeformableAttention) -> None:
    """Let every head look in a direction of its own, point i at i + 1 pixels (Deformable DETR, appendix A.4)."""
    heads, levels, points = module.samples
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1.0)
    grid = directions[:, None, None] * steps[:, None]  # [heads, 1, points, 2]
    nn.init.zeros_(module.sampling_offsets.weight)
    nn.init.zeros_(module.attention_weights.weight)
    with torch.no_grad():
        module.sampling_offsets.bias.copy_(grid.expand(-1, levels, -1, -1).flatten())


def _parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Return the parameters with and without weight decay: norms, biases, embeddings and tables have none."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        kept = parameter.ndim < 2 or "embed" in name.rsplit(".", 2)[-2] or "table" in name or "level_embeds" in name
        (free if kept else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]


def _sampling(device: str) -> Any:
    """Return the context in which deformable attention has a fast backward on a GPU."""
    if device == "cpu":
        return nullcontext()
    from demo.train.fast_sampling import fast_sampling  # needs Triton, which PyTorch for CPUs does not bring

    return fast_sampling()


class _progress:  # noqa: N801  # a context manager used like a function
    """Shows a bar, and a line of losses every `LOG_EVERY` steps."""

    def __init__(self, console: Console, steps: int, first: int) -> None:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("training", total=steps, completed=first)
        self.console, self.since = console, (time.monotonic(), first)

    def __enter__(self) -> _progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, step: int, losses: dict[str, Tensor], rate: float) -> None:
        self.bar.update(self.task, completed=step)
        if step % LOG_EVERY:
            return
        now, (then, first) = time.monotonic(), self.since
        self.since = (now, step)
        shown = "  ".join(f"{name} {float(loss):.3f}" for name, loss in losses.items())
        speed = (step - first) / (now - then)
        self.console.print(f"step {step}  lr {rate:.2e}  {speed:.2f} steps/s  {shown}", highlight=False, soft_wrap=True)
