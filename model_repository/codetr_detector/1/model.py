"""The detector in ONNX Runtime on the CPU."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from serving.contract import DETECTOR, contract
from serving.integers import set_exact_integers
from serving.telemetry import OF_DETECTOR, Telemetry
from serving.triton import OnnxSettings, parse_settings, respond_together, threads_of_instance


class TritonPythonModel:
    """One instance of `codetr_detector`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `model.onnx`, which lies beside this file."""
        config = json.loads(args["model_config"])
        self.telemetry = Telemetry(pb_utils, config["name"], OF_DETECTOR)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads_of_instance(config, parse_settings(OnnxSettings, config).threads)
        set_exact_integers(options)
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor.name for tensor in contract(1, 1)[DETECTOR].outputs]
        self.max_batch_size = config["max_batch_size"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with common batches."""
        return respond_together(pb_utils, requests, self.run, self.max_batch_size, self.telemetry)

    def finalize(self) -> None:
        """Hand over the last counts."""
        self.telemetry.close()

    def run(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Run the engine on one batch."""
        boxes, scores, labels = self.session.run(self.outputs, dict(zip(self.inputs, inputs, strict=True)))
        return boxes, scores, labels
