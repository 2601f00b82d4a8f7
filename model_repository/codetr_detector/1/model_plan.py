"""The detector as a TensorRT plan, run by this interpreter's TensorRT instead of the server's, with CUDA graphs.

Not yet run on a GPU.
"""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from plan_runner import CudaDriver, PlanRunner

from serving.contract import PLUGIN_LIBRARY
from serving.telemetry import OF_DETECTOR, Telemetry
from serving.triton import PlanSettings, parse_settings, respond_together


class TritonPythonModel:
    """One instance of `codetr_detector`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.plan`, which lies beside this file with the plugin's library if it has plugin layers."""
        config = json.loads(args["model_config"])
        self.telemetry = Telemetry(pb_utils, config["name"], OF_DETECTOR)
        folder = Path(args["model_repository"], args["model_version"])
        library = folder / PLUGIN_LIBRARY
        self.max_batch_size = int(config["max_batch_size"])
        settings = parse_settings(PlanSettings, config)
        self.run = PlanRunner(
            folder / "model.plan",
            range(1, self.max_batch_size + 1) if settings.cuda_graphs else (),
            library if library.is_file() else None,
            CudaDriver(int(args["model_instance_device_id"])),
        )
        self.buffers = self.run.buffers

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with common batches."""
        return respond_together(pb_utils, requests, self.run, self.max_batch_size, self.telemetry, self.buffers)

    def finalize(self) -> None:
        """Hand over the last counts."""
        self.telemetry.close()
