"""PyTorch engine: the detector compiled by AOTInductor, for GPUs without TensorRT and for CPUs with a C++ compiler.

On a GPU the package calls the CUDA kernel of `plugin_src` and runs through CUDA graphs; on a CPU deformable attention
is compiled along with the rest.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from builder.detector import Detector
from builder.engines import Device, EngineError, EngineOutput, first_line, loading, output_of
from builder.engines.kinds import KINDS, BuiltEngine
from builder.engines.torch_float8 import Joining, join_float8_layers
from builder.engines.torch_post_attention import Trying
from builder.operators.cuda import LIBRARY_PATTERN, check_cuda_operator, load_cuda_operator
from builder.pipeline.export import OUTPUT_NAMES, InputSpec, decompose_operator, device_of, inputs_of, uses_operator
from builder.precision import Quantised
from builder.quantise.calibration import Ranges
from builder.quantise.layers import Float8Linear, Layer
from model_repository import TEMPLATES
from model_repository.torch_runner import TF32, TorchRunner

# A profiler sees kernels on a CPU only if they call it, which takes time and names source files in the package.
PROFILED = {"cpp.enable_kernel_profile": True}
FP8_CAPABILITY = (8, 9)  # of GPUs whose matrix units take E4M3
FP8_WIDTH = 256  # channels, in and out
FP8_MLP_WIDTH = 192  # of an MLP, whose hidden tensor is never there in half precision

# The server runs the package with the same code as `load`: its source goes beside the package.
RUNNER_SOURCE = TEMPLATES / "torch_runner.py"

# A library that needs the C++ runtime: one that brings its own beside PyTorch's crashes when it throws.
_CPP_SOURCE = """
#include <stdexcept>
#include <string>
extern "C" int length(const char* text) {
  std::string words(text);
  if (words.empty()) throw std::runtime_error(words + "is empty");
  return words.size();
}
"""
_CPP_RUNTIMES = (b"libstdc++.so", b"libc++.so")
# What the process that loads a new package does; it ends without cleaning up, which is not what is looked at.
_LOADER = """
import os, sys, torch
package, *libraries = sys.argv[1:]
for library in libraries:
    torch.ops.load_library(library)
