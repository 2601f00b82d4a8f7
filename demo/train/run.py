"""A training run on generated shapes: resumable, in pieces if need be, on one GPU or a CPU."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from builder.detector import Detector
from builder.family import DetectorConfig
from demo.train.co_dino import CoDINOTraining
from demo.train.data import Batch, batches
from demo.train.matching import Targets
from demo.train.model import TrainingModel
from demo.train.rtdetrv2 import RTDETRv2Training
from serving.errors import CodetrError

LOG_EVERY, SAVE_EVERY = 50, 500  # steps
# What trains a variant of each family that can be trained here.
TRAINING_MODELS: dict[str, Callable[[Any], TrainingModel]] = {
    "co_dino": CoDINOTraining.of,
    "rtdetrv2": RTDETRv2Training.of,
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a training run."""

    steps: int
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


def train(
    variant: DetectorConfig,
    output: Path,
    settings: Settings,
    *,
    device: str = "cuda",
    workers: int = 15,
    console: Console | None = None,
    minutes: float = math.inf,
) -> Detector | None:
    """Train `variant` on shapes and return the averaged detector, on the CPU in float32; None if time is up before.

    An earlier run's `output/checkpoint.pt` is continued.

    Args:
        variant: the network; its classes must be the shapes.
        output: folder of the checkpoint.
        settings: of the run; a checkpoint made with others is refused.
        device: "cuda" (bfloat16 autocast and the Triton kernels) or "cpu".
        workers: processes that draw images.
        console: where progress and losses are shown.
        minutes: after how long to stop at a checkpoint; the same call continues from it.

    Raises:
        CodetrError: the checkpoint was made with other settings, or there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise CodetrError("no CUDA device for training; use --device cpu (slow) or another machine")
    until = time.monotonic() + 60 * minutes
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    run = _Run(variant, output, settings, device)
    steps = range(run.step, settings.steps)
    loader = batches(
        variant, settings.seed, settings.batch_size, steps, settings.distinct_images, workers, device == "cuda"
    )
    with _progress(console or Console(), settings.steps, run.step) as report, _sampling(device):
        for batch in loader:
            losses = run.train_step(batch)
            report(run.step, losses, run.scheduled_rate())
            time_is_up = time.monotonic() > until
            if time_is_up or run.step == settings.steps or run.step % SAVE_EVERY == 0:
                run.save()
            if time_is_up:
                break
    if run.step < settings.steps:
        return None
    return run.averaged.cpu().eval().requires_grad_(False)


def export_weights(detector: Detector, path: Path, metadata: dict[str, str]) -> None:
    """Write the detector's weights as float16 safetensors with its class names and `metadata`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in detector.state_dict().items()}
    names = {"class_names": ",".join(detector.variant.class_names or ()), "variant": detector.variant.name}
    save_file(tensors, path, {**names, **metadata})


class _Run:
    """The state of a training run: the network, its running average, the optimiser and the step reached."""

    def __init__(self, variant: DetectorConfig, output: Path, settings: Settings, device: str) -> None:
        self.settings, self.device = settings, device
        self.path = output / "checkpoint.pt"
        self.model = TRAINING_MODELS[variant.family](variant).to(device)
        if settings.weights is not None:
            self.model.detector.load_state_dict(load_file(settings.weights))
        self.averaged = copy.deepcopy(self.model.detector).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, settings), lr=settings.learning_rate, fused=device == "cuda"
        )
        self.step = 0
        if self.path.exists():
            self._load()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step of the optimiser and of the running average; return the losses."""
        torch.manual_seed(self.settings.seed << 32 | self.step)  # the same noise however often it was resumed
        images, image_sizes, targets = _to(batch, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.scheduled_rate()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            losses: dict[str, Tensor] = self.model(images, image_sizes, targets)
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
        torch._foreach_lerp_(_floats(self.averaged), _floats(self.model.detector), 1 - decay)

    def save(self) -> None:
        """Write the checkpoint; a run killed meanwhile keeps the earlier one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "optimizer")}
        new = self.path.with_suffix(".new")
        torch.save({"settings": asdict(self.settings), "step": self.step, **state}, new)
        os.replace(new, self.path)

    def _load(self) -> None:
        try:
            checkpoint = torch.load(self.path, map_location=self.device, weights_only=True)
            _ = checkpoint["settings"]
        except Exception as error:  # torch.load has no error of its own
            raise CodetrError(
                f"{self.path} is no checkpoint of a training; move it away, or name another output folder"
            ) from error
        if checkpoint["settings"] != asdict(self.settings):
            raise CodetrError(
                f"{self.path} was made with {checkpoint['settings']}, not {asdict(self.settings)}; "
                "delete it or choose another output folder"
            )
        for name in ("model", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(checkpoint[name])
        self.step = checkpoint["step"]


def _floats(detector: nn.Module) -> list[Tensor]:
    """Return the weights and the statistics of batch norms."""
    return [x for x in (*detector.parameters(), *detector.buffers()) if x.is_floating_point()]


def _to(batch: Batch, device: str) -> Batch:
    images, image_sizes, targets = (
        batch[0].to(device, non_blocking=True),
        batch[1].to(device, non_blocking=True),
        Targets(*(tensor.to(device, non_blocking=True) for tensor in batch[2])),
    )
    return images, image_sizes, targets


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
    from demo.train.sampling_kernels import triton_kernels  # needs Triton, which PyTorch for CPUs does not bring

    return triton_kernels()


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
