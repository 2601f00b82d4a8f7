"""Candidates to detections in the original image's pixels."""

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from serving.contract import POSTPROCESS
from serving.heap import keep_freed_memory
from serving.telemetry import OF_POSTPROCESS, Telemetry
from serving.triton import Postprocess, respond


class TritonPythonModel:
    """One instance of `codetr_postprocess`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read and check the settings."""
        keep_freed_memory()  # of the matrices of a crowd
        config = json.loads(args["model_config"])
        self.telemetry = Telemetry(pb_utils, config["name"], OF_POSTPROCESS)
        self.step = Postprocess(config, pb_utils.Logger.log_warn, self.telemetry.record)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return respond(pb_utils, POSTPROCESS, requests, self.step, self.telemetry)

    def finalize(self) -> None:
        """Hand over the last counts."""
        self.telemetry.close()
