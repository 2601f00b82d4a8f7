"""The torch engine around its compiler, with stand-ins for compiler, package and GPU."""

import os
import re
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_structure, treespec_dumps

from builder.engines import EngineError, torch_float8
from builder.engines import torch as engine
from builder.engines.torch_passes import ReLUInProduct
from builder.operators.cuda import CudaOperatorError
from builder.pipeline.export import InputSpec
from builder.quantise.calibration import Range, Ranges
from builder.quantise.layers import Float8Linear
from model_repository.torch_runner import TF32, TorchRunner, float32_products

SPEC = InputSpec(64, 96, 4)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """An empty folder as PATH, and no CXX."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def program_in(folder, name):
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return folder / name


def program_on(
    device,
    operators=(torch.ops.codetr.ms_deform_attn.default,),
    inputs=("images", "image_sizes"),
    dtypes=(torch.float32,),
):
    """What `build` asks of an exported program."""
    return SimpleNamespace(
        state_dict={i: SimpleNamespace(device=torch.device(device), dtype=each) for i, each in enumerate(dtypes)},
        graph_signature=SimpleNamespace(user_inputs=inputs),
        graph=SimpleNamespace(nodes=[SimpleNamespace(target=operator) for operator in operators]),
    )


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU; returns the libraries that are loaded."""
    loaded = []

    def load(library=None):
        loaded.append(library)
        return library

    monkeypatch.setattr(engine, "device", lambda: "cuda")
    monkeypatch.setattr(engine, "load_cuda_operator", load)
    return loaded


