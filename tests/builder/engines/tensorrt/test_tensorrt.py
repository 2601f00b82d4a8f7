"""What the TensorRT engine checks around the compiler, with stand-ins for it."""

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from builder.engines import EngineError
from builder.engines import tensorrt as engine
from builder.pipeline.build import BuildOptions, build_repository, write_plugin_onnx
from builder.pipeline.export import InputSpec, export_detector
from builder.variants import get_variant
from serving.contract import PLUGIN_LIBRARY
from tests.builder.engines.tensorrt import windowed
from tests.toy_family import SMALL, BlindDetector


def convert_of_2_13(
    program, *, arg_inputs=None, attn_bias_is_causal=True, require_full_compilation=False, min_block_size=5,
    assume_dynamic_shape_support=False, immutable_weights=True, version_compatible=False, hardware_compatible=False,
    use_fp32_acc=False, disable_tf32=False, num_avg_timing_iters=1, optimization_level=None, timing_cache_path="",
    workspace_size=0, **kwargs,
):  # fmt: skip  # a signature
    return b""


def convert_of_2_14(program, *, output_binding_names=None, **kwargs):
    return b""


class Network(nn.Module):
    def forward(self, images, image_sizes):
        return images.float().mean((1, 2, 3)) + image_sizes.sum(1)


def export(batch, dynamic):
    dims = ({0: Dim("batch", min=1, max=batch)},) * 2 if dynamic else None
    inputs = torch.zeros(batch, 8, 6, 3, dtype=torch.uint8), torch.ones(batch, 2, dtype=torch.int32)
    return torch.export.export(Network(), inputs, dynamic_shapes=dims)


def test_every_keyword_is_one_of_the_functions():
    settings = engine.TensorRTSettings(optimization_level=4, workspace_gib=2.0, fp32_accumulation=True)
    keywords = engine.checked_keywords(convert_of_2_13, settings)
    assert keywords["attn_bias_is_causal"] is False
    assert keywords["require_full_compilation"] is True
    assert keywords["optimization_level"] == 4
    assert keywords["workspace_size"] == 2 * 2**30
    assert keywords["use_fp32_acc"] is True
    assert "use_explicit_typing" not in keywords  # gone, since there is no other typing


def test_keyword_that_would_be_swallowed_is_named():
    with pytest.raises(EngineError, match=r"does not know .*require_full_compilation"):
        engine.checked_keywords(convert_of_2_14, engine.TensorRTSettings())


@pytest.mark.parametrize(
    ("function", "names"),
    [(convert_of_2_13, ("output0", "output1", "output2")), (convert_of_2_14, ("boxes", "scores", "labels"))],
)
def test_output_names_follow_the_installed_version(monkeypatch, function, names):
    module: Any = ModuleType("torch_tensorrt")
    module.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=function)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    assert engine.output_names() == names


def test_static_program_has_one_shape():
    images, sizes = engine.profiles(export(2, dynamic=False))
    assert images == {"shape": (2, 8, 6, 3), "dtype": torch.uint8, "name": "images"}
    assert sizes == {"shape": (2, 2), "dtype": torch.int32, "name": "image_sizes"}


def test_what_is_not_read_has_no_profile():
    (images,) = engine.profiles(export_detector(BlindDetector(SMALL), InputSpec(64, 96, 4)))
    assert (images["name"], images["max_shape"]) == ("images", (4, 64, 96, 3))


def test_dynamic_program_has_a_profile():
    images, sizes = engine.profiles(export(4, dynamic=True))
    assert (images["min_shape"], images["opt_shape"], images["max_shape"]) == ((1, 8, 6, 3), (4, 8, 6, 3), (4, 8, 6, 3))
    assert (sizes["min_shape"], sizes["max_shape"]) == ((1, 2), (4, 2))


def test_unconverted_operators_are_listed():
    inner = RuntimeError("Conversion of function torch._ops.aten.aten::all.dim not currently supported!")
    outer = RuntimeError("Conversion of module ...")
    outer.__cause__ = inner
    assert engine.explain(outer) == "no converter for torch._ops.aten.aten::all.dim"
    assert engine.explain(ValueError("first line\nsecond")) == "first line"


@pytest.mark.parametrize("name", ["tensorrt", "torch_tensorrt"])
def test_missing_library_is_one_line(monkeypatch, name):
    for each in ("tensorrt", "torch_tensorrt"):
        monkeypatch.setitem(sys.modules, each, None if each == name else ModuleType(each))
    with pytest.raises(EngineError, match=rf"needs {name}, which cannot be imported") as caught:
        engine.check(uses_operator=False, settings=engine.TensorRTSettings(frontend="torch-tensorrt"))
    assert "\n" not in str(caught.value)


