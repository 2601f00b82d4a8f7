"""Runs an AOTInductor package.

Imports PyTorch and NumPy alone, because `codetr build` puts a copy beside the server's `model.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import treespec_loads

TF32 = "codetr_tf32"  # in a package's metadata: "yes" if its float32 products may be rounded to TF32
WARMUPS = 3  # before a capture, so that lazily loaded kernels and workspaces are there


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Let float32 matrix products and convolutions round their inputs to TF32, or not."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


class _Captured(NamedTuple):
    """A CUDA graph with the buffers it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def replay(self) -> Sequence[Tensor]:
        """Queue the inference and return its outputs, which the next replay overwrites."""
        self.graph.replay()
        return self.outputs


class TorchRunner:
    """Calls a compiled detector on NumPy arrays, on a GPU through one CUDA graph for each batch size.

    What is float32 in the package is computed without TF32, which PyTorch allows its convolutions unless told; but for
    packages that allow it. Threads may call at once: each queues its inference behind the others', so the GPU goes from
    one to the next without a pause.
    """

    def __init__(
        self,
        package: Path,
        input_shape: tuple[int, int],
        device: Literal["cuda", "cpu"],
        operator_library: Path | None = None,
        batch_sizes: Sequence[int] = (),
        index: int = 0,
    ) -> None:
        """Load `package`.

        Args:
            package: what `builder.engines.torch.build` wrote.
            input_shape: height and width in pixels.
            device: it was compiled for.
            operator_library: the CUDA library of our operators, for a package that calls one.
            batch_sizes: to capture CUDA graphs for; other batches run without one.
            index: of the GPU, among those that PyTorch sees; a package is compiled for none in particular.
        """
        self.place = device
        self.device = torch.device(device, index) if device == "cuda" else torch.device(device)
        if operator_library is not None:
            torch.ops.load_library(str(operator_library))
        # One thread calls it; the synchronisation for several would query events, which no capture allows.
        with self._on_device():
            self.model: Any = torch._inductor.aoti_load_package(
                str(package), run_single_threaded=True, device_index=-1 if self.device.index is None else index
            )
        self.input_count = treespec_loads(self.model.loader.get_call_spec()[0]).num_leaves  # images, and sizes or not
        self.tf32 = self.model.loader.get_metadata().get(TF32) == "yes"
        self.input_shape = input_shape
        self.graphs: dict[int, _Captured] = {}
        self.staged: list[Tensor] = []
        self.fetched: list[Tensor] = []
        self.locked: set[int] = set()  # where others' memory that is page-locked begins
        self.turn = threading.Lock()  # to queue an inference, from its inputs' copy to its outputs'
        for batch_size in sorted(batch_sizes if self.device.type == "cuda" else (), reverse=True):
            with self._on_device():
                self.graphs[batch_size] = self._capture(batch_size)

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Return boxes, scores and labels of images uint8 [B, H, W, 3] with valid sizes int32 [B, 2].

        A package that does not read the sizes needs none.
        """
        if self.place == "cpu":
            with self.turn:
                return [output.numpy() for output in self._start(*inputs)()]
        batch = len(inputs[0])
        with self.turn:
            outputs = self._start(*inputs)()
            if not self.fetched or len(self.fetched[0]) < batch:
                with self._on_device():
                    self.fetched = [torch.empty_like(output, device="cpu", pin_memory=True) for output in outputs]
            hosts = [host[:batch] for host in self.fetched]
            done = self._fetch(outputs, hosts)
        done.synchronize()
        return [host.numpy().copy() for host in hosts]

    def tensors(self) -> tuple[list[tuple[tuple[int, ...], str]], list[tuple[tuple[int, ...], str]]]:
        """Return shape and type of one image's inputs and outputs."""
        inputs = [((*self.input_shape, 3), "uint8"), ((2,), "int32")][: self.input_count]
        images, sizes = np.zeros((1, *self.input_shape, 3), np.uint8), np.array([self.input_shape], np.int32)
        outputs = self(*(images, sizes)[: self.input_count])
        return inputs, [(output.shape[1:], output.dtype.name) for output in outputs]

    def adopt(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> Callable[[int], None]:
        """Return what computes so many images of `inputs` into `outputs`, which are page-locked for a GPU.

        Args:
            inputs: whole pages of memory for the largest batch, as `tensors` says.
            outputs: likewise.
        """
        if self.place == "cuda":
            with self._on_device():
                for array in (*inputs, *outputs):
                    failed = torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)
                    if int(failed):  # the copies are right without it, and slower
                        print(f"{array.nbytes} bytes of another instance's are not page-locked: {failed}", flush=True)
                        self._forget_error()
                    else:
                        self.locked.add(array.ctypes.data)
        given, wanted = ([torch.from_numpy(array) for array in arrays] for arrays in (inputs, outputs))

        def run(batch: int) -> None:
            with self.turn:
                found = self._queue([tensor[:batch] for tensor in given])()
                done = self._fetch(found, [tensor[:batch] for tensor in wanted])
            if done is not None:
                done.synchronize()

        return run

    def release(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None:
        """Let memory be as it was before `adopt`."""
        if self.place == "cuda":
            with self._on_device():
                for place in self.locked.intersection(array.ctypes.data for array in (*inputs, *outputs)):
                    torch.cuda.cudart().cudaHostUnregister(place)
                    self.locked.remove(place)

    def _forget_error(self) -> None:
        """Take back what a refused call leaves as CUDA's last error: the next kernel's launch would raise it."""
        with suppress(RuntimeError):
            torch.ones(1, device=self.device)

    def buffers(self, batch: int) -> list[NDArray[Any]]:
        """Return page-locked memory for the inputs of a batch, from where a GPU fetches them itself.

        What is called with other arrays is copied here first. The next batch has the same memory.
        """
        if not self.staged or len(self.staged[0]) < batch:
            with self._on_device():
                images = torch.empty((batch, *self.input_shape, 3), dtype=torch.uint8, pin_memory=True)
                sizes = torch.empty((batch, 2), dtype=torch.int32, pin_memory=True)
            self.staged = [images, sizes][: self.input_count]
        return [tensor[:batch].numpy() for tensor in self.staged]

    def prepare(self, *inputs: NDArray[Any]) -> Callable[[], Sequence[Tensor]]:
        """Return a call that repeats the inference of these inputs, which are copied to the device now.

        On a GPU it returns its outputs before that GPU's current stream has computed them, and only the last inputs
        prepared for a batch size are in the buffers of its CUDA graph.
        """
        inference = self._start(*inputs)
        if self.place == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # before the next inputs take the page-locked memory
        return inference

    def _start(self, *inputs: NDArray[Any]) -> Callable[[], Sequence[Tensor]]:
        """Queue the copy of the inputs to the device, and return the call that queues the inference."""
        return self._queue(self._stage(inputs[: self.input_count]))

    def _queue(self, tensors: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
        """Do as `_start` for tensors that the GPU fetches itself."""
        captured = self.graphs.get(len(tensors[0]))
        if captured is None:
            inference = partial(self.model, *(tensor.to(self.device, non_blocking=True) for tensor in tensors))
            return partial(self._run, float32_products(self.tf32)(torch.inference_mode()(inference)))
        for buffer, tensor in zip(captured.inputs, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        return partial(self._run, captured.replay)

    def _fetch(self, outputs: Sequence[Tensor], hosts: Sequence[Tensor]) -> Any:
        """Queue the copy of outputs, and return what tells that a GPU has done it; None on a CPU."""
        with self._on_device():
            for host, output in zip(hosts, outputs, strict=True):
                host.copy_(output, non_blocking=True)
            if self.place == "cpu":
                return None
            done = torch.cuda.Event()
            done.record()
            return done

    def _run(self, inference: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Queue an inference on its own GPU, whichever is this thread's."""
        with self._on_device():
            return inference()

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _stage(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """Return the arrays as tensors, for a GPU in page-locked memory."""
        if self.place == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        batch = len(arrays[0])
        for buffer, array in zip(self.buffers(batch), arrays, strict=True):
            if buffer.ctypes.data != array.ctypes.data:
                np.copyto(buffer, array)
        return [tensor[:batch] for tensor in self.staged]

    def _capture(self, batch_size: int) -> _Captured:
        """Record one inference; all graphs share one memory pool, since none runs while another's outputs are read."""
        pool = next((captured.graph.pool() for captured in self.graphs.values()), None)
        images = torch.zeros((batch_size, *self.input_shape, 3), dtype=torch.uint8, device=self.device)
        sizes = torch.tensor([self.input_shape] * batch_size, dtype=torch.int32, device=self.device)
        inputs = (images, sizes)[: self.input_count]
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), float32_products(self.tf32):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARMUPS):
                    self.model(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, stream=stream):  # PyTorch's own is one GPU's for good
                outputs = self.model(*inputs)
        return _Captured(graph, inputs, outputs)
