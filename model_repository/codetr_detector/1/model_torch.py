"""The detector as an AOTInductor package, on a GPU with CUDA graphs.

Of several instances the first has the engine, the others are its guests and need no PyTorch: `serving.shared_engine`.
"""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from serving.shared_engine import EngineGuest, join
from serving.telemetry import OF_DETECTOR, Telemetry
from serving.triton import TorchSettings, parse_settings, respond_together, threads_of_instance


class TritonPythonModel:
    """One instance of `codetr_detector`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.pt2`, which lies beside this file with the operator's library if it calls that; a guest waits."""
        config = json.loads(args["model_config"])
        self.telemetry = Telemetry(pb_utils, config["name"], OF_DETECTOR)
        self.max_batch_size = int(config["max_batch_size"])
        settings = parse_settings(TorchSettings, config)

        def load() -> Any:
            import torch  # not above: a guest needs neither
            from torch_runner import TorchRunner

            folder = Path(args["model_repository"], args["model_version"])
            height, width, _ = config["input"][0]["dims"]
            if settings.device == "cpu" and (threads := threads_of_instance(config)):
                torch.set_num_threads(threads)
            return TorchRunner(
                folder / "model.pt2",
                (int(height), int(width)),
                settings.device,
                next(folder.glob("libcodetr_ms_deform_attn*.so"), None),
                range(1, self.max_batch_size + 1) if settings.cuda_graphs else (),
                int(args["model_instance_device_id"]),
            )

        self.run, self.leave = join(args, load, self.telemetry.record)
        self.buffers = self.run.buffers if isinstance(self.run, EngineGuest) or settings.device == "cuda" else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with common batches."""
        return respond_together(pb_utils, requests, self.run, self.max_batch_size, self.telemetry, self.buffers)

    def finalize(self) -> None:
        """Hand over the last counts."""
        self.leave()
        self.telemetry.close()
