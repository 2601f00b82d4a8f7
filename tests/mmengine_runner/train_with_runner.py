"""Trains named weights with mmengine's own runner, so that its checkpoints are files as people hold them.

Run by tests with the packages of requirements.txt on PYTHONPATH; it imports nothing of this project. For every case,
`OUTPUT/CASE` receives what the runner saves after one epoch, and `truth.npz`: what a reader of these files must find,
`expected/` the tensors to deploy by mmdetection's names and `classes`; and `trained/`, the network's own tensors.

Usage: train_with_runner.py WEIGHTS OUTPUT    (WEIGHTS: .npz of the tensors to start from, by mmdetection's names)
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

# name: (average of the weights, mixed precision)
CASES = {"plain": (False, False), "ema": (True, False), "amp": (False, True), "ema_amp": (True, True)}
CLASSES = ("buoy", "ferry", "gull", "kayak", "pier", "sail", "seal", "tug")
IMAGES = 3  # one iteration each


def main(weights: Path, output: Path) -> None:
    torch.set_num_threads(1)  # these tensors are too small to share
    # mmengine refuses mixed precision without a GPU, though PyTorch has its autocast and gradient scaler for CPUs too.
    amp.is_cuda_available = lambda: True
    amp.GradScaler = functools.partial(torch.amp.GradScaler, "cpu")
    for case, (average, mixed) in CASES.items():
        runner = Runner.from_cfg(Config(config(weights, output / case, average, mixed)))
        runner.train()
        trained = runner.model.state_dict()
        hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        expected = hooks[0].ema_model.module.state_dict() if average else trained
        arrays = {f"trained/{key}": value.numpy() for key, value in trained.items()}
        arrays |= {f"expected/{key}": value.numpy() for key, value in expected.items()}
        np.savez(output / case / "truth.npz", classes=CLASSES, **arrays)


def config(weights: Path, folder: Path, average: bool, mixed: bool) -> dict[str, Any]:
    """Return a configuration as mmdetection's projects/CO-DETR has it, for one epoch of a few images."""
    loader = {
        "batch_size": 1,
        "num_workers": 0,
        "dataset": {"type": "GrayImages"},
        "sampler": {"type": "DefaultSampler", "shuffle": False},
    }
    return {
        "work_dir": str(folder),
        "experiment_name": folder.name,  # mmengine keeps one history a name
        "model": {
            "type": "NamedWeights",
            "weights": str(weights),
            "data_preprocessor": {"type": "ImgDataPreprocessor", "mean": [123.675], "std": [58.395]},
        },
        "train_dataloader": loader,
        "val_dataloader": loader,
        "train_cfg": {"by_epoch": True, "max_epochs": 1, "val_interval": 1},
        "val_cfg": {},
        "val_evaluator": {"type": "ConstantMetric", "prefix": "coco"},
        "optim_wrapper": {
            "type": "AmpOptimWrapper" if mixed else "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 1e-4},
            "clip_grad": {"max_norm": 0.1, "norm_type": 2},
            "paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": 0.1}}},
        },
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.5, "by_epoch": False, "begin": 0, "end": 2},
            {"type": "MultiStepLR", "by_epoch": True, "milestones": [1], "gamma": 0.1},
        ],
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": 1},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {
                "type": "CheckpointHook",
                "interval": 1,
                "save_best": "coco/bbox_mAP",
                "published_keys": ["meta", "state_dict"],
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
            "runtime_info": {"type": "RuntimeInfoHook"},
        },
        "custom_hooks": [{"type": "EMAHook", "momentum": 0.3}] if average else [],
        "randomness": {"seed": 0},
        "default_scope": "mmengine",
    }


@MODELS.register_module()
class NamedWeights(BaseModel):
    """Weights by their names in a file, and a loss that moves every one of them.

    Args:
        weights: path of the `.npz` file.
        data_preprocessor: as mmengine builds it.
    """

    def __init__(self, weights: str, data_preprocessor: dict[str, Any]) -> None:
        super().__init__(data_preprocessor)
        with np.load(weights) as file:
            for name in file:
                self._add(name, torch.from_numpy(file[name]))

    def _add(self, name: str, tensor: Tensor) -> None:
        *parents, leaf = name.split(".")
        module: nn.Module = self
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor))
        else:
            module.register_buffer(leaf, tensor)

    def forward(self, inputs: Tensor, data_samples: list[Any], mode: str = "tensor") -> Any:
        if mode != "loss":
            return [{"bboxes": torch.zeros(0, 4)} for _ in data_samples]
        targets = torch.stack([image.mean() for image in inputs]).mean()
        losses = [(weights.flatten() @ weights.flatten() - targets).abs() for weights in self.parameters()]
        return {"loss_cls": torch.stack(losses[::2]).sum(), "loss_bbox": torch.stack(losses[1::2]).sum()}


@DATASETS.register_module()
class GrayImages(torch.utils.data.Dataset):
    """A few images of one gray each, and the class names that the runner writes into its checkpoints."""

    metainfo = {"classes": CLASSES, "palette": [(8 * index, 0, 255) for index in range(len(CLASSES))]}  # noqa: RUF012

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": torch.full((1, 8, 8), 50 * index, dtype=torch.uint8), "data_samples": index}


@METRICS.register_module()
class ConstantMetric(BaseMetric):
    """A metric of a validation, so that its history and the best checkpoint are written too."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        return {"bbox_mAP": 0.5}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
