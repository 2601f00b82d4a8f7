"""Packages, by hand and a real one."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builder.engines import EngineError
from builder.engines import torch as torch_engine
from builder.inspect.package import describe_package, kernel_times, times_of, weights_of
from builder.pipeline.export import InputSpec, export_detector
from model_repository.torch_runner import TorchRunner
from tests.builder.inspect.small import HEIGHT, WIDTH, samples, small_detector
from tests.builder.inspect.sources import ON_CPU, ON_GPU


def package(path, source, **more):
    files = {"model.wrapper.cpp": source, "model.wrapper.so": "x" * 1000} | more
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"model/data/aotinductor/model/{name}", text)
    return path


def describe(path, **more):
    return describe_package(path, "title", {}, ("images",), ("boxes",), 3, **more)


def test_kernels_have_the_times_of_their_calls(tmp_path):
    times = {"cpp_fused_add_0": [0.5], "aoti_torch_cpu_mm_out": [2.0], "cpp_fused_relu_1": [0.25]}
    found = describe(package(tmp_path / "a.pt2", ON_CPU), times=times, total_ms=3.0)
    assert [part.kind for part in found.parts] == ["fused kernel (C++)", "mm", "fused kernel (C++)", "topk"]
    assert [part.ms for part in found.parts] == [0.5, 2.0, 0.25, None]
    assert found.memory == {"weights": 524, "libraries": 1000}
    assert found.total_ms == 3.0


def test_libraries_of_a_package_for_a_gpu_are_counted(tmp_path):
    found = describe(package(tmp_path / "a.pt2", ON_GPU, **{"a.cubin": "y" * 50, "b.cubin": "y" * 50}))
    assert len(found.parts) == 3
    assert "2 kernels for the GPU lie in it" in found.notes
    assert found.memory["libraries"] == 1100


def test_a_package_without_its_source_says_so(tmp_path):
    found = describe(package(tmp_path / "a.pt2", "int main() {}"))
    assert found.parts == ()
    assert any("its kernels are not known" in note for note in found.notes)


def with_weights(path, weights, strides=None, multiple=64):
    """A package whose library has these weights, after something else, each in a multiple of so many bytes."""
    lines, data = [], b"\x7fELF" + bytes(range(96))
    for i, (name, tensor) in enumerate(weights.items()):
        stride = (strides or {}).get(name, tensor.stride())
        stored = torch.empty(tensor.numel(), dtype=tensor.dtype)
        stored.as_strided(tensor.shape, stride).copy_(tensor)
        content = stored.numpy().tobytes()
        content += bytes(-len(content) % multiple)
        data += content
        lines += [
            f'    constants_info_[{i}].name = "{name.replace(".", "_")}";',
            f"    constants_info_[{i}].dtype = cached_torch_dtype_{str(tensor.dtype).removeprefix('torch.')};",
            f"    constants_info_[{i}].data_size = {len(content)};",
            f"    constants_info_[{i}].shape = {{{', '.join(map(str, tensor.shape))}}};",
            f"    constants_info_[{i}].stride = {{{', '.join(map(str, stride))}}};",
            f'    constants_info_[{i}].original_fqn = "{name}";',
        ]
    return package(path, "\n".join(lines), **{"model.wrapper.so": data})


@pytest.mark.parametrize("multiple", [64, 1], ids=["for a CPU", "for a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_weights_of_a_package_are_read(tmp_path, dtype, multiple):
    random = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (7, 5), "a.bias": (7,), "b.weight": (4, 3, 2, 2), "c.weight": (30, 30), "c.bias": (30,)}
    weights = {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}
    changed = weights | {"c.weight": weights["c.weight"] * 1.01}
    file = with_weights(tmp_path / "a.pt2", changed, {"b.weight": (12, 1, 6, 3)}, multiple)
    found = weights_of(file, weights)
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], changed[name]) for name in weights)
    assert weights_of(file, {"c.weight": weights["c.weight"]}) == {}, "one that is found nowhere finds nothing"
    other = {name: tensor + 1 for name, tensor in weights.items()}
    assert weights_of(file, other) == {}, "of another network nothing is said"
    assert set(weights_of(file, weights | {"a.bias": torch.zeros(9, dtype=dtype)})) == set(weights) - {"a.bias"}


def test_weights_are_found_in_the_order_in_which_they_are_stored(tmp_path):
    weights = {f"{name}.weight": torch.randn(8, 6, 3, 3) for name in "ab"}
    file = with_weights(tmp_path / "a.pt2", weights, dict.fromkeys(weights, (54, 1, 18, 6)))
    found = weights_of(file, weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_what_is_no_package_is_refused(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"no zip")
    with pytest.raises(EngineError, match=r"a\.pt2 is no package of AOTInductor"):
        describe(tmp_path / "a.pt2")
    with zipfile.ZipFile(tmp_path / "b.pt2", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(EngineError, match="it has no folder aotinductor"):
        describe(tmp_path / "b.pt2")


def event(name, microseconds, on_gpu=False):
    return SimpleNamespace(
        name=name, cpu_time_total=microseconds, device_time_total=microseconds,
        device_type=SimpleNamespace(name="CUDA" if on_gpu else "CPU"),
    )  # fmt: skip  # what is read of a profiler's event


def test_times_are_those_of_each_call():
    runs = [event("graph_0_cpp_fused_a", 10), event("aoti_torch_cpu_mm_out", 4), event("aten::copy_", 9)]
    runs += [event("aoti_torch_cpu_mm_out", 6)]
    again = [event("graph_0_cpp_fused_a", 20), event("aoti_torch_cpu_mm_out", 6), event("aoti_torch_cpu_mm_out", 10)]
    times = times_of([*runs, *again], "cpu", 2)
    assert times == {"cpp_fused_a": [0.015], "aoti_torch_cpu_mm_out": [0.005, 0.008]}
    assert times_of(runs, "cpu", 2) == {"aoti_torch_cpu_mm_out": [0.005]}, "a number of calls that does not fit is left"


def test_on_a_gpu_the_kernels_time_counts():
    events = [event("triton_poi_a", 7, on_gpu=True), event("triton_poi_a", 900), event("aoti_torch_cuda_mm_out", 5)]
    assert times_of(events, "cuda", 1) == {"triton_poi_a": [0.007], "aoti_torch_cuda_mm_out": [0.005]}


@pytest.mark.gpu
def test_the_weights_of_a_real_package_for_a_gpu_are_read(tmp_path):
    detector = small_detector().cuda()
    torch_engine.compile_package(export_detector(detector, InputSpec(HEIGHT, WIDTH, 1)), tmp_path / "a.pt2", "cuda")
    weights = dict(detector.named_parameters())
    assert any(weight.nbytes % 64 for weight in weights.values()), "after such a one the others are not at multiples"
    found = weights_of(tmp_path / "a.pt2", weights)
    assert "class_head.weight" in found
    assert all(torch.equal(weight, weights[name].cpu()) for name, weight in found.items())


@pytest.mark.slow
def test_a_real_package_is_understood(tmp_path):
    detector = small_detector()
    program = export_detector(detector, InputSpec(HEIGHT, WIDTH, 2))
    torch_engine.compile_package(program, tmp_path / "a.pt2", "cpu", profiled=True)
    ((_, images, sizes),) = samples(1)
    runner = TorchRunner(tmp_path / "a.pt2", (HEIGHT, WIDTH), "cpu")
    times = kernel_times(runner.prepare(images, sizes), "cpu", 2)
    found = describe_package(tmp_path / "a.pt2", "", {}, (), (), 1, times)
    assert all(part.ms is not None for part in found.parts)
    kinds = {part.kind for part in found.parts}
    assert {"convolution", "addmm", "bmm", "topk", "fused kernel (C++)"} <= kinds
    modules = {part.module for part in found.parts}
    assert {"backbone.1", "encoder.ffn.0", "decoder.self_attn.out_proj", "class_head"} <= modules
    made = {name for part in found.parts for name in part.outputs}
    assert sum(bool(set(part.inputs) & made) for part in found.parts) > 0.9 * len(found.parts)
    held = weights_of(tmp_path / "a.pt2", dict(detector.named_parameters()))
    assert len(held) > 25, "all but the smallest, which are written into the kernels"
    assert all(torch.equal(weight, detector.get_parameter(name)) for name, weight in held.items())
    assert np.isclose(
        found.memory["weights"], sum(each.numel() * 4 for each in small_detector().parameters()), rtol=0.05
    )