def test_torch_tensorrt_wants_pytorch_on_the_gpu(monkeypatch):
    for each in ("tensorrt", "torch_tensorrt"):
        monkeypatch.setitem(sys.modules, each, ModuleType(each))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs a CUDA build of PyTorch; use the onnx frontend"):
        engine.check(uses_operator=False)


@pytest.mark.parametrize(
    ("pytorch", "driver"), [(True, []), (False, ["9.0"]), (False, [])], ids=["PyTorch", "a driver alone", "none"]
)
def test_a_gpu_is_what_pytorch_or_the_driver_finds(monkeypatch, pytorch, driver):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytorch)
    monkeypatch.setattr(engine, "compute_capabilities", lambda: driver)
    if pytorch or driver:
        assert engine.device() == "cuda"
        return
    with pytest.raises(EngineError, match="needs an NVIDIA GPU and its driver"):
        engine.device()


@pytest.mark.parametrize(("frontend", "device"), [("onnx", "cpu"), ("torch-tensorrt", "cuda")])
def test_the_program_is_exported_where_its_frontend_wants_it(frontend, device):
    assert engine.export_device(engine.TensorRTSettings(frontend=frontend)) == device


@pytest.mark.parametrize(
    ("name", "message"), [("absent.so", "no TensorRT plugin at"), ("other.so", "called libcodetr")]
)
def test_plugin_library_is_looked_for(monkeypatch, tmp_path, name, message):
    (tmp_path / "other.so").touch()
    monkeypatch.setenv(engine.PLUGIN_VARIABLE, str(tmp_path / name))
    with pytest.raises(EngineError, match=message):
        engine.plugin_library()


@pytest.mark.parametrize("kwargs", [{"optimization_level": 6}, {"workspace_gib": 0.0}, {"average_timings": 0}])
def test_impossible_settings_are_refused(kwargs):
    with pytest.raises(EngineError, match="expected"):
        engine.TensorRTSettings(**kwargs)


def test_settings_are_not_dropped_by_other_engines():
    with pytest.raises(EngineError, match="use the tensorrt engine"):
        BuildOptions(
            get_variant("co_dino_r50_12e"), InputSpec(64, 64), tensorrt=engine.TensorRTSettings(optimization_level=5)
        )


def test_the_form_of_window_attention_is_of_plugin_nodes_too(tmp_path):
    settings = engine.TensorRTSettings(window_attention="written-out")
    options = BuildOptions(get_variant("co_dino_r50_12e"), InputSpec(64, 64), tensorrt=settings)
    with pytest.raises(EngineError, match="TensorRT's settings are not for the onnx engine"):
        build_repository(options, tmp_path / "repository")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(EngineError, match="exists"):  # what is asked later
        write_plugin_onnx(options, tmp_path)


class TorchTensorRT:
    """A stand-in of torch_tensorrt that keeps the operators of what it is to convert."""

    def __init__(self):
        self.found = []
        self.Input = dict
        self.dynamo = SimpleNamespace(
            convert_exported_program_to_serialized_trt_engine=self.convert, Debugger=lambda **_: nullcontext()
        )

    def convert(self, program, *, arg_inputs, output_binding_names=None, require_full_compilation=True,
        min_block_size=1, assume_dynamic_shape_support=True, immutable_weights=True, version_compatible=False,
        hardware_compatible=False, use_fp32_acc=False, disable_tf32=True, num_avg_timing_iters=1,
    ):  # fmt: skip  # a signature
        self.found.append([str(node.target) for node in program.graph.nodes].count("codetr.window_attention.default"))
        return b"plan"


@pytest.mark.parametrize(("window_attention", "nodes"), [("plugin", 2), ("written-out", 0)])
def test_window_attention_goes_to_the_converter_or_is_written_out(monkeypatch, tmp_path, window_attention, nodes):
    program, library = windowed.exported(), tmp_path / "built" / PLUGIN_LIBRARY
    library.parent.mkdir()
    library.touch()
    monkeypatch.setenv(engine.PLUGIN_VARIABLE, str(library))
    stand_in, loaded = TorchTensorRT(), []
    modules = {"torch_tensorrt": stand_in, "tensorrt": SimpleNamespace(__version__="10.16")}
    monkeypatch.setattr(engine, "_import", lambda name: modules[name])
    monkeypatch.setattr(engine, "_load_plugin", loaded.append)
    monkeypatch.setattr(engine, "_engine_information", lambda plan: {})
    monkeypatch.setattr(engine, "check_precision", lambda information, program: None)
    settings = engine.TensorRTSettings(frontend="torch-tensorrt", window_attention=window_attention)
    built = engine.build(program, tmp_path / "model.plan", settings)
    assert stand_in.found == [nodes]
    assert loaded == list(built.extra_files) == ([library] if nodes else [])
