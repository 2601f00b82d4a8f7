"""What the child decides, against stand-ins with the names that each release of TensorRT's bindings has."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from builder.engines.tensorrt import plan_child

SETTINGS = {
    "optimization_level": None,
    "timing_cache": None,
    "version_compatible": False,
    "hardware_compatible": False,
    "fp32_accumulation": False,
    "tf32": False,
    "workspace_gib": None,
    "average_timings": 1,
    "immutable_weights": True,
}


def release(version, flags, network_flags, **more):
    return SimpleNamespace(
        __version__=version,
        float32="FLOAT",
        IBuilderConfig=SimpleNamespace(**more.pop("config", {})),
        BuilderFlag=SimpleNamespace(**{name: name for name in ("TF32", "REFIT", *flags)}),
        NetworkDefinitionCreationFlag=SimpleNamespace(**network_flags),
        DataType=SimpleNamespace(HALF="HALF", BF16="BF16", FLOAT="FLOAT", **more.pop("types", {})),
        LayerType=SimpleNamespace(PLUGIN_V2="PLUGIN_V2", QUANTIZE="QUANTIZE", CONSTANT="CONSTANT"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        **more,
    )


COMPATIBLE = ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME")
FROM_8_6 = {
    "config": {"builder_optimization_level": 3},
    "HardwareCompatibilityLevel": SimpleNamespace(AMPERE_PLUS="ampere+"),
}
RELEASES = {
    "8.5.3": release(
        "8.5.3",
        ("FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"),
        {"EXPLICIT_BATCH": 0},
        TacticSource=SimpleNamespace(CUDNN=2),
    ),
    "8.6.1": release(
        "8.6.1", ("FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS", *COMPATIBLE), {"EXPLICIT_BATCH": 0}, **FROM_8_6
    ),
    "10.16": release("10.16", ("FP16", "BF16", *COMPATIBLE), {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, **FROM_8_6),
    "11.1": release("11.1", COMPATIBLE, {"STRONGLY_TYPED": 0}, types={"FP8": "FP8"}, **FROM_8_6),
}


def request(precision="float32", node_types=None, **settings):
    return {"precision": precision, "node_types": node_types or {}, "settings": SETTINGS | settings}


@pytest.mark.parametrize("version", RELEASES)
def test_what_every_release_has_is_not_refused(version):
    plan_child.check_settings(
        RELEASES[version],
        request(
            "float16", timing_cache="/cache", tf32=True, workspace_gib=1.0, average_timings=2, immutable_weights=False
        ),
    )


@pytest.mark.parametrize(
    ("version", "asked", "words"),
    [
        ("8.5.3", request(optimization_level=0), "TensorRT 8.5.3 has no optimization_level; 8.6 and later do"),
        ("8.5.3", request(version_compatible=True), "TensorRT 8.5.3 has no version_compatible; 8.6 and later do"),
        ("8.5.3", request(hardware_compatible=True), "TensorRT 8.5.3 has no hardware_compatible; 8.6 and later do"),
        ("8.6.1", request("bfloat16"), "TensorRT 8.6.1 has no bfloat16; 9 and later do"),
        ("8.6.1", request("fp8"), "TensorRT 8.6.1 has no fp8; 10.6 and later do"),
        ("11.1", request(fp32_accumulation=True), "fp32_accumulation is not a setting of TensorRT's ONNX parser"),
    ],
)  # fmt: skip  # a table
def test_what_a_release_lacks_is_refused_by_name(version, asked, words):
    with pytest.raises(plan_child.RefusedError) as refused:
        plan_child.check_settings(RELEASES[version], asked)
    assert words in str(refused.value)


@pytest.mark.parametrize("version", ["8.6.1", "10.16", "11.1"])
def test_what_came_with_8_6_is_in_later_releases(version):
    plan_child.check_settings(
        RELEASES[version], request(optimization_level=5, version_compatible=True, hardware_compatible=True)
    )


@pytest.mark.parametrize(("version", "flags"), [("8.5.3", 0b1), ("8.6.1", 0b1), ("10.16", 0b11), ("11.1", 0b1)])
def test_networks_have_explicit_batch_and_strong_types_where_there_are_such(version, flags):
    assert plan_child.network_flags(RELEASES[version]) == flags


class Layer:
    """Puts out NAME:0, NAME:1, ... in the types that the network tells."""

    def __init__(self, name, *types, kind="ELEMENTWISE", reads=()):
        self.name, self.num_outputs, self.precision, self.set = name, len(types), None, {}
        self.num_inputs, self.reads = len(reads), reads
        self.type = kind
        self.types = types

    def get_input(self, i):
        return None if self.reads[i] is None else SimpleNamespace(name=self.reads[i])

    def get_output(self, i):
        return SimpleNamespace(dtype=f"DataType.{self.types[i]}", name=f"{self.name}:{i}")

    def set_output_type(self, i, type_):
        self.set[i] = type_


class Network:
    def __init__(self, *layers, inputs=()):
        self.layers, self.inputs = layers, inputs
        self.num_layers, self.num_inputs = len(layers), len(inputs)
        self.get_layer, self.get_input = self.layers.__getitem__, self.inputs.__getitem__


class Config:
    def __init__(self):
        self.flags, self.profiles, self.limits, self.caches = {"TF32"}, [], {}, []
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard
        self.add_optimization_profile = self.profiles.append
        self.set_memory_pool_limit = self.limits.__setitem__
        self.create_timing_cache = bytes
        self.sources = 0b1111
        self.get_tactic_sources = lambda: self.sources

    def set_tactic_sources(self, sources):
        self.sources = sources

    def set_timing_cache(self, cache, ignore_mismatch):
        self.caches.append((cache, ignore_mismatch))
        return cache != b"of another GPU"


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, *shapes):
        self.shapes[name] = shapes


BUILDER = SimpleNamespace(create_builder_config=Config, create_optimization_profile=Profile)
OPEN = Network(
    inputs=(SimpleNamespace(name="images", shape=(-1, 4, 6, 3)), SimpleNamespace(name="image_sizes", shape=(-1, 2)))
)


def configured(version, network=OPEN, **settings):
    asked = {**request(**settings), "batch": [1, 4, 4]}
    return plan_child.make_config(RELEASES[version], BUILDER, network, asked)


def test_float32_products_are_exact_unless_told():
    assert "TF32" not in configured("8.5.3").flags
    assert "TF32" in configured("8.5.3", tf32=True).flags


def test_no_plan_needs_cudnn():
    assert configured("8.5.3").sources == 0b1011
    assert configured("11.1").sources == 0b1111  # knows no cuDNN


def test_an_open_batch_gets_one_profile():
    (profile,) = configured("8.5.3").profiles
    assert profile.shapes == {
        "images": ((1, 4, 6, 3), (4, 4, 6, 3), (4, 4, 6, 3)),
        "image_sizes": ((1, 2), (4, 2), (4, 2)),
    }


def test_a_fixed_batch_needs_none():
    assert configured("8.5.3", Network(inputs=(SimpleNamespace(name="images", shape=(2, 4, 6, 3)),))).profiles == []


def test_an_open_side_is_refused():
    network = Network(inputs=(SimpleNamespace(name="images", shape=(-1, -1, 6, 3)),))
    with pytest.raises(plan_child.RefusedError, match=r"images has shape \(-1, -1, 6, 3\); only its batch may be open"):
        configured("8.5.3", network)


def test_settings_reach_the_builder(tmp_path):
    config = configured(
        "8.6.1", optimization_level=2, version_compatible=True, hardware_compatible=True, workspace_gib=0.5,
        average_timings=3, immutable_weights=False, timing_cache=str(tmp_path / "cache"),
    )  # fmt: skip  # one call
    assert config.flags == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "REFIT"}
    assert (config.builder_optimization_level, config.avg_timing_iterations) == (2, 3)
    assert config.hardware_compatibility_level == "ampere+"
    assert config.limits == {"workspace": 2**29}
    assert config.caches == [(b"", False)]
    assert config.profiling_verbosity == "detailed"


def test_a_timing_cache_is_read(tmp_path):
    (tmp_path / "cache").write_bytes(b"timings")
    assert configured("8.5.3", timing_cache=str(tmp_path / "cache")).caches == [(b"timings", False)]


@pytest.mark.parametrize("every", [0.01, None])
def test_timings_are_kept_of_a_build_that_ends_early(tmp_path, every):
    path, timings = tmp_path / "cache", bytearray(b"one")
    cache = SimpleNamespace(serialize=lambda: bytes(timings))
    config = SimpleNamespace(get_timing_cache=lambda: cache)
    deadline = time.monotonic() + 60

    def build():
        with plan_child.kept_timings(config, str(path), every):
            while every and not path.is_file():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert (path.read_bytes() if path.is_file() else None) == (b"one" if every else None)
            timings.extend(b" two")
            raise plan_child.RefusedError

    with pytest.raises(plan_child.RefusedError):
        build()
    assert path.read_bytes() == b"one two"
    assert os.listdir(tmp_path) == ["cache"]
    with plan_child.kept_timings(None, None, every):
        assert os.listdir(tmp_path) == ["cache"]


def test_a_timing_cache_of_another_gpu_is_refused(tmp_path):
    (tmp_path / "cache").write_bytes(b"of another GPU")
    with pytest.raises(plan_child.RefusedError, match="belongs to another TensorRT or GPU"):
        configured("8.5.3", timing_cache=str(tmp_path / "cache"))


def constrained(network, precision, **node_types):
    config = Config()
    plan_child.constrain_types(RELEASES["8.5.3"], network, config, request(precision, node_types))
    return config.flags


def held(network):
    return [(layer.precision, layer.set) for layer in network.layers]


def test_weak_types_follow_the_files_nodes_whatever_the_network_says():
    network = Network(
        Layer("conv", "FLOAT"), Layer("softmax", "FLOAT"), Layer("shape", "INT32"), Layer("topk", "FLOAT", "INT32"),
        Layer("less", "BOOL"),
    )  # fmt: skip
    types = {"conv": "float16", "softmax": "float32", "topk": "float16", "less": "float32"}
    assert constrained(network, "float16", **types) >= {"FP16", "PREFER_PRECISION_CONSTRAINTS"}
    assert held(network) == [
        ("HALF", {0: "HALF"}),
        ("FLOAT", {0: "FLOAT"}),
        (None, {}),
        ("HALF", {0: "HALF"}),
        ("FLOAT", {}),
    ]


def test_a_layer_that_the_parser_adds_has_the_type_of_what_it_reads():
    network = Network(
        Layer("weight", "FLOAT", kind="CONSTANT"),
        Layer("(Unnamed Layer* 1) [Shuffle]", "FLOAT", reads=("weight:0",)),
        Layer("conv", "FLOAT", reads=("images", None)),
        Layer("(Unnamed Layer* 2) [Shuffle]", "FLOAT", reads=("conv:0",)),
        Layer("(Unnamed Layer* 3) [Shuffle]", "FLOAT", reads=("images",)),
    )
    constrained(network, "float16", conv="float16")
    assert held(network) == [(None, {}), ("FLOAT", {0: "FLOAT"}), *[("HALF", {0: "HALF"})] * 2, (None, {})]


def test_a_plugin_that_also_reads_float32_is_held_to_its_outputs_type_alone():
    """TensorRT 8.5 finds no format for a layer of a half precision whose coordinates are float32."""
    network = Network(
        Layer("values", "FLOAT"),
        Layer("points", "FLOAT"),
        Layer("deformable", "FLOAT", kind="PLUGIN_V2", reads=("values:0", "points:0")),
        Layer("windows", "FLOAT", kind="PLUGIN_V2", reads=("values:0", "values:0")),
    )
    types = {"values": "float16", "points": "float32", "deformable": "float16", "windows": "float16"}
    constrained(network, "float16", **types)
    assert held(network)[2:] == [(None, {0: "HALF"}), ("HALF", {0: "HALF"})]


class Choice:
    """A way to compute something: the types of its inputs and outputs."""

    def __init__(self, *types):
        self.types = types

    def get_algorithm_io_info(self, index):
        return SimpleNamespace(dtype=f"DataType.{self.types[index]}")


def selector_of(precision, release="8.5.3"):
    trt = SimpleNamespace(**vars(RELEASES[release]), IAlgorithmSelector=type("IAlgorithmSelector", (), {}))
    config = SimpleNamespace(algorithm_selector=None)
    selector = plan_child.keep_regions_wide(trt, config, precision)
    assert config.algorithm_selector is selector
    return selector


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_regions_are_taken_in_float32_where_there_is_a_choice(precision):
    selector = selector_of(precision)
    region = SimpleNamespace(name="{ForeignNode[node_a...node_b]}", num_inputs=2, num_outputs=1)
    wide, half, mixed = (
        Choice("FLOAT", "INT32", "FLOAT"),
        Choice("HALF", "INT32", "HALF"),
        Choice("FLOAT", "INT32", "HALF"),
    )
    assert selector.select_algorithms(region, [wide, half, mixed, wide]) == [0, 3]
    assert selector.select_algorithms(region, [half, mixed]) == [0, 1], "there is no other"
    layer = SimpleNamespace(name="node_conv2d", num_inputs=2, num_outputs=1)
    assert selector.select_algorithms(layer, [wide, half]) == [0, 1], "a layer has its own type"
    selector.report_algorithms([region], [wide])


def test_nothing_is_selected_where_there_is_nothing_to_choose():
    assert selector_of("float32") is None
    config = SimpleNamespace()
    assert plan_child.keep_regions_wide(RELEASES["8.5.3"], config, "float16") is None, "a release without it"
    assert not vars(config)


def test_a_parser_that_renames_all_nodes_is_refused():
    with pytest.raises(plan_child.RefusedError, match=r"TensorRT 8\.5\.3 names no layer as its ONNX node"):
        constrained(Network(Layer("other", "FLOAT")), "float16", norm="float32")


def test_of_a_quantised_file_only_the_named_nodes_are_held():
    network = Network(Layer("conv", "FLOAT"), Layer("norm", "FLOAT"), Layer("shuffle", "FLOAT", reads=("norm:0",)))
    flags = constrained(network, "int8", norm="float32", folded="float32")
    assert flags >= {"INT8", "FP16", "PREFER_PRECISION_CONSTRAINTS"}
    assert [layer.precision for layer in network.layers] == [None, "FLOAT", None]


@pytest.mark.parametrize(("version", "precision"), [("8.5.3", "int8"), ("11.1", "int8"), ("11.1", "fp8")])
def test_quantised_precisions_need_no_flag_of_a_strongly_typed_release(version, precision):
    plan_child.check_settings(RELEASES[version], request(precision))


def quantising(type_):
    return Layer("quantise", type_, kind="QUANTIZE")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantised_file_may_have_any_other_types(precision):
    type_ = {"int8": "INT8", "fp8": "FP8"}[precision]
    network = Network(quantising(type_), Layer("norm", "FLOAT"), Layer("conv", "HALF"))
    plan_child.check_types(RELEASES["11.1"], network, precision)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([Layer("conv", "HALF")], "the ONNX file has no QuantizeLinear node; it was to be int8"),
        ([quantising("FP8")], "the ONNX file quantises to FP8; it was to be int8"),
    ],
)
def test_a_file_that_is_not_quantised_so_is_refused(layers, words):
    with pytest.raises(plan_child.RefusedError, match=words):
        plan_child.check_types(RELEASES["11.1"], Network(*layers), "int8")


def test_weak_types_do_not_tell_what_a_file_quantises_to():
    plan_child.check_types(RELEASES["8.5.3"], Network(quantising("FLOAT")), "int8")


def test_float32_needs_no_constraint():
    network = Network(Layer("conv", "FLOAT"))
    assert constrained(network, "float32") == {"TF32"}
    assert network.layers[0].precision is None


@pytest.mark.parametrize(
    ("version", "types", "precision", "words"),
    [
        ("11.1", ("FLOAT",), "float16", "the ONNX file has no float16 tensor"),
        ("8.5.3", ("FLOAT", "HALF"), "float32", "the ONNX file has float16 tensors; it was to be float32"),
        ("11.1", ("FLOAT", "HALF"), "bfloat16", "the ONNX file has float16 tensors; it was to be bfloat16"),
    ],
)
def test_a_file_of_other_types_is_refused(version, types, precision, words):
    with pytest.raises(plan_child.RefusedError, match=words):
        plan_child.check_types(RELEASES[version], Network(*(Layer("layer", each) for each in types)), precision)


def test_weak_types_make_float16_of_a_float32_file():
    plan_child.check_types(RELEASES["8.5.3"], Network(Layer("conv", "FLOAT")), "float16")


def test_the_error_that_names_a_node_is_told():
    errors = ["Error Code 1: Cuda", "Could not find any\n  implementation for node {Foreign}", "node x"]
    assert plan_child.explain(errors) == "Could not find any implementation for node {Foreign}"
    assert plan_child.explain(["Error\nCode 1"]) == "Error Code 1"
    assert plan_child.explain([]) == "its log has no error"
    assert len(plan_child.explain(["node " + "x" * 1000])) < 500


@pytest.mark.parametrize(
    ("batch", "has_memory", "shapes"),
    [(-1, True, {"images": (4, 8, 8, 3)}), (-1, False, {}), (1, True, {})],
)
def test_the_inspector_is_told_what_batch_is_asked_of(batch, has_memory, shapes):
    told, set_shapes, inferred = [], {}, []
    context = SimpleNamespace(set_input_shape=set_shapes.__setitem__, infer_shapes=lambda: inferred.append(True))

    class Inspector:
        execution_context = None

        def get_engine_information(self, form):
            told.append((self.execution_context, dict(set_shapes), bool(inferred)))
            return '{"Layers": []}'

    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=["images", "boxes"].__getitem__,
        get_tensor_mode=lambda name: "in" if name == "images" else "out",
        get_tensor_shape=lambda name: (batch, 8, 8, 3) if name == "images" else (batch, 5, 4),
        create_execution_context=lambda: context if has_memory else None,
        create_engine_inspector=Inspector,
    )
    trt = SimpleNamespace(
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    assert plan_child.inspect(trt, None, b"plan", 4) == {"Layers": []}
    assert told == [(context, shapes, True) if shapes else (None, {}, False)]


class Clock:
    """A driver on which every inference takes a millisecond more than the one before."""

    def __init__(self):
        self.log, self.now, self.inferences, self.memory, self.times = [], 0.0, 0, 1000, {}

    def create_event(self):
        self.times[len(self.times)] = None
        return len(self.times) - 1

    def record(self, event, stream):
        assert stream == 7
        self.times[event] = self.now

    def elapsed_ms(self, begin, end):
        return self.times[end] - self.times[begin]

    def used_memory(self):
        return self.memory

    def infer(self):
        self.inferences += 1
        self.now += self.inferences


@pytest.fixture
def measured(monkeypatch, tmp_path):
    clock = Clock()
    made = []

    class Runner:
        stream = 7

        def __init__(self, plan, graphs, plugin, driver):
            made.append((plan.name, graphs, plugin))
            self.driver = driver
            driver.memory += 24

        def prepare(self, images, image_sizes):
            assert (images.shape, image_sizes.shape) == ((2, 4), (2, 2))
            return clock.infer

        def synchronize(self):
            clock.log.append("synchronize")

    module = SimpleNamespace(CudaDriver=lambda: clock, PlanRunner=Runner, PlanError=RuntimeError)
    monkeypatch.setattr(plan_child, "import_tensorrt", lambda: SimpleNamespace(__version__="8.5.3"))
    monkeypatch.setattr(plan_child, "import_runner", lambda request: module)
    np.savez(tmp_path / "inputs.npz", images_0=np.zeros((2, 4)), image_sizes_0=np.zeros((2, 2)))
    request = {"plan": "a.plan", "plugin": None, "graphs": [2], "inputs": str(tmp_path / "inputs.npz"), "batches": 1}
    answer = plan_child.measure({**request, "seconds": 0, "least": 4})
    assert made == [("a.plan", [2], None)]
    return clock, answer


def test_a_plan_is_timed_by_the_gpus_clock(measured):
    clock, answer = measured
    assert answer["times_ms"] == [1, 2, 3, 4]
    assert answer["memory"] == 24
    assert clock.inferences == 8, "as many again, queued at once"
    assert len(clock.log) == 5, "waits for each single call, and for all those queued"
    assert answer["calls_per_s"] > 0
