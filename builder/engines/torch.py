"""PyTorch engine: the detector compiled by AOTInductor, for GPUs without TensorRT and for CPUs with a C++ compiler.

On a GPU the package calls the CUDA kernel of `plugin_src` and runs through CUDA graphs; on a CPU deformable attention
is compiled along with the rest.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from builder.engines import Device, EngineError, EngineOutput, first_line, output_of
from builder.engines.kinds import KINDS, BuiltEngine
from builder.operators.cuda import LIBRARY_PATTERN, check_cuda_operator, load_cuda_operator
from builder.pipeline.export import OUTPUT_NAMES, InputSpec, decompose_operator, device_of, inputs_of, uses_operator
from model_repository import TEMPLATES
from model_repository.torch_runner import TF32, TorchRunner

# A profiler sees kernels on a CPU only if they call it, which takes time and names source files in the package.
PROFILED = {"cpp.enable_kernel_profile": True}
# The server runs the package with the same code as `load`: its source goes beside the package.
RUNNER_SOURCE = TEMPLATES / "torch_runner.py"


def device() -> Device:
    """Return where a package built here runs: on the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def export_device(settings: object = None) -> Device:
    """Return where `build` wants the program: where the package is to run."""
    return device()


def check(uses_operator: bool, settings: object = None) -> None:
    """Check that this machine has what `build` needs: the C++ compiler that PyTorch calls, and for the operator nvcc.

    Raises:
        EngineError: there is no C++ compiler.
        CudaOperatorError: there is neither the CUDA operator's library nor nvcc to build it.
    """
    compiler = os.environ.get("CXX")
    if compiler is None and shutil.which("g++") is None:
        raise EngineError(
            "the torch engine needs a C++ compiler; install g++, name another in CXX, or use the onnx engine"
        )
    if compiler is not None and shutil.which(compiler) is None:
        raise EngineError(f"CXX={compiler} is no program; name a C++ compiler in it, or unset it to use g++")
    if uses_operator and device() == "cuda":
        check_cuda_operator()


def build(program: ExportedProgram, path: Path, settings: object = None) -> BuiltEngine:
    """Compile the program for the device it was exported on and write the package to `path`.

    On a GPU the library of our operator, if the program has it, is put beside it, where `load` and the server look.

    Raises:
        EngineError: there is no C++ compiler, or the compilation failed.
        CudaOperatorError: the CUDA operator could not be built or loaded.
    """
    place, needs_operator = device_of(program), uses_operator(program)
    check(needs_operator)
    libraries = []
    if place == "cuda" and needs_operator:
        libraries.append(load_cuda_operator())
        shutil.copy(libraries[0], path.parent)
    compile_package(program if place == "cuda" else decompose_operator(program), path, place)
    extra_files = (RUNNER_SOURCE, *libraries)
    return BuiltEngine(path, KINDS["torch"], place, inputs_of(program), OUTPUT_NAMES, extra_files)


def compile_package(program: ExportedProgram, path: Path, place: Device, profiled: bool = False) -> None:
    """Write the package of a program that AOTInductor knows all operators of; raises EngineError.

    `profiled` lets PyTorch's profiler see the kernels on a CPU too, as it does on a GPU.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about its own deprecated calls
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(path),
                inductor_configs=(
                    _configs_for_gpus(program)
                    if place == "cuda"
                    else {"freezing": True, **(PROFILED if profiled else {})}
                ),
            )
    except Exception as error:  # the compilers raise classes that have no common base
        raise EngineError(f"AOTInductor could not compile the detector: {first_line(error)}") from error


def _configs_for_gpus(program: ExportedProgram) -> dict[str, Any]:
    """Return what is asked of Inductor beyond its defaults."""
    from builder.engines.torch_passes import ReLUInProduct  # imports the compiler, which nothing else here needs

    # In half precision the box heads are float32, and TF32 has as many bits of a number as the float16 that they read.
    half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in program.state_dict.values())
    return {
        "post_grad_custom_post_pass": ReLUInProduct(),
        "shape_padding": False,  # it copied the 900 queries into 904 rows before a product, or not, as a trial decided
        "aot_inductor.metadata": {TF32: "yes" if half else "no"},
    }


def load(path: Path, spec: InputSpec, device: Device, settings: object = None) -> TorchEngine:
    """Return the package's engine, on a GPU with a CUDA graph for the smallest and the largest batch.

    As in the server, it runs with the operator's library that lies beside it, if it has one.

    Raises:
        EngineError: the package is for a GPU, and there is none.
        CudaOperatorError: the library cannot be loaded.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"{path} was compiled for an NVIDIA GPU; PyTorch finds none here")
    library = next(path.parent.glob(LIBRARY_PATTERN), None)
    if library is not None:
        library = load_cuda_operator(library)
    batch_sizes = {1, spec.max_batch_size} if spec.is_dynamic else {spec.max_batch_size}
    return TorchEngine(TorchRunner(path, (spec.height, spec.width), device, library, sorted(batch_sizes)))


class TorchEngine:
    """An `Engine` of the runner that the server has too."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner

    @property
    def device(self) -> Device:
        """Where it runs, as `builder.engines.Engine` says."""
        return self.runner.place

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        """Run the package, as `builder.engines.Engine` says."""
        return output_of(self.runner(images, image_sizes))

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> Callable[[], object]:
        """Return a call that repeats one inference, as `builder.engines.Engine` says."""
        return self.runner.prepare(images, image_sizes)
