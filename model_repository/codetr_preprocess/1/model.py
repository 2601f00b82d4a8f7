"""Encoded images to the engine's inputs."""

import json
from typing import Any

import cv2
import triton_python_backend_utils as pb_utils

from serving.contract import PREPROCESS
from serving.heap import keep_freed_memory
from serving.telemetry import OF_PREPROCESS, Telemetry
from serving.triton import Preprocess, respond


class TritonPythonModel:
    """One instance of `codetr_preprocess`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read and check the settings."""
        keep_freed_memory()
        cv2.setNumThreads(1)  # the instances, and the images of a request, are the parallelism
        cv2.setLogLevel(0)  # what is wrong with an image stands in its request's error
        config = json.loads(args["model_config"])
        self.telemetry = Telemetry(pb_utils, config["name"], OF_PREPROCESS)
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        self.step = Preprocess(config, self.telemetry.record, gpu)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return respond(pb_utils, PREPROCESS, requests, self.step, self.telemetry)

    def finalize(self) -> None:
        """Hand over the last counts."""
        self.telemetry.close()
