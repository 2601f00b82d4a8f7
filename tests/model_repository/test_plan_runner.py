"""The runner of plans against a stand-in of TensorRT on a driver whose GPU is the CPU's memory."""

import ctypes
import shutil
import subprocess
import sys
from enum import IntEnum
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_repository.plan_runner import CudaDriver, PlanError, PlanRunner
from tests.markers import missing

H, W, MOST = 4, 6, 3


class CpuDriver:
    """The driver's calls, at once; keeps its memory, and what was asked of it."""

    def __init__(self):
        self.memory, self.log, self.graphs = [], [], {}
        self.captured = None  # work of the capture under way

    def attach(self):
        self.log.append("attach")

    def allocate(self, size):
        self.memory.append(ctypes.create_string_buffer(b"\xaa" * size, size))
        return ctypes.addressof(self.memory[-1])

    allocate_host = allocate

    def create_stream(self):
        return 7

    def upload(self, destination, source, size, stream):
        self.log.append(("upload", size, stream))
        ctypes.memmove(destination, source, size)

    def download(self, destination, source, size, stream):
        self.log.append(("download", size, stream))
        ctypes.memmove(destination, source, size)

    def synchronize(self, stream):
        self.log.append("synchronize")

    def submit(self, work):
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def capture(self, stream, queue):
        self.captured = []
        queue()
        graph = 100 + len(self.graphs)
        self.graphs[graph], self.captured = self.captured, None
        return graph

    def launch(self, graph, stream):
        self.log.append(("launch", graph))
        for work in self.graphs[graph]:
            work()

    def forget(self, graph):
        self.log.append("forget")
        self.graphs[graph] = []  # its number is not given again


class Context:
    """Scores each image by its mean, its boxes are its size, its label is its first pixel."""

    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.runs = engine, {}, {}, 0
        self.memory = None

    def set_device_memory(self, address, size):
        self.memory = address, size

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return self.engine.takes

    def get_tensor_shape(self, name):
        """An output that is kept has five windows an image in its first dimension."""
        assert name == "layer"
        return (5 * self.shapes["images"][0], 9, 8)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 7
        self.engine.driver.submit(partial(self.compute, dict(self.shapes), dict(self.addresses)))
        return not self.engine.fails

    def compute(self, shapes, addresses):
        self.runs += 1
        if shapes != self.shapes:  # a graph of before: what it reads of the context has changed
            shapes = {name: (0, *shape[1:]) for name, shape in shapes.items()}

        def array(name, shape, dtype):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            return np.frombuffer((ctypes.c_char * size).from_address(addresses[name]), dtype).reshape(shape)

        batch = shapes["images"][0]
        images = array("images", (batch, H, W, 3), np.uint8)
        sizes = array("image_sizes", (batch, 2), np.int32) if "image_sizes" in shapes else np.zeros((batch, 2))
        boxes, scores, labels, *_ = self.engine.outputs
        array(scores, (batch, 2), np.float32)[:] = images.mean(axis=(1, 2, 3))[:, None]
        array(labels, (batch, 2), np.int32)[:] = images[:, 0, 0, :2]
        array(boxes, (batch, 2, 4), np.float32)[:] = np.tile(sizes, 2)[:, None]


class Engine:
    def __init__(
        self,
        batch=-1,
        inputs=("images", "image_sizes"),
        outputs=("boxes", "scores", "labels"),
        wide="FLOAT",
        shares=True,
    ):
        self.contexts = []
        if shares:
            self.device_memory_size_v2 = 1000
        self.takes, self.fails, self.outputs = True, False, outputs
        shapes = {"images": (batch, H, W, 3), "image_sizes": (batch, 2)}
        types = {"images": "UINT8", "image_sizes": "INT32"}
        self.tensors = {name: ("INPUT", shapes.get(name, (batch, 1)), types.get(name, "FLOAT")) for name in inputs}
        # as the engine lists them, which is not the order of the contract
        kinds = (((batch, 2, 4), wide), ((batch, 2), "FLOAT"), ((batch, 2), "INT32"), ((batch, 9, 8), "HALF"))
        made = dict(zip(outputs, kinds, strict=False))
        self.tensors |= {name: ("OUTPUT", *made[name]) for name in sorted(made, reverse=True)}
        self.num_io_tensors = len(self.tensors)
        self.get_tensor_name = list(self.tensors).__getitem__

    def get_tensor_mode(self, name):
        return self.tensors[name][0]

    def get_tensor_shape(self, name):
        return self.tensors[name][1]

    def get_tensor_dtype(self, name):
        return f"DataType.{self.tensors[name][2]}"

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        return [(n, *self.tensors[name][1][1:]) for n in (1, MOST, MOST)]

    def create_execution_context(self, *strategies):
        """Before 10 there are no strategies, and a second context finds the profile in use."""
        shares = hasattr(self, "device_memory_size_v2")
        assert strategies == (("ours",) if shares else ())
        if self.contexts and not shares:
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]


Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"], start=0)


