"""Between NumPy and a GPU: page-locked memory, one copy, one wait. The CPU stands in for it, but in one test."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_structure, treespec_dumps

from model_repository.torch_runner import TorchRunner

H, W = 4, 6


class Package:
    """Scores each image by its mean, its boxes are its size, its label is its first pixel."""

    def __init__(self, inputs):
        spec = treespec_dumps(tree_structure(((0,) * inputs, {})))
        self.loader = SimpleNamespace(get_call_spec=lambda: [spec, ""], get_metadata=dict)
        self.seen = []

    def __call__(self, images, sizes=None):
        self.seen.append(images)
        if sizes is None:
            sizes = torch.zeros(len(images), 2, dtype=torch.int32)
        return (
            sizes.float()[:, None].repeat(1, 1, 2),
            images.float().mean((1, 2, 3))[:, None],
            images[:, 0, 0, :1].int(),
        )


def arrays(batch, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (batch, H, W, 3), dtype=np.uint8)
    return images, random.integers(1, H, (batch, 2), dtype=np.int32)


def check(outputs, images, sizes):
    boxes, scores, labels = outputs
    np.testing.assert_array_equal(boxes, np.tile(sizes.astype(np.float32), 2)[:, None])
    np.testing.assert_allclose(scores[:, 0], images.mean(axis=(1, 2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(labels, images[:, 0, 0, :1])


@pytest.fixture
def waits(monkeypatch):
    """How often a stream or an event was waited for."""
    counted = []
    real = {name: getattr(torch, name) for name in ("empty", "empty_like")}
    for name in real:
        monkeypatch.setattr(torch, name, lambda *shape, pin_memory=False, name=name, **how: real[name](*shape, **how))
    point = SimpleNamespace(record=lambda: None, synchronize=lambda: counted.append(True))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: point)
    monkeypatch.setattr(torch.cuda, "Event", lambda: point)
    return counted


def runner_of(monkeypatch, inputs=2):
    package = Package(inputs)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path, **how: package)
    runner = TorchRunner("model.pt2", (H, W), "cpu")
    runner.place = "cuda"
    return runner, package


def test_a_call_waits_once_and_its_outputs_are_its_own(waits, monkeypatch):
    runner, _ = runner_of(monkeypatch)
    first, second = arrays(3), arrays(2, seed=1)
    outputs = runner(*first)
    assert len(waits) == 1
    check(runner(*second), *second)
    check(outputs, *first)
    larger = arrays(5, seed=2)
    check(runner(*larger), *larger)
    check(outputs, *first)


def test_what_lies_in_the_runners_memory_is_not_copied(waits, monkeypatch):
    runner, package = runner_of(monkeypatch)
    copies = []
    monkeypatch.setattr(np, "copyto", lambda to, array: copies.append(to.shape))
    values = arrays(2)
    own = runner.buffers(2)
    for to, array in zip(own, values, strict=True):
        to[...] = array
    check(runner(*own), *values)
    assert copies == []
    assert np.shares_memory(package.seen[0].numpy(), own[0])
    runner(*arrays(2))
    assert copies == [(2, H, W, 3), (2, 2)]


def test_a_smaller_batch_has_the_beginning_of_the_same_memory(waits, monkeypatch):
    runner, _ = runner_of(monkeypatch)
    large, small = runner.buffers(4), runner.buffers(1)
    assert [len(array) for array in small] == [1, 1]
    assert all(np.shares_memory(one, other) for one, other in zip(large, small, strict=True))


def test_a_package_without_sizes_has_memory_for_images_alone(waits, monkeypatch):
    runner, _ = runner_of(monkeypatch, inputs=1)
    images, sizes = arrays(2)
    assert [array.shape for array in runner.buffers(2)] == [images.shape]
    check(runner(images), images, np.zeros_like(sizes))


def test_prepared_inputs_are_on_the_gpu_before_the_next_take_their_memory(waits, monkeypatch):
    runner, _ = runner_of(monkeypatch)
    runner.prepare(*arrays(2))
    assert len(waits) == 1


def test_another_thread_queues_its_inference_while_one_waits(waits, monkeypatch):
    runner, package = runner_of(monkeypatch)
    inputs, outputs = memory_of(runner, 4)
    first_waits, second_is_queued = threading.Event(), threading.Event()

    def wait_for_the_second():
        first_waits.set()
        assert second_is_queued.wait(30), "nobody else could queue meanwhile"

    events = iter(
        (
            SimpleNamespace(record=lambda: None, synchronize=wait_for_the_second),
            SimpleNamespace(record=second_is_queued.set, synchronize=lambda: None),
        )
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda: next(events))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda at, size, flags: 0))
    values, others = arrays(2), arrays(1, seed=1)
    run = runner.adopt(inputs, outputs)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(runner, *values)
        assert first_waits.wait(60)
        for to, array in zip(inputs, others, strict=True):
            to[:1] = array
        run(1)
        check(answer.result(60), *values)
    check([array[:1] for array in outputs], *others)
    assert np.shares_memory(package.seen[-1].numpy(), inputs[0])


def memory_of(runner, batch):
    return [[np.zeros((batch, *shape), kind) for shape, kind in kinds] for kinds in runner.tensors()]


def test_memory_of_others_is_page_locked_until_it_is_released(waits, monkeypatch):
    runner, _ = runner_of(monkeypatch)
    locked = {}
    monkeypatch.setattr(
        torch.cuda,
        "cudart",
        lambda: SimpleNamespace(
            cudaHostRegister=lambda at, size, flags: locked.update({at: size}) or 0,
            cudaHostUnregister=lambda at: locked.pop(at),
        ),
    )
    inputs, outputs = memory_of(runner, 3)
    runner.adopt(inputs, outputs)
    assert locked == {array.ctypes.data: array.nbytes for array in (*inputs, *outputs)}
    runner.release(inputs, outputs)
    assert locked == {}


def test_memory_that_cannot_be_page_locked_is_used_all_the_same(waits, monkeypatch, capsys):
    """A refused call leaves an error that the next launch raises, as seen on an H100 with PyTorch 2.11."""
    runner, _ = runner_of(monkeypatch)
    errors, ones, model = [], torch.ones, runner.model

    def refuse(*_):
        errors.append("part or all of the requested memory range is already mapped")
        return 2

    def launch(kernel, *args, **keywords):
        if errors:
            raise RuntimeError(errors.pop())
        return kernel(*args, **keywords)

    cudart = SimpleNamespace(cudaHostRegister=refuse, cudaHostUnregister=refuse)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch, "ones", partial(launch, ones))
    runner.model = partial(launch, model)
    inputs, outputs = memory_of(runner, 2)
    values = arrays(2)
    for to, array in zip(inputs, values, strict=True):
        to[...] = array
    runner.adopt(inputs, outputs)(2)
    check(outputs, *values)
    assert "144 bytes of another instance's are not page-locked: 2" in capsys.readouterr().out
    runner.release(inputs, outputs)
    assert not errors, "what was not locked is not unlocked"


def test_tensors_are_those_that_the_package_reads(waits, monkeypatch):
    runner, _ = runner_of(monkeypatch, inputs=1)
    outputs = [((1, 4), "float32"), ((1,), "float32"), ((1,), "int32")]
    assert runner.tensors() == ([((H, W, 3), "uint8")], outputs)
    runner, _ = runner_of(monkeypatch)
    assert runner.tensors() == ([((H, W, 3), "uint8"), ((2,), "int32")], outputs)


@pytest.mark.gpu
def test_a_real_gpu_computes_the_same_through_its_own_memory(tmp_path):
    class Network(torch.nn.Module):
        def forward(self, images, sizes):
            return Package(2)(images, sizes)

    batch = torch.export.Dim("batch", min=1, max=4)
    example = (
        torch.zeros(2, H, W, 3, dtype=torch.uint8, device="cuda"),
        torch.ones(2, 2, dtype=torch.int32, device="cuda"),
    )
    program = torch.export.export(Network(), example, dynamic_shapes=({0: batch}, {0: batch}))
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    runner = TorchRunner(tmp_path / "model.pt2", (H, W), "cuda", batch_sizes=(1, 2))
    for count in (1, 2, 3):  # with a CUDA graph, and without one
        values = arrays(count, seed=count)
        outputs = runner(*values)
        check(outputs, *values)
        own = runner.buffers(count)
        others = arrays(count, seed=10 + count)
        for to, array in zip(own, others, strict=True):
            to[...] = array
        check(runner(*own), *others)
        check(outputs, *values)
    inputs, outputs = memory_of(runner, 3)
    run = runner.adopt(inputs, outputs)
    with ThreadPoolExecutor() as pool:  # both at once, again and again
        for count in (1, 2, 3) * 20:
            values, others = arrays(count, seed=count), arrays(count, seed=20 + count)
            for to, array in zip(inputs, others, strict=True):
                to[:count] = array
            ours = pool.submit(runner, *values)
            run(count)
            check([array[:count] for array in outputs], *others)
            check(ours.result(), *values)
    runner.release(inputs, outputs)