@pytest.fixture
def a_gpu(monkeypatch):
    """PyTorch finds a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_compiler_is_needed(path):
    with pytest.raises(EngineError, match="needs a C\\+\\+ compiler; install g\\+\\+, name another in CXX"):
        engine.check(True)
    program_in(path, "g++")
    engine.check(True)


def test_another_compiler_is_named_in_cxx(path, monkeypatch):
    monkeypatch.setenv("CXX", str(program_in(path, "mygxx")))
    engine.check(True)


def test_a_wrong_cxx_is_named(path, monkeypatch):
    program_in(path, "g++")  # PyTorch calls what CXX says
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with pytest.raises(EngineError, match=r"CXX=/nonexistent/g\+\+ is no program"):
        engine.check(True)
    with pytest.raises(EngineError, match="CXX=/nonexistent"):
        engine.build(program_on("cpu"), path / "model.pt2")


def compiler_in(folder, name, needed):
    """A compiler whose libraries need these; what it is called with stands in a file beside it."""
    script = f'echo "$@" >>"$0.log"\nwhile [ "$1" != -o ]; do shift; done\nprintf "{needed}" >"$2"'
    folder.mkdir(exist_ok=True)
    program_in(folder, name).write_text(f"#!/bin/sh\n{script}\n")
    return folder / name


def test_a_compiler_is_chosen_that_shares_pytorchs_runtime(tmp_path, monkeypatch):
    alone = compiler_in(tmp_path / "alone", "g++", "libgcc_s.so.1 libc.so.6")
    broken = program_in(compiler_in(tmp_path / "broken", "g++", "").parent, "g++")
    shared = compiler_in(tmp_path / "shared", "g++", "libm.so.6 libstdc++.so.6")
    clang = compiler_in(tmp_path / "clang", "clang++", "libc++.so.1")
    monkeypatch.delenv("CXX", raising=False)
    for folders, chosen in (
        ((alone, broken, shared, clang), shared),
        ((clang, alone), clang),
        ((alone, broken), alone),
        ((shared, alone), shared),
    ):
        monkeypatch.setenv("PATH", ":".join(str(each.parent) for each in folders) + ":/usr/bin:/bin")
        monkeypatch.setattr(os, "get_exec_path", lambda folders=folders: [str(each.parent) for each in folders])
        assert engine.cpp_compiler() == str(chosen)
    monkeypatch.setenv("CXX", str(alone))
    assert engine.cpp_compiler() == str(alone), "what the user names is called"


def test_the_chosen_compiler_is_the_one_that_pytorch_calls(tmp_path, monkeypatch):
    seen = []

    def compile_package(program, package_path, inductor_configs):
        seen.append(torch._inductor.config.cpp.cxx)
        raise AssertionError

    monkeypatch.setattr(engine, "decompose_operator", lambda program: program)
    monkeypatch.setattr(engine, "cpp_compiler", lambda: "/chosen/g++")
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_package)
    with pytest.raises(EngineError):
        engine.build(program_on("cpu"), tmp_path / "model.pt2")
    assert seen == [(None, "/chosen/g++")]


@pytest.fixture
def library_that_crashes(tmp_path):
    """A library that ends the process which loads it, as a package does whose C++ runtime is its own."""
    source, library = tmp_path / "crash.c", tmp_path / "crash.so"
    source.write_text("#include <stdlib.h>\n__attribute__((constructor)) static void end(void) { abort(); }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    return library


def test_a_package_that_crashes_or_misloads_is_told_and_takes_nobody_along(tmp_path, library_that_crashes, monkeypatch):
    package = tmp_path / "model.pt2"
    package.write_text("no package")
    alone = compiler_in(tmp_path / "alone", "g++", "libc.so.6")
    monkeypatch.setenv("CXX", str(alone))
    with pytest.raises(EngineError) as crashed:
        engine.check_package(package, [library_that_crashes])
    assert str(crashed.value) == (
        f"the new package crashed with SIGABRT when it was loaded, most likely because {alone} links a C++ runtime of "
        "its own into it; name another C++ compiler in CXX, such as CXX=/usr/bin/g++, and build again, or use the onnx "
        "engine"
    )
    monkeypatch.setattr(engine, "_shares_runtime", lambda compiler: True)
    with pytest.raises(EngineError, match=r"^the new package cannot be loaded \(.*Error.*\); name another C\+\+ comp"):
        engine.check_package(package)


def test_a_package_that_cannot_be_loaded_is_not_left_behind(tmp_path, monkeypatch):
    def refuse(package, libraries):
        assert package.read_text() == "new"
        raise EngineError("crashed")

    monkeypatch.setattr(engine, "decompose_operator", lambda program: program)
    monkeypatch.setattr(engine, "check_package", refuse)
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda program, package_path, inductor_configs: Path(package_path).write_text("new"),
    )
    with pytest.raises(EngineError, match="crashed"):
        engine.build(program_on("cpu"), tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


def test_nvcc_is_looked_for_where_there_is_a_gpu(path, gpu, monkeypatch):
    program_in(path, "g++")
    asked = []
    monkeypatch.setattr(engine, "check_cuda_operator", lambda: asked.append(True))
    engine.check(uses_operator=False)
    assert asked == [], "a graph without the operator wants no compiler for it"
    engine.check(uses_operator=True)
    assert asked == [True]


def test_an_error_without_text_is_named_by_its_class(path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError

    program_in(path, "g++")
    monkeypatch.setattr(engine, "decompose_operator", lambda program: program)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(EngineError, match=r"could not compile the detector: AssertionError$"):
        engine.build(program_on("cpu"), path / "model.pt2")


@pytest.fixture
def runners(monkeypatch):
    """The arguments of every `TorchRunner`; none of them loads anything."""
    made = []

    def runner(package, input_shape, device, library, batch_sizes):
        made.append((package, input_shape, device, library, batch_sizes))
        return SimpleNamespace(place=device)

    monkeypatch.setattr(engine, "TorchRunner", runner)
    return made


def test_a_package_runs_with_the_library_beside_it(tmp_path, a_gpu, gpu, runners):
    library = tmp_path / "libcodetr_ms_deform_attn_sm90_0123.so"
    library.touch()
    loaded = engine.load(tmp_path / "model.pt2", SPEC, "cuda")
    assert gpu == [library], "not the one of the cache"
    assert runners == [(tmp_path / "model.pt2", (64, 96), "cuda", library, [1, 4])]
    assert loaded.device == "cuda"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_package_without_a_library_runs_where_it_was_built_for(tmp_path, a_gpu, gpu, runners, device):
    loaded = engine.load(tmp_path / "model.pt2", SPEC, device)
    assert gpu == []
    assert runners[0][2:4] == (device, None)
    assert loaded.device == device


def test_a_package_for_a_gpu_is_named_where_there_is_none(tmp_path, monkeypatch, runners):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=re.escape(f"{tmp_path}/model.pt2 was compiled for an NVIDIA GPU")):
        engine.load(tmp_path / "model.pt2", SPEC, "cuda")
    assert runners == []


@pytest.fixture
def compiled(monkeypatch):
    """What the compiler got, and with which libraries the package was loaded for a trial; nothing is done."""
    calls = []

    def compile_and_package(program, package_path, inductor_configs):
        calls.append((program, package_path, inductor_configs))

    monkeypatch.setattr(engine, "check", lambda uses_operator: None)
    monkeypatch.setattr(engine, "decompose_operator", lambda program: ("decomposed", program))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_and_package)
    monkeypatch.setattr(engine, "check_package", lambda package, libraries: calls.append((package, libraries)))
    return calls


def test_a_built_package_has_the_library_beside_it(tmp_path, a_gpu, gpu, runners, monkeypatch, compiled):
    cached, package = tmp_path / "cache" / "libcodetr_ms_deform_attn_sm90_0123.so", tmp_path / "build" / "model.pt2"
    for file in (cached, package):
        file.parent.mkdir()
    cached.write_bytes(b"the operator")
    monkeypatch.setattr(engine, "load_cuda_operator", lambda library=cached: library)
    program = program_on("cuda")
    built = engine.build(program, package)
    assert (built.device, built.extra_files) == ("cuda", (engine.RUNNER_SOURCE, cached))
    assert built.inputs == ("images", "image_sizes")
    (what, where, asked), *loaded = compiled
    assert (what, where) == (program, str(package)), "the operator stays one node, which calls the library"
    assert isinstance(asked["post_grad_custom_post_pass"], ReLUInProduct)
    assert asked["shape_padding"] is False
    assert loaded == [(package, [cached])]
    assert engine.load(package, SPEC, built.device).device == "cuda"
    assert runners[0][3].read_bytes() == b"the operator"


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        pytest.param((torch.float32, torch.float32), "no", id="float32"),
        pytest.param((torch.float32, torch.float16), "yes", id="box heads of a float16 detector"),
        pytest.param((torch.float32, torch.bfloat16), "yes", id="of a bfloat16 detector"),
    ],
)
def test_a_package_in_half_precision_allows_tf32(tmp_path, gpu, compiled, dtypes, expected):
    engine.build(program_on("cuda", operators=(), dtypes=dtypes), tmp_path / "model.pt2")
    (_, _, asked), *_ = compiled
    assert asked["aot_inductor.metadata"] == {TF32: expected}


def test_a_package_for_the_cpu_is_decomposed_and_has_no_library(tmp_path, gpu, compiled):
    """Even beside a GPU: what counts is where the program was exported."""
    program = program_on("cpu")
    built = engine.build(program, tmp_path / "model.pt2")
    assert (built.device, built.extra_files) == ("cpu", (engine.RUNNER_SOURCE,))
    assert gpu == []
    package = tmp_path / "model.pt2"
    assert compiled == [(("decomposed", program), str(package), {"freezing": True}), (package, [])]


def test_a_graph_without_the_operator_is_built_for_a_gpu_without_its_library(tmp_path, gpu, compiled):
    built = engine.build(program_on("cuda", operators=(), inputs=("images",)), tmp_path / "model.pt2")
    assert (built.device, built.extra_files, built.inputs) == ("cuda", (engine.RUNNER_SOURCE,), ("images",))
    assert gpu == []


@pytest.mark.parametrize(("place", "joined"), [("cuda", True), ("cpu", False)])
def test_fp8_layers_of_any_detector_are_joined_on_a_gpu_and_bring_the_library(
    tmp_path, gpu, compiled, monkeypatch, place, joined
):
    layers = nn.Sequential(*(Float8Linear(nn.Linear(16, 16).half(), Range(-1.0, 1.0)) for _ in range(2)))
    layers.insert(1, nn.ReLU())
    program = torch.export.export(layers, (torch.zeros(1, 16).half(),), strict=True)
    library = tmp_path / "cache" / "libcodetr_ms_deform_attn_sm90_0123.so"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(engine, "load_cuda_operator", lambda: library)
    monkeypatch.setattr(engine, "Joining", lambda: lambda *_: True)
    monkeypatch.setattr(engine, "device_of", lambda program: place)
    built = engine.build(program, tmp_path / "model.pt2")
    operators = [node.target for node in program.graph.nodes]
    assert (torch.ops.codetr.linear_e4m3.default in operators) is joined
    assert built.extra_files == (engine.RUNNER_SOURCE, *([library] if joined else []))


class Package:
    """Stands in for a loaded package of `inputs` tensors; returns them, and knows what PyTorch was set to."""

    def __init__(self, inputs, metadata=None):
        self.inputs, self.seen = inputs, []
        spec = treespec_dumps(tree_structure(((0,) * inputs, {})))
        self.loader = SimpleNamespace(get_call_spec=lambda: [spec, ""], get_metadata=lambda: metadata or {})

    def __call__(self, *tensors):
        assert len(tensors) == self.inputs
        self.seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return tensors


@pytest.fixture
def runner_of(tmp_path, monkeypatch):
    def runner(package):
        monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *args, **kwargs: package)
        return TorchRunner(tmp_path / "model.pt2", (4, 6), "cpu")

    return runner


@pytest.mark.parametrize(("inputs", "given"), [(2, 2), (1, 2), (1, 1)])
def test_a_package_is_fed_what_it_reads(runner_of, inputs, given):
    arrays = np.zeros((1, 4, 6, 3), np.uint8), np.array([[4, 6]], np.int32)
    outputs = runner_of(Package(inputs))(*arrays[:given])
    assert [output.shape for output in outputs] == [array.shape for array in arrays[:inputs]]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        pytest.param({}, ("highest", False), id="of before"),
        pytest.param({TF32: "no"}, ("highest", False), id="float32"),
        pytest.param({TF32: "yes"}, ("high", True), id="half precision"),
    ],
)
@pytest.mark.parametrize("around", [True, False], ids=["set around it", "not set around it"])
def test_the_runner_uses_tf32_for_packages_that_allow_it(runner_of, metadata, expected, around):
    package = Package(2, metadata)
    runner, seen = runner_of(package), package.seen
    with float32_products(around):
        before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        runner(np.zeros((1, 4, 6, 3), np.uint8), np.array([[4, 6]], np.int32))
        assert seen == [expected]
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_set_and_given_back(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    precision = torch.get_float32_matmul_precision()
    for tf32, expected in ((True, "high"), (False, "highest")):
        with float32_products(tf32):
            assert torch.get_float32_matmul_precision() == expected
            assert torch.backends.cudnn.allow_tf32 is tf32
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, before)


def test_a_package_is_loaded_captured_and_run_on_its_own_gpu(tmp_path, monkeypatch):
    """With stand-ins for two GPUs: whatever GPU the thread has, and which it has afterwards."""
    current, seen = [0], []

    class On:
        def __init__(self, device):
            self.index = torch.device(device).index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *error):
            current[0] = self.before

    class Two(Package):
        def __call__(self, *tensors):
            seen.append(("runs", current[0]))
            return tensors

    def load(path, run_single_threaded, device_index):
        seen.append(("is loaded", current[0], device_index))
        return Two(2)

    def capture(self, batch_size):
        seen.append(("is captured", current[0]))
        return SimpleNamespace(inputs=(torch.zeros(1), torch.zeros(1)), replay=lambda: self.model())

    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)

    def stream(device):
        return SimpleNamespace(synchronize=lambda: seen.append(("is waited for", device.index)))

    monkeypatch.setattr(TorchRunner, "_capture", capture)
    # page-locked memory is what tests/model_repository/test_torch_runner.py is about
    monkeypatch.setattr(TorchRunner, "_stage", lambda self, arrays: [torch.from_numpy(array) for array in arrays])
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(Package, "__call__", Two.__call__)
    runner = TorchRunner(tmp_path / "model.pt2", (4, 6), "cuda", None, [1], index=1)
    assert runner.device == torch.device("cuda", 1)
    replay = runner.prepare(np.zeros(1, np.float32), np.zeros(1, np.float32))
    assert seen == [("is loaded", 1, 1), ("is captured", 1), ("is waited for", 1)]
    replay()
    assert (seen[-1], current) == (("runs", 1), [0])


def test_a_package_for_the_cpu_has_no_gpu(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        torch._inductor, "aoti_load_package", lambda *args, **kwargs: given.append(kwargs) or Package(1)
    )
    TorchRunner(tmp_path / "model.pt2", (4, 6), "cpu", index=1)
    assert given[0]["device_index"] == -1


def test_fp8_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="the torch engine's fp8 needs an NVIDIA GPU; on a CPU use the onnx engine"):
        engine.check_quantised("fp8")


@pytest.mark.parametrize(("capability", "passes"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_needs_a_gpu_that_has_it(monkeypatch, a_gpu, capability, passes):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    if passes:
        engine.check_quantised("fp8")
        return
    with pytest.raises(EngineError, match=rf"8.9 or later \(Ada, Hopper\); A100 has 8.{capability[1]}, so use fp16"):
        engine.check_quantised("fp8")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (None, ""),
        (CudaOperatorError("there is no nvcc"), "no nvcc"),
        (RuntimeError("cuBLASLt has no algorithm"), "no alg"),
    ],
)
def test_fp8_layers_are_joined_where_that_works(monkeypatch, capsys, fault, said):
    def load():
        if isinstance(fault, CudaOperatorError):
            raise fault

    def multiply(x, weight, bias, *others):
        if fault is not None:
            raise fault
        tried.append((*x.shape, *weight.shape, *others[-1:]))

    tried, on_the_cpu = [], {name: partial(getattr(torch, name)) for name in ("zeros", "ones")}
    for name, make in on_the_cpu.items():
        monkeypatch.setattr(torch, name, lambda *args, make=make, **kwargs: make(*args, **{**kwargs, "device": "cpu"}))
    monkeypatch.setattr(torch_float8, "load_cuda_operator", load)
    monkeypatch.setattr(torch_float8, "linear_e4m3", multiply)
    works, half = torch_float8.Joining(), torch.zeros(64, dtype=torch.float16)
    weight = torch.zeros((64, 32), dtype=torch.float8_e4m3fn)
    assert [works(weight, half, "relu") for _ in range(2)] == [fault is None] * 2
    assert tried == ([(torch_float8.ROWS_TRIED, 32, 64, 32, "relu")] if fault is None else []), "once"
    assert said in capsys.readouterr().out


WIDE = Ranges(Range(-1.0, 1.0), Range(-1.0, 1.0))


def test_fp8_takes_the_place_of_wide_linear_layers():
    layers = {"wide": nn.Linear(256, 512).half(), "narrow": nn.Linear(512, 128).half()}
    made = engine.quantised_layers(layers, dict.fromkeys(layers, WIDE), "fp8")
    assert list(made) == ["wide"]
    assert made["wide"].weight.dtype == torch.float8_e4m3fn


def test_fp8_takes_the_place_of_an_mlp_that_is_narrower():
    widths = {
        "a.qkv": (192, 576),
        "a.fc1": (192, 768),
        "a.fc2": (768, 192),
        "b.0": (96, 384),
        "b.2": (384, 96),
        "fc2": (768, 192),
    }
    layers = {name: nn.Linear(*each).half() for name, each in widths.items()}
    assert list(engine.quantised_layers(layers, dict.fromkeys(layers, WIDE), "fp8")) == ["a.fc1", "a.fc2"]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"conv": nn.Conv2d(256, 256, 1)}, "for linear layers, and conv is a convolution; leave it out"),
        ({"a": nn.Linear(64, 512)}, "none of the 1 linear layers is as wide as fp8 pays for .256 channels in and out."),
    ],
)
def test_what_fp8_is_not_for_is_refused(layers, words):
    with pytest.raises(EngineError, match=words):
        engine.quantised_layers(layers, dict.fromkeys(layers, WIDE), "fp8")