@pytest.fixture
def runner_of(monkeypatch, tmp_path):
    """Make runners of engines, which the stand-in of TensorRT loads; of none it says `said`, and what that leads to."""

    def make(engine, said="", **options):
        def deserialize(logger, data):
            assert data == b"plan"
            logger.log(Severity.WARNING, "slow")
            if said:
                logger.log(Severity.ERROR, said)
                logger.log(Severity.INTERNAL_ERROR, "so not loaded")
            return engine

        tensorrt: Any = ModuleType("tensorrt")
        tensorrt.__version__ = "11.1"
        tensorrt.ILogger = type("ILogger", (), {"Severity": Severity})
        tensorrt.TensorIOMode = SimpleNamespace(INPUT="INPUT")
        tensorrt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
        tensorrt.init_libnvinfer_plugins = lambda logger, namespace: True
        tensorrt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=partial(deserialize, logger))
        monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
        (tmp_path / "a.plan").write_bytes(b"plan")
        driver = CpuDriver()
        if engine is not None:
            engine.driver = driver
        return PlanRunner(tmp_path / "a.plan", driver=driver, **options)

    return make


def inputs(batch, first=1):
    images = np.arange(batch * H * W * 3, dtype=np.uint8).reshape(batch, H, W, 3) + np.uint8(first)
    return images, np.array([[H - i, W - i] for i in range(batch)], np.int32)


def check(outputs, images, sizes):
    boxes, scores, labels = outputs
    np.testing.assert_array_equal(boxes, np.tile(sizes, 2)[:, None].repeat(2, 1))
    np.testing.assert_allclose(scores, images.mean(axis=(1, 2, 3))[:, None].repeat(2, 1), rtol=1e-6)
    np.testing.assert_array_equal(labels, images[:, 0, 0, :2])
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int32)


@pytest.mark.parametrize("shares", [True, False], ids=["a context a graph", "one context"])
@pytest.mark.parametrize("graphs", [(), (1, 3)], ids=["no graphs", "graphs"])
def test_every_batch_runs(runner_of, graphs, shares):
    """Also after others, to which a context's graph would be void."""
    runner = runner_of(Engine(shares=shares), batch_sizes=graphs)
    assert runner.max_batch_size == MOST
    for batch in (3, 3, 1, 1, 2, 3, 3, 2, 1, 3):
        images, sizes = inputs(batch, first=batch)
        check(runner(images, sizes), images, sizes)
        assert runner.context.shapes == {"images": (batch, H, W, 3), "image_sizes": (batch, 2)}


def launches(runner, batches):
    """Return for each batch whether it ran as a graph."""
    found = []
    for batch in batches:
        runner.driver.log.clear()
        runner(*inputs(batch))
        found.append(any(each[0] == "launch" for each in runner.driver.log))
    return found


def test_a_context_for_each_graph_keeps_it(runner_of):
    runner = runner_of(Engine(), batch_sizes=(1, 3))
    assert launches(runner, (1, 3, 1, 2, 2, 3, 1)) == [True, True, True, False, False, True, True]
    assert len(runner.driver.graphs) == 2
    assert len(runner.engine.contexts) == 3
    ((address, size),) = {context.memory for context in runner.engine.contexts}
    assert size == 1000
    assert address in map(ctypes.addressof, runner.driver.memory)