torch._inductor.aoti_load_package(package, run_single_threaded=True)
os._exit(0)
"""


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
    if compiler is None and not _compilers():
        raise EngineError(
            "the torch engine needs a C++ compiler; install g++, name another in CXX, or use the onnx engine"
        )
    if compiler is not None and shutil.which(compiler) is None:
        raise EngineError(f"CXX={compiler} is no program; name a C++ compiler in it, or unset it to use g++")
    if uses_operator and device() == "cuda":
        check_cuda_operator()


def check_quantised(precision: Quantised, settings: object = None) -> None:
    """Check that this machine has a GPU that multiplies E4M3 numbers; raises EngineError."""
    if not torch.cuda.is_available():
        raise EngineError(
            "the torch engine's fp8 needs an NVIDIA GPU; on a CPU use the onnx engine in int8, or another precision"
        )
    capability = torch.cuda.get_device_capability()
    if capability < FP8_CAPABILITY:
        wanted, found = (".".join(map(str, each)) for each in (FP8_CAPABILITY, capability))
        raise EngineError(
            f"fp8 needs a GPU of compute capability {wanted} or later (Ada, Hopper); {torch.cuda.get_device_name()} "
            f"has {found}, so use fp16 or bf16"
        )


def quantised_layers(
    layers: Mapping[str, Layer], ranges: Mapping[str, Ranges], precision: Quantised
) -> dict[str, nn.Module]:
    """Return what takes the place of linear layers.

    Those narrower than `FP8_WIDTH` stay as they are: memory decides how long they take, and rounding costs accuracy.
    The two of an MLP may be as narrow as `FP8_MLP_WIDTH`, since joined they move a quarter of the bytes.

    Raises:
        EngineError: a layer is a convolution, or all are too narrow.
    """
    made: dict[str, nn.Module] = {}
    inverted = _mlp_layers(layers)
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise EngineError(
                f"fp8 of the torch engine is for linear layers, and {name} is a convolution; leave it out"
            )
        least = FP8_MLP_WIDTH if name in inverted else FP8_WIDTH
        if min(layer.in_features, layer.out_features) >= least:
            made[name] = Float8Linear(layer, ranges[name].input)
    if not made:
        raise EngineError(
            f"none of the {len(layers)} linear layers is as wide as fp8 pays for ({FP8_WIDTH} channels in and out); "
            "use fp16, or choose others"
        )
    return made


def _mlp_layers(layers: Mapping[str, Layer]) -> set[str]:
    """Return the names of the layers of MLPs: neighbours in a module, the second back to the width of the first."""
    widths = {
        name: (layer.in_features, layer.out_features) for name, layer in layers.items() if isinstance(layer, nn.Linear)
    }
    found: set[str] = set()
    for first, second in itertools.pairwise(widths):
        siblings = first.rpartition(".")[0] == second.rpartition(".")[0]
        if siblings and widths[first] == widths[second][::-1] and widths[first][0] < widths[first][1]:
            found |= {first, second}
    return found


def prepared(detector: Detector) -> Detector:
    """Return what is exported for `build`: on a GPU layers are joined into one operator where that works here.

    There the weights of convolutions, in place, lie as the GPU's library reads them: an engine that has to bring them
    into that order does so with every inference.
    """
    if detector.device.type != "cuda":
        return detector
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    trying = Trying()
    joined = detector.joined(trying)
    if trying.joined:
        print(f"what follows the attention of {trying.joined} encoder layers is one operator each")
    return joined


def build(program: ExportedProgram, path: Path, settings: object = None) -> BuiltEngine:
    """Compile the program for the device it was exported on and write the package to `path`.

    On a GPU pairs of FP8 layers are joined in the program where that works here, and the library of our operators, if
    the program has one, is put beside the package, where `load` and the server look. The package is loaded once in a
    process of its own, which may crash.

    Raises:
        EngineError: there is no C++ compiler, the compilation failed, or the package cannot be loaded.
        CudaOperatorError: the CUDA operator could not be built or loaded.
    """
    place = device_of(program)
    if place == "cuda" and (joined := join_float8_layers(program, Joining())):
        print(f"{joined} FP8 layers are joined with their activation and the next one's rounding")
    needs_operator = uses_operator(program)
    check(needs_operator)
    libraries = []
    if place == "cuda" and needs_operator:
        libraries.append(load_cuda_operator())
        shutil.copy(libraries[0], path.parent)
    compile_package(program if place == "cuda" else decompose_operator(program), path, place)
    try:
        check_package(path, libraries)
    except EngineError:
        path.unlink(missing_ok=True)  # nobody must find and load it
        raise
    extra_files = (RUNNER_SOURCE, *libraries)
    return BuiltEngine(path, KINDS["torch"], place, inputs_of(program), OUTPUT_NAMES, extra_files)


def compile_package(program: ExportedProgram, path: Path, place: Device, profiled: bool = False) -> None:
    """Write the package of a program that AOTInductor knows all operators of; raises EngineError.

    `profiled` lets PyTorch's profiler see the kernels on a CPU too, as it does on a GPU.
    """
    try:
        with warnings.catch_warnings(), torch._inductor.config.patch({"cpp.cxx": (None, cpp_compiler())}):
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


def cpp_compiler() -> str:
    """Return the C++ compiler to call: that of CXX, or the first g++ or clang++ that shares PyTorch's C++ runtime.

    Where none does the first counts, and `check_package` tells what becomes of it.
    """
    if "CXX" in os.environ:
        return os.environ["CXX"]
    found = _compilers()
    return next(filter(_shares_runtime, found), found[0] if found else "g++")


def _compilers() -> list[str]:
    """Return the C++ compilers on PATH, all of each name."""
    names = [(name, folder) for name in ("g++", "clang++") for folder in os.get_exec_path()]
    return [path for name, folder in names if (path := shutil.which(name, path=folder))]


@cache
def _shares_runtime(compiler: str) -> bool:
    """Return whether a compiler works, and links the C++ runtime as a library that the process has once."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "a.cpp"), Path(folder, "a.so")
        source.write_text(_CPP_SOURCE, encoding="utf-8")
        command = [compiler, "-shared", "-fPIC", str(source), "-o", str(library)]
        with suppress(OSError):
            subprocess.run(command, capture_output=True, check=False)
            return any(name in library.read_bytes() for name in _CPP_RUNTIMES)
        return False


def check_package(path: Path, libraries: Sequence[Path] = ()) -> None:
    """Load a package in a process of its own, so that one that crashes is told and takes nobody along.

    Args:
        path: the package.
        libraries: of the operators that it calls.

    Raises:
        EngineError: says how it ended, and what to do.
    """
    command = [sys.executable, "-c", _LOADER, str(path), *map(str, libraries)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    compiler = cpp_compiler()
    why = (
        "" if _shares_runtime(compiler) else f", most likely because {compiler} links a C++ runtime of its own into it"
    )
    if done.returncode < 0:
        how = f"crashed with {signal.Signals(-done.returncode).name} when it was loaded"
    else:
        how = f"cannot be loaded ({(done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]})"
    raise EngineError(
        f"the new package {how}{why}; name another C++ compiler in CXX, such as CXX=/usr/bin/g++, and build again, or "
        "use the onnx engine"
    )


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
    with loading(path):
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
