"""Converts detectors with torch_tensorrt's converters and compiles them with TensorRT-RTX, on a machine without a GPU.

TensorRT-RTX shares converters, typing rules and most of the network interface with TensorRT, but not its kernels, and
it has no plugin layers: deformable attention is decomposed here. Its engines are of no use to the server. Needs
torch==2.13.0, torch-tensorrt-rtx==2.13.0 and tensorrt_rtx==1.5.0.114 in an environment of their own.

    python -m tests.builder.engines.tensorrt.rtx VARIANT float16 768 1152 1 OUTPUT.json
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import sys
import time
import types
import warnings
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from builder.pipeline.export import InputSpec, decompose_attention, decompose_operator, export_detector

INSTALLED = importlib.util.find_spec("torch_tensorrt") is not None


def import_torch_tensorrt() -> Any:
    """Return torch_tensorrt, its few questions about a CUDA device answered by those of an RTX 4090."""
    if torch.cuda.is_available() or "torch_tensorrt" in sys.modules:
        return importlib.import_module("torch_tensorrt")
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})  # type: ignore[assignment, misc]
    card = types.SimpleNamespace(major=8, minor=9, name="RTX 4090", total_memory=24 << 30)
    torch.cuda.get_device_capability = lambda *args, **kwargs: (8, 9)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda *args, **kwargs: card  # type: ignore[assignment]
    is_file = os.path.isfile
    os.path.isfile = lambda path: "libtorchtrt" not in str(path) and is_file(path)  # it would need a CUDA PyTorch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torch_tensorrt")
    finally:
        os.path.isfile = is_file
        for name in logging.root.manager.loggerDict:
            if name.startswith("torch_tensorrt"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # it asks for a device over and over


def lower(detector: torch.nn.Module, spec: InputSpec, *, decompose: bool = True) -> Any:
    """Return torch_tensorrt's interpreter of the detector's graph, before the network is made."""
    torch_tensorrt = import_torch_tensorrt()
    from torch_tensorrt.dynamo._settings import CompilationSettings
    from torch_tensorrt.dynamo.conversion import TRTInterpreter
    from torch_tensorrt.dynamo.lowering import get_decompositions, post_lowering, pre_export_lowering

    from builder.engines.tensorrt import profiles

    settings = CompilationSettings(
        device=torch_tensorrt.Device(gpu_id=0),
        min_block_size=1,
        require_full_compilation=True,
        immutable_weights=True,
        assume_dynamic_shape_support=True,
        attn_bias_is_causal=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export_detector(detector, spec)
        inputs = [torch_tensorrt.Input(**profile) for profile in profiles(program)]
        program = decompose_operator(program) if decompose else decompose_attention(program)
        program = pre_export_lowering(program, settings).run_decompositions(get_decompositions(False, False))
        return TRTInterpreter(post_lowering(program.module(), settings), inputs, compilation_settings=settings)


def convert(interpreter: Any) -> Any:
    """Return the TensorRT network of the whole graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter._construct_trt_network_def()
    return interpreter.ctx.net


def product_types(network: Any) -> Counter[str]:
    """Return how many convolutions and matrix products of the network work in each type."""
    import tensorrt

    kinds = (tensorrt.LayerType.CONVOLUTION, tensorrt.LayerType.MATRIX_MULTIPLY)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return Counter(layer.get_input(0).dtype.name for layer in layers if layer.type in kinds)


def compile_network(interpreter: Any) -> int:
    """Compile the network for compute capability 8.9 and return the engine's size in bytes."""
    import tensorrt

    config = interpreter.builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM89, 0)
    for profile in interpreter.optimization_profiles or []:
        config.add_optimization_profile(profile)
    engine = interpreter.builder.build_serialized_network(interpreter.ctx.net, config)
    assert engine is not None, "TensorRT-RTX refused the network; its log says why"
    return int(engine.nbytes)


def main(variant: str, precision: str, height: str, width: str, batch: str, output: str) -> None:
    """Convert and compile a variant with random weights and write times and sizes as JSON."""
    from builder import random_detector

    started = time.monotonic()
    seconds: dict[str, float] = {}

    def mark(stage: str) -> None:
        seconds[stage] = round(time.monotonic() - started - sum(seconds.values()), 1)
        print(stage, seconds[stage], flush=True)

    detector = random_detector(variant, 0, precision)
    mark("load")
    interpreter = lower(detector, InputSpec(int(height), int(width), int(batch)))
    del detector
    mark("export and lower")
    network = convert(interpreter)
    mark("convert")
    size = compile_network(interpreter)
    mark("compile")
    record = {
        "command": f"python -m tests.builder.engines.tensorrt.rtx {' '.join(sys.argv[1:])}",
        "what": "TensorRT-RTX engine for SM89 compiled on a CPU, deformable attention decomposed; built, not run",
        "variant": variant,
        "weights": "random",
        "precision": precision,
        "height": int(height),
        "width": int(width),
        "max_batch_size": int(batch),
        "network_layers": network.num_layers,
        "convolutions_and_products": product_types(network),
        "engine_bytes": size,
        "seconds": seconds,
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "cpus": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in ("torch", "torch-tensorrt-rtx", "tensorrt-rtx")},
    }
    Path(output).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