def test_one_context_captures_a_batch_that_comes_again(runner_of):
    runner = runner_of(Engine(shares=False), batch_sizes=(1, 3))
    assert launches(runner, (1, 1, 3, 3, 3, 2, 2, 1)) == [True, True, False, True, True, False, False, False]
    assert len(runner.engine.contexts) == 1
    assert runner.engine.contexts[0].memory is None
    alive = [graph for graph in runner.driver.graphs.values() if graph]
    assert not alive, "graphs of other shapes are let go"


def test_a_context_runs_before_each_capture(runner_of):
    """Else what it does at its first run with new shapes would be captured, or refused."""
    for shares in (True, False):
        engine = Engine(shares=shares)
        runner_of(engine, batch_sizes=(1, 3))
        assert sum(context.runs for context in engine.contexts) == 2


def test_a_context_that_has_no_memory_is_told(runner_of, monkeypatch):
    monkeypatch.setattr(Engine, "create_execution_context", lambda self, *strategies: None)
    with pytest.raises(PlanError, match="does not fit into the GPU's memory"):
        runner_of(Engine())


def test_only_the_batch_is_copied(runner_of):
    runner = runner_of(Engine())
    runner.driver.log.clear()
    runner(*inputs(2))
    sizes = [(each[0], each[1]) for each in runner.driver.log if isinstance(each, tuple)]
    assert sizes == [
        ("upload", 2 * H * W * 3), ("upload", 2 * 2 * 4),
        ("download", 2 * 2 * 4 * 4), ("download", 2 * 2 * 4), ("download", 2 * 2 * 4),
    ]  # fmt: skip  # inputs, outputs
    assert runner.driver.log[0] == "attach"
    assert runner.driver.log[-1] == "synchronize"


def test_outputs_are_the_callers_own(runner_of):
    runner = runner_of(Engine())
    images, sizes = inputs(1)
    first = runner(images, sizes)
    runner(images + np.uint8(50), sizes)
    check(first, images, sizes)


def test_inputs_in_the_runners_own_memory_are_not_copied(runner_of, monkeypatch):
    runner = runner_of(Engine(), batch_sizes=(2,))
    images, sizes = inputs(2)
    own = runner.buffers(2)
    assert [array.shape for array in own] == [images.shape, sizes.shape]
    for array, values in zip(own, (images, sizes), strict=True):
        array[...] = values
        array.flags.writeable = False  # so that a copy onto itself would fail
    for tensor in runner.inputs:
        tensor.array.flags.writeable = False
    check(runner(*own), images, sizes)
    assert runner.driver.log.count("synchronize") == 2, "one of the capture, one of the inference"
    with pytest.raises(PlanError, match="batches of 1 to 3, not 4"):
        runner.buffers(4)


def test_prepared_inferences_can_be_repeated(runner_of):
    runner = runner_of(Engine(), batch_sizes=(2,))
    for batch in (2, 3):
        replay = runner.prepare(*inputs(batch))
        before = runner.context.runs
        runner.driver.log.clear()
        replay()
        replay()
        assert runner.context.runs == before + 2
        assert len(runner.driver.log) == (2 if batch == 2 else 0), "launches of a graph, made at once"


def test_a_fixed_batch_needs_no_profile(runner_of):
    runner = runner_of(Engine(batch=2))
    check(runner(*inputs(2)), *inputs(2))
    assert runner.max_batch_size == 2


def test_a_plan_without_image_sizes_runs(runner_of):
    images, sizes = inputs(2)
    check(runner_of(Engine(inputs=("images",)))(images, sizes), images, np.zeros_like(sizes))
    check(runner_of(Engine(inputs=("images",)))(images), images, np.zeros_like(sizes))
    with pytest.raises(PlanError, match="got 2 images and 0 sizes"):
        runner_of(Engine())(images)


def test_outputs_without_names_come_in_the_order_of_their_numbers(runner_of):
    check(runner_of(Engine(outputs=("output0", "output1", "output2")))(*inputs(2)), *inputs(2))


