"""Runs a TensorRT plan, of any release from 8.5 to 11.

Imports tensorrt and NumPy alone, and calls the CUDA driver, because it also runs where neither PyTorch nor this
project is: beside a server's `model.py`, or in an interpreter that exists for one TensorRT. On GPUs plans of 8.5.3.1
alone have been run.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTPUTS = ("boxes", "scores", "labels")
# Types of a plan's inputs and outputs, by TensorRT's names.
TYPES: dict[str, Any] = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}


class PlanError(Exception):
    """A plan that cannot be loaded or run; the message is one line."""


class CudaDriver:
    """The calls of the CUDA driver that a runner needs, on the primary context, which TensorRT uses too.

    The driver's library has one name for all releases of CUDA, which the runtime's has not.
    """

    def __init__(self, device: int = 0) -> None:
        """Attach this thread to a GPU.

        Raises:
            PlanError: there is no driver or no such GPU.
        """
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise PlanError("a plan needs an NVIDIA GPU and its driver; libcuda.so.1 cannot be loaded") from error
        self._call("cuInit", 0)
        handle, self.context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(handle), device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), handle)
        self.attach()

    def attach(self) -> None:
        """Make the GPU that of the calling thread."""
        self._call("cuCtxSetCurrent", self.context)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU."""
        return self._made("cuMemAlloc_v2", ctypes.c_size_t(size))

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` bytes that the GPU can read and write while the CPU goes on."""
        return self._made("cuMemAllocHost_v2", ctypes.c_size_t(size))

    def create_stream(self) -> int:
        """Return a stream of its own, which waits for no other."""
        non_blocking = 1
        return self._made("cuStreamCreate", ctypes.c_uint(non_blocking))

    def upload(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue a copy to the GPU."""
        self._call("cuMemcpyHtoDAsync_v2", *_pointers(destination, source), ctypes.c_size_t(size), *_pointers(stream))

    def download(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue a copy from the GPU."""
        self._call("cuMemcpyDtoHAsync_v2", *_pointers(destination, source), ctypes.c_size_t(size), *_pointers(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for all that was queued."""
        self._call("cuStreamSynchronize", *_pointers(stream))

    def capture(self, stream: int, queue: Callable[[], None]) -> int:
        """Return a graph of what `queue` queues on the stream, which is not executed."""
        thread_local = 1  # other threads may go on allocating
        self._call("cuStreamBeginCapture_v2", *_pointers(stream), ctypes.c_int(thread_local))
        graph = ctypes.c_void_p()
        try:
            queue()
        finally:
            self._call("cuStreamEndCapture", *_pointers(stream), ctypes.byref(graph))
        return self._made("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))

    def launch(self, graph: int, stream: int) -> None:
        """Queue a captured graph."""
        self._call("cuGraphLaunch", *_pointers(graph, stream))

    def forget(self, graph: int) -> None:
        """Let go of a captured graph."""
        self._call("cuGraphExecDestroy", *_pointers(graph))

    def create_event(self) -> int:
        """Return an event that knows its time."""
        return self._made("cuEventCreate", ctypes.c_uint(0))

    def record(self, event: int, stream: int) -> None:
        """Queue the event."""
        self._call("cuEventRecord", *_pointers(event, stream))

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Return the milliseconds between two events that are over."""
        milliseconds = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), *_pointers(begin, end))
        return milliseconds.value

    def used_memory(self) -> int:
        """Return the bytes in use on the GPU, whoever allocated them."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def _made(self, name: str, *arguments: Any) -> int:
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            raise PlanError(f"{name} failed: {(text.value or b'').decode() or f'error {code}'}")


class _Tensor:
    """An input or output of the plan: its memory on the GPU and the CPU, for the largest batch."""

    def __init__(self, driver: CudaDriver, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, np.dtype(dtype)
        size = max(int(np.prod(shape)) * self.dtype.itemsize, 1)
        self.device, self.host = driver.allocate(size), driver.allocate_host(size)
        memory = (ctypes.c_char * size).from_address(self.host)
        self.array: NDArray[Any] = np.ndarray(shape, self.dtype, buffer=memoryview(memory))

    def bytes_of(self, batch: int) -> int:
        return batch * int(np.prod(self.shape[1:])) * self.dtype.itemsize


class _Context:
    """An execution context of TensorRT, the batch that it has the shapes of, and a CUDA graph of that batch.

    The graph is void as soon as the context has other shapes: it may read what the context keeps of them.
    """

    def __init__(self, context: Any) -> None:
        self.context, self.batch = context, 0
        self.graph: int | None = None


class PlanRunner:
    """Calls a plan on NumPy arrays, through CUDA graphs of some batch sizes. One thread at a time.

    From TensorRT 10.1 on each of these batches has a context and a graph of its own, in the same memory. Before,
    contexts cannot share a profile: there is one, whose graph is captured anew where a batch comes twice in a row.

    Its memory is that of the largest batch and stays until the process ends.
    """

    def __init__(
        self,
        plan: Path,
        batch_sizes: Sequence[int] = (),
        plugin_library: Path | None = None,
        driver: CudaDriver | None = None,
    ) -> None:
        """Load `plan`.

        Args:
            plan: built by the installed TensorRT for the GPU at hand.
            batch_sizes: to capture CUDA graphs for; other batches run without one.
            plugin_library: for a plan with our plugin.
            driver: of the GPU; None takes the first one.

        Raises:
            PlanError: there is no GPU or no TensorRT, or TensorRT cannot load the plan.
        """
        self.plan = plan
        self.driver = driver or CudaDriver()
        tensorrt = _import_tensorrt()
        if plugin_library is not None:
            _load_library(plugin_library)
        self.logger = _make_logger(tensorrt)
        tensorrt.init_libnvinfer_plugins(self.logger, "")
        self.runtime = tensorrt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.engine is None:
            reason = self.logger.error or "it gives no reason"  # most often another version or GPU built it
            raise PlanError(f"TensorRT {tensorrt.__version__} cannot load {plan}: {reason}")
        strategies = getattr(tensorrt, "ExecutionContextAllocationStrategy", None)
        managed = getattr(strategies, "USER_MANAGED", None) if hasattr(self.engine, "device_memory_size_v2") else None
        self._memory = None if managed is None else self._context_memory()
        self._common = self._current = self._new_context(managed)
        self.stream = self.driver.create_stream()
        self.inputs, self.outputs = self._tensors(tensorrt)
        self.unread = self._unread()
        for batch in batch_sizes:
            self._check_batch(batch)
        self._captured = frozenset(batch_sizes)
        self._own = {} if managed is None else {batch: self._new_context(managed) for batch in self._captured}
        for batch in sorted(self._captured, reverse=True):
            self._ready(batch, at_once=True)

    @property
    def max_batch_size(self) -> int:
        """The largest batch that the plan takes."""
        return self.inputs[0].shape[0]

    @property
    def context(self) -> Any:
        """TensorRT's execution context of the last inference."""
        return self._current.context

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32] | None = None) -> list[NDArray[Any]]:
        """Return boxes, scores and labels of `images` uint8 [B, H, W, 3] with valid sizes int32 [B, 2].

        A plan that does not read the sizes needs none.

        Raises:
            PlanError: the plan does not take such arrays, or failed.
        """
        replay = self._start(images, image_sizes)
        replay()
        batch = len(images)
        for tensor in self.outputs:
            self.driver.download(tensor.host, tensor.device, tensor.bytes_of(batch), self.stream)
        self.synchronize()
        return [tensor.array[:batch].copy() for tensor in self.outputs]

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32] | None = None) -> Callable[[], None]:
        """Return a call that queues the inference of these inputs, which are copied to the GPU now, on `stream`.

        Only the inputs prepared last are in the buffers, whatever their batch.

        Raises:
            PlanError: as `__call__`.
        """
        replay = self._start(images, image_sizes, at_once=True)
        self.synchronize()  # the next inputs may be written to the same memory
        return replay

    def buffers(self, batch: int) -> list[NDArray[Any]]:
        """Return page-locked memory for the inputs of a batch, from where the GPU fetches them itself.

        What is called with other arrays is copied here first. The next batch has the same memory.

        Raises:
            PlanError: the plan takes no batch of this size.
        """
        self._check_batch(batch)
        return [tensor.array[:batch] for tensor in self.inputs]

    def _start(
        self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32] | None, at_once: bool = False
    ) -> Callable[[], None]:
        """Queue the copy of the inputs to the GPU, and return the call that queues the inference."""
        self.driver.attach()
        batch = len(images)
        given: dict[str, NDArray[Any]] = {"images": images}
        if image_sizes is not None:
            given["image_sizes"] = image_sizes
        for tensor in self.inputs:
            array = given.get(tensor.name, np.empty(0))
            if len(array) != batch:
                raise PlanError(f"{self.plan} got {batch} images and {len(array)} sizes")
            self._check(tensor, array)
            if tensor.array.ctypes.data != array.ctypes.data:
                tensor.array[:batch] = array
            self.driver.upload(tensor.device, tensor.host, tensor.bytes_of(batch), self.stream)
        graph = self._ready(batch, at_once).graph
        return self._enqueue if graph is None else lambda: self.driver.launch(graph, self.stream)

    def synchronize(self) -> None:
        """Wait for what was queued."""
        self.driver.synchronize(self.stream)

    def _tensors(self, tensorrt: Any) -> tuple[list[_Tensor], list[_Tensor]]:
        """Allocate inputs and outputs for the largest batch; outputs come as boxes, scores and labels."""
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        given = [name for name in names if self.engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        if not {"images"} <= set(given) <= {"images", "image_sizes"}:
            raise PlanError(f"{self.plan} takes {', '.join(given)}; expected images and perhaps image_sizes")
        made = [name for name in names if name not in given]
        made = list(OUTPUTS) if set(made) >= set(OUTPUTS) else sorted(made)  # torch_tensorrt: output0, output1, output2
        if len(made) != len(OUTPUTS):
            raise PlanError(f"{self.plan} puts out {', '.join(made)}; expected {', '.join(OUTPUTS)}")
        largest = {name: tuple(self.engine.get_tensor_shape(name)) for name in given}
        for name, shape in largest.items():
            if -1 in shape:
                largest[name] = tuple(self.engine.get_tensor_profile_shape(name, 0)[2])
        inputs = [self._tensor(name, largest[name]) for name in sorted(given, key=("images", "image_sizes").index)]
        batch = inputs[0].shape[0]
        outputs = [self._tensor(name, (batch, *tuple(self.engine.get_tensor_shape(name))[1:])) for name in made]
        return inputs, outputs

    def _unread(self) -> dict[str, int]:
        """Return the GPU's memory of outputs that only keep the plan from fusing something, by their names."""
        known = {tensor.name for tensor in (*self.inputs, *self.outputs)}
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        unread = [name for name in names if name not in known]
        if not unread:
            return {}
        for tensor in self.inputs:  # a first dimension may be a multiple of the batch, as of windows
            self.context.set_input_shape(tensor.name, tensor.shape)
        widest = 8  # bytes of an element
        sizes = {name: widest * int(np.prod(tuple(self.context.get_tensor_shape(name)))) for name in unread}
        return {name: self.driver.allocate(max(size, 1)) for name, size in sizes.items()}

    def _tensor(self, name: str, shape: tuple[int, ...]) -> _Tensor:
        type_name = str(self.engine.get_tensor_dtype(name)).split(".")[-1]
        if type_name not in TYPES or any(size < 0 for size in shape):
            raise PlanError(f"{self.plan} has {name} of type {type_name} and shape {shape}, which cannot be served")
        return _Tensor(self.driver, name, shape, TYPES[type_name])

    def _check(self, tensor: _Tensor, array: NDArray[Any]) -> None:
        most, wanted = tensor.shape[0], tensor.shape[1:]
        if array.dtype != tensor.dtype or array.shape[1:] != wanted or not 1 <= len(array) <= most:
            raise PlanError(
                f"{self.plan} takes {tensor.name} of {tensor.dtype} [1 to {most}, {', '.join(map(str, wanted))}], "
                f"not {array.dtype} {list(array.shape)}"
            )

    def _check_batch(self, batch: int) -> None:
        if not 1 <= batch <= self.max_batch_size:
            raise PlanError(f"{self.plan} takes batches of 1 to {self.max_batch_size}, not {batch}")

    def _context_memory(self) -> tuple[int, int]:
        """Return address and bytes of the memory that contexts use in turn."""
        size = int(self.engine.device_memory_size_v2)
        return self.driver.allocate(max(size, 1)), size

    def _new_context(self, managed: Any) -> _Context:
        """Return a new context; of `_memory` if TensorRT knows the strategy `managed`, else of memory of its own."""
        made = self.engine.create_execution_context(*(() if managed is None else (managed,)))
        if made is None:
            raise PlanError(f"{self.plan} does not fit into the GPU's memory; TensorRT's log says more")
        if self._memory is not None:
            made.set_device_memory(*self._memory)
        return _Context(made)

    def _ready(self, batch: int, at_once: bool) -> _Context:
        """Return the context for a batch, with its graph if it is to have one.

        Where the context was of another batch, the graph is made at once, or else at the next inference: it costs
        more than it saves one.
        """
        self._current = own = self._own.get(batch, self._common)
        if own.batch != batch:
            self._bind(own, batch)
            if not at_once:
                return own
            self._enqueue()  # what a context does at the first run with new shapes cannot be captured
            self.synchronize()
        if batch in self._captured and own.graph is None:
            own.graph = self.driver.capture(self.stream, self._enqueue)
        return own

    def _bind(self, own: _Context, batch: int) -> None:
        """Tell a context the shapes of a batch and where everything is."""
        if own.graph is not None:
            self.synchronize()
            self.driver.forget(own.graph)
        own.graph, own.batch = None, 0
        for tensor in self.inputs:
            if not own.context.set_input_shape(tensor.name, (batch, *tensor.shape[1:])):
                raise PlanError(f"{self.plan} takes no batch of {batch}")
        for tensor in (*self.inputs, *self.outputs):
            own.context.set_tensor_address(tensor.name, tensor.device)
        for name, address in self.unread.items():
            own.context.set_tensor_address(name, address)
        own.batch = batch

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream):
            raise PlanError(f"{self.plan} failed to run: {self.logger.error or 'TensorRT gives no reason'}")


def _pointers(*addresses: int) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(address) for address in addresses]


def _import_tensorrt() -> Any:
    if "bool" not in vars(np):  # the bindings of 8.5 ask for it
        np.bool = bool  # type: ignore[attr-defined, unused-ignore]
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise PlanError(f"cannot import tensorrt: {error}") from error


def _make_logger(tensorrt: Any) -> Any:
    """Return a logger that writes warnings and errors to stderr and keeps the first error, which the others follow."""

    class Log(tensorrt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.error = ""

        def log(self, severity: Any, text: str) -> None:
            levels = tensorrt.ILogger.Severity
            if int(severity) <= int(levels.WARNING):
                print(f"TensorRT {str(severity).split('.')[-1]}: {text}", file=sys.stderr, flush=True)
            if int(severity) <= int(levels.ERROR) and not self.error:
                self.error = " ".join(text.split())

    return Log()


def _load_library(path: Path) -> None:
    try:
        ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    except OSError as error:
        raise PlanError(f"cannot load the plugin: {error}") from error