def test_outputs_that_only_keep_the_plan_from_fusing_get_memory_of_their_own(runner_of):
    runner = runner_of(Engine(outputs=("boxes", "scores", "labels", "layer")), batch_sizes=(2,))
    check(runner(*inputs(2)), *inputs(2))
    assert [tensor.name for tensor in runner.outputs] == ["boxes", "scores", "labels"]
    addresses = runner.context.addresses
    assert len(set(addresses.values())) == len(addresses) == 6
    downloads = [each for each in runner.driver.log if each[0] == "download"]
    assert len(downloads) == 3
    most = max(len(memory) for memory in runner.driver.memory)
    assert most == 5 * MOST * 9 * 8 * 8, "all windows of the largest batch, of any type"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, s: (i.astype(np.float32), s), r"images of uint8 \[1 to 3, 4, 6, 3\], not float32 \[2, 4, 6, 3\]"),
        (lambda i, s: (i[:, 1:], s), r"not uint8 \[2, 3, 6, 3\]"),
        (lambda i, s: (np.concatenate((i, i)), np.concatenate((s, s))), r"not uint8 \[4, 4, 6, 3\]"),
        (lambda i, s: (i[:0], s[:0]), r"not uint8 \[0, 4, 6, 3\]"),
        (lambda i, s: (i, s.astype(np.int64)), r"takes image_sizes of int32 \[1 to 3, 2\], not int64 \[2, 2\]"),
    ],
)  # fmt: skip  # a table
def test_other_arrays_are_refused(runner_of, change, words):
    with pytest.raises(PlanError, match=words):
        runner_of(Engine())(*change(*inputs(2)))


def test_sizes_of_another_batch_are_refused(runner_of):
    images, sizes = inputs(2)
    with pytest.raises(PlanError, match=r"2 images and 1 sizes"):
        runner_of(Engine())(images, sizes[:1])


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        (None, {}, "TensorRT 11.1 cannot load .*a.plan: it gives no reason"),
        (None, {"said": "no\nplugin"}, "TensorRT 11.1 cannot load .*a.plan: no plugin$"),
        (Engine(inputs=("pixels",)), {}, "takes pixels; expected images and perhaps image_sizes"),
        (Engine(inputs=("images", "mask")), {}, "takes images, mask; expected"),
        (Engine(outputs=("boxes", "scores")), {}, "puts out boxes, scores; expected boxes, scores, labels"),
        (Engine(wide="HALF"), {}, r"has boxes of type HALF and shape \(3, 2, 4\), which cannot be served"),
        (Engine(), {"batch_sizes": (4,)}, "takes batches of 1 to 3, not 4"),
    ],
)  # fmt: skip  # a table
def test_plans_that_cannot_be_served_are_refused(runner_of, engine, options, words):
    with pytest.raises(PlanError, match=words):
        runner_of(engine, **options)


def test_a_failed_run_is_told(runner_of):
    engine = Engine()
    runner = runner_of(engine)
    engine.fails = True
    with pytest.raises(PlanError, match="failed to run"):
        runner(*inputs(1))
    engine.takes = False
    with pytest.raises(PlanError, match="takes no batch of 2"):
        runner(*inputs(2))


def test_a_plugin_that_cannot_be_loaded_is_told(runner_of, tmp_path):
    (tmp_path / "plugin.so").write_bytes(b"")
    with pytest.raises(PlanError, match="cannot load the plugin"):
        runner_of(Engine(), plugin_library=tmp_path / "plugin.so")


# libcuda's calls with the types of cuda.h; stream 5 is the only one.
LIBCUDA = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned long long Address;
static void *const kStream = (void*)5, *const kGraph = (void*)0x123456789abcull;
static int launches, capturing, flags, current, now;
int cuInit(unsigned f) { return f; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal + 40; return ordinal == 9 ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)(size_t)device; return 0; }
int cuCtxSetCurrent(void* context) { current = (int)(size_t)context; return 0; }
int cuMemAlloc_v2(Address* address, size_t size) {
    if (size > (1ull << 40)) return 2;
    *address = (Address)malloc(size);
    return 0;
}
int cuMemAllocHost_v2(void** address, size_t size) { *address = malloc(size); return 0; }
int cuMemcpyHtoDAsync_v2(Address to, void const* from, size_t n, void* stream) {
    memcpy((void*)to, from, n);
    return stream != kStream;
}
int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, void* stream) {
    memcpy(to, (void*)from, n);
    return stream != kStream;
}
int cuStreamCreate(void** stream, unsigned f) { flags = f; *stream = kStream; return 0; }
int cuStreamSynchronize(void* stream) { return stream != kStream; }
int cuStreamBeginCapture_v2(void* stream, int mode) { capturing = mode; return stream != kStream; }
int cuStreamEndCapture(void* stream, void** graph) { capturing = 0; *graph = kGraph; return stream != kStream; }
int cuGraphInstantiateWithFlags(void** exec, void* graph, Address f) { *exec = graph; return f != 0; }
int cuGraphExecDestroy(void* exec) { return exec != kGraph; }
int cuGraphLaunch(void* exec, void* stream) { ++launches; return exec != kGraph || stream != kStream; }
int cuEventCreate(void** event, unsigned f) { *event = calloc(1, sizeof(float)); return f; }
int cuEventRecord(void* event, void* stream) { *(float*)event = ++now; return stream != kStream; }
int cuEventElapsedTime(float* ms, void* begin, void* end) { *ms = *(float*)end - *(float*)begin; return 0; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = 3ull << 32; *total = 5ull << 32; return 0; }
int cuGetErrorString(int code, char const** text) {
    *text = code == 2 ? "out of memory" : code == 101 ? "invalid device" : 0;
    return 0;
}
int state(int which) { return which == 0 ? launches : which == 1 ? capturing : which == 2 ? flags : current; }
"""


@pytest.fixture
def libcuda(monkeypatch, tmp_path):
    """The stand-in of libcuda, in place of the real one."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        missing("needs a C compiler")
    (tmp_path / "cuda.c").write_text(LIBCUDA)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so", tmp_path / "cuda.c"], check=True)
    library = ctypes.CDLL(str(tmp_path / "libcuda.so"))
    loaded = {"libcuda.so.1": library}
    monkeypatch.setattr(ctypes, "CDLL", loaded.__getitem__)
    return library


def test_the_driver_is_called_with_its_types(libcuda):
    driver = CudaDriver(2)
    assert libcuda.state(3) == 42  # the context of device 2
    stream, device, host = driver.create_stream(), driver.allocate(16), driver.allocate_host(16)
    assert (stream, libcuda.state(2)) == (5, 1)
    source, target = np.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    driver.upload(device, source.ctypes.data, 16, stream)
    driver.download(host, device, 16, stream)
    driver.synchronize(stream)
    ctypes.memmove(target.ctypes.data, host, 16)
    np.testing.assert_array_equal(source, target)
    modes = []
    graph = driver.capture(stream, lambda: modes.append(libcuda.state(1)))
    assert modes == [1]
    assert libcuda.state(1) == 0
    driver.launch(graph, stream)
    assert libcuda.state(0) == 1
    driver.forget(graph)
    begin, end = driver.create_event(), driver.create_event()
    driver.record(begin, stream)
    driver.record(end, stream)
    assert driver.elapsed_ms(begin, end) == 1.0
    assert driver.used_memory() == 2 << 32


def test_the_drivers_errors_are_told(libcuda):
    with pytest.raises(PlanError, match="cuDeviceGet failed: invalid device"):
        CudaDriver(9)
    driver = CudaDriver()
    with pytest.raises(PlanError, match="cuMemAlloc_v2 failed: out of memory"):
        driver.allocate(2**41)
    with pytest.raises(PlanError, match="cuStreamSynchronize failed: error 1"):
        driver.synchronize(0)


def test_a_failed_capture_leaves_the_stream_free(libcuda):
    driver = CudaDriver()
    with pytest.raises(ZeroDivisionError):
        driver.capture(5, lambda: 1 / 0)
    assert libcuda.state(1) == 0


def test_a_machine_without_a_driver_is_told(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(PlanError, match=r"needs an NVIDIA GPU and its driver; libcuda\.so\.1 cannot be loaded"):
        CudaDriver()
