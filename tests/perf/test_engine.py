from __future__ import annotations

import dataclasses
import gzip
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from builder import random_detector  # noqa: E402  # after the check for torch
from builder.demo import DEMO_WEIGHTS  # noqa: E402
from builder.engines import onnx as onnx_engine  # noqa: E402
from builder.export import InputSpec  # noqa: E402
from builder.variants import SwinConfig, Variant, get_variant  # noqa: E402
from perf import engine, latency, trtexec  # noqa: E402
from perf.engine import Bench, EngineCase, Options  # noqa: E402
from perf.engine_profile import CALLS, OTHER, PART, profile, summarise_events  # noqa: E402
from perf.engine_report import to_markdown  # noqa: E402
from perf.engine_targets import Target, check, existing_targets, new_targets  # noqa: E402
from perf.flops import SAMPLE_FLOPS, TOTAL, count_flops, ms_deform_attn_flops  # noqa: E402
from perf.latency import MIN_CALLS, WARM_UP_CALLS, Latency, measure_latency, warm_up  # noqa: E402
from serving.errors import CodetrError  # noqa: E402
from tests.tiny_engine import write_tiny_engine  # noqa: E402

SMALL = Variant(
    "small", SwinConfig(16, (1, 1, 1, 1), (1, 1, 2, 2), window_size=4, mlp_ratio=1), num_classes=4, num_queries=20,
    max_detections=40, embed_dim=32, num_heads=2, num_self_heads=2, num_levels=4, num_points=2, feedforward_dim=32,
    encoder_layers=1, decoder_layers=1,
)  # fmt: skip
SPEC = InputSpec(64, 96)
FAST = Latency(p50_ms=2.0, p90_ms=3.0, p99_ms=4.0, spread=0.01, calls=50, stable=True, calls_per_s=400.0)
CASE = EngineCase(
    variant="co_dino_swin_l_o365", implementation="PyTorch", precision="float32", device="cuda", width=1152, height=768,
    batch=1, p50_ms=100.0, p90_ms=101.0, p99_ms=102.0, spread=0.002, calls=100, stable=True, images_per_s=10.0,
    memory_gib=3.5, sm_mhz=1980, gflop=2500.0, gemm_tflops=50.0, gemm_share=0.5, agreement=None, published_ms=123.0,
)  # fmt: skip
HALF = dataclasses.replace(CASE, precision="float16", p50_ms=40.0, published_ms=50.8)
ENGINE = dataclasses.replace(
    CASE, implementation="torch", precision="float16", p50_ms=20.0, stable=False, published_ms=30.2, build_seconds=99.0,
    agreement={"matched": 0.99, "max_score_difference": 0.002, "mean_box_iou": 0.995},
)  # fmt: skip


def stage(name: str) -> Any:
    return nullcontext()


def target(**changes: Any) -> Target:
    return dataclasses.replace(Target(SMALL, SPEC, "onnx", "float32", Path("repository")), **changes)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls are made once and not timed; returns what they returned."""
    results: list[Any] = []

    def once(call: Any, device: str, seconds: float) -> Latency:
        results.append(call())
        return FAST

    monkeypatch.setattr(engine, "measure_latency", once)
    monkeypatch.setattr(engine, "gemm_rate", lambda dtype, device: 1e12)
    return results


def test_pytorch_and_a_new_engine_are_measured_at_the_same_size(untimed: list[Any], tmp_path: Path) -> None:
    targets = new_targets(SMALL, [(96, 64)], "onnx", None, 1, tmp_path / "builds")
    heard: list[EngineCase] = []
    output = tmp_path / "out"
    record = engine.run(targets, Options(profile=True), output, heard.append, stage, device="cpu")
    assert [(case.implementation, case.precision) for case in heard] == [("PyTorch", "float32"), ("onnx", "float32")]
    for expected, actual in zip(*untimed, strict=True):  # the timed calls are inferences of the same inputs
        np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4)
    assert heard[1].gflop == pytest.approx(count_flops(SMALL, SPEC)[TOTAL] / 1e9)
    assert heard[1].gemm_share == pytest.approx(heard[1].gflop * 1e9 / 2e-3 / 1e12)
    assert heard[1].build_seconds is not None
    assert heard[0].agreement is heard[1].agreement is None  # random weights
    assert json.loads((output / "engine.json").read_text()) == json.loads(json.dumps(record))
    markdown = (output / "engine.md").read_text()
    assert "| 96x64 | onnx float32 | 2.00 ± 1.0% | 3.00 | 4.00 | 400.0 | 1.00x |" in markdown
    assert "Random weights" in markdown
    assert "RTX 4090 ms" in markdown
    assert "published reference" not in markdown  # there is none of this network
    parts = [part["name"] for part in record["profiles"][0]["parts"]]
    assert parts == ["backbone", "neck", "encoder", "proposals", "decoder", "class_head", OTHER]
    assert (output / "trace-PyTorch-float32-96x64.json.gz").is_file()
    assert targets[0].file.is_file()

    again = existing_targets(targets[0].repository)
    assert [dataclasses.replace(each.variant, class_names=None) for each in again] == [SMALL]
    assert [(each.spec, each.file, each.built_from) for each in again] == [(targets[0].spec, targets[0].file, None)]
    record = engine.run(again, Options(), tmp_path / "again", heard.append, stage)
    assert [case["build_seconds"] for case in record["cases"]] == [None, None]


class Shifted:
    """An engine that sees the detector's boxes elsewhere by a share of the image."""

    def __init__(self, detector: Any, shift: float) -> None:
        self.eager, self.shift = engine.EagerDetector(detector), shift

    def __call__(self, images: Any, image_sizes: Any) -> Any:
        found = self.eager(images, image_sizes)
        return found._replace(boxes=found.boxes + np.float32(self.shift))

    def prepare(self, images: Any, image_sizes: Any) -> Any:
        return self.eager.prepare(images, image_sizes)


@pytest.mark.parametrize(("shift", "matched"), [(0.0, 1.0), (0.5, 0.0)], ids=["the same", "all boxes elsewhere"])
def test_boxes_are_compared_where_weights_are_given(
    untimed: list[Any], tmp_path: Path, shift: float, matched: float
) -> None:
    bench = Bench(Options(weights=DEMO_WEIGHTS), "cpu", tmp_path, stage, [])
    demo = target(variant=get_variant("co_dino_demo"))
    detector = bench._load_detector(demo)
    subject = engine.Subject.of(demo)
    reference = bench._measure(subject, "PyTorch", "float32", lambda: engine.EagerDetector(detector))
    case = bench._measure(subject, "onnx", "float32", lambda: Shifted(detector, shift))
    assert reference.agreement is None
    assert case.agreement is not None
    assert case.agreement["matched"] == matched


def canned(monkeypatch: pytest.MonkeyPatch, *items: Any) -> list[Target]:
    """Let each target yield `items`, of which exceptions are raised, at its own size; returns the targets asked for."""
    asked: list[Target] = []

    def measure(self: Bench, target: Target) -> Any:
        asked.append(target)
        for item in items:
            if isinstance(item, BaseException):
                raise item
            yield dataclasses.replace(item, width=target.spec.width, height=target.spec.height, variant="small")

    monkeypatch.setattr(Bench, "measure", measure)
    return asked


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    canned(monkeypatch, CASE, KeyboardInterrupt())
    record = engine.run([target(), target(spec=InputSpec(128, 128))], Options(), tmp_path, lambda case: None, stage)
    assert json.loads((tmp_path / "engine.json").read_text()) == record
    assert (len(record["cases"]), record["complete"]) == (1, False)
    assert "cut short" in (tmp_path / "engine.md").read_text()


def test_a_failed_build_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    canned(monkeypatch, CASE, CodetrError("no compiler"))
    with pytest.raises(CodetrError, match="no compiler"):
        engine.run([target()], Options(), tmp_path, lambda case: None, stage)
    assert len(json.loads((tmp_path / "engine.json").read_text())["cases"]) == 1


def test_a_resumed_run_measures_only_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = target(), target(spec=InputSpec(128, 128))
    finished = dataclasses.replace(ENGINE, implementation="onnx", precision="float32")
    canned(monkeypatch, CASE, finished)
    engine.run([first], Options(), tmp_path, lambda case: None, stage)
    asked = canned(monkeypatch, CASE, KeyboardInterrupt())
    engine.run([first, second], Options(), tmp_path, lambda case: None, stage, resume=True)
    assert asked == [second]
    asked = canned(monkeypatch, CASE, finished)
    record = engine.run([first, second], Options(), tmp_path, lambda case: None, stage, resume=True)
    assert asked == [second]  # the cut one begins anew
    assert [case["width"] for case in record["cases"]] == [96, 96, 128, 128]
    assert len(record["earlier_commands"]) == 2
    assert "Continued; before: `" in (tmp_path / "engine.md").read_text()
    with pytest.raises(CodetrError, match="another seconds than this run"):
        engine.run([first], Options(seconds=1), tmp_path, lambda case: None, stage, resume=True)


def test_a_full_gpu_is_named(tmp_path: Path, untimed: list[Any]) -> None:
    def load() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    bench = Bench(Options(), "cpu", tmp_path, stage, [])
    with pytest.raises(CodetrError, match="too small for torch float16 at 96x64, batch 1; measure a smaller --size"):
        bench._measure(engine.Subject.of(target()), "torch", "float16", load)


@pytest.mark.parametrize(
    ("targets", "weights", "device", "message"),
    [
        ([target()], False, "cuda", "the onnx engine runs on cpu here, not on cuda"),
        ([target(engine="caffe")], False, None, "engine 'caffe' is not known; expected onnx"),
        ([target(exists=True, built_from="0" * 64)], True, None, "was not built from .*weights.pth"),
        ([target(exists=True)], True, None, "was not built from .*weights.pth"),
        ([target()], None, None, "no checkpoint at .*weights.pth"),
    ],
    ids=["other device", "unknown engine", "other weights", "weights for random ones", "no weights"],
)
def test_impossible_measurements_are_named_at_once(
    targets: list[Target], weights: bool | None, device: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    if weights:
        path.write_bytes(b"weights")
    with pytest.raises(CodetrError, match=message):
        check(targets, None if weights is False else path, device)


def test_an_engine_has_only_its_own_precisions(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match="the onnx engine has no float16; expected float32"):
        new_targets(SMALL, [(96, 64)], "onnx", "float16", 1, tmp_path)


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("float16", "cuda", ("float32", "float16")),
        ("bfloat16", "cuda", ("float32", "bfloat16")),
        ("float32", "cuda", ("float32", "float16")),
        ("float32", "cpu", ("float32",)),
        ("bfloat16", "cpu", ("float32", "bfloat16")),
    ],
)
def test_pytorch_is_measured_in_float32_and_half(precision: Any, device: str, expected: tuple[str, ...]) -> None:
    assert engine.eager_precisions(precision, device) == expected


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_set_and_given_back(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    precision = torch.get_float32_matmul_precision()
    for tf32, expected in ((True, "high"), (False, "highest")):
        with engine.float32_products(tf32):
            assert torch.get_float32_matmul_precision() == expected
            assert torch.backends.cudnn.allow_tf32 is tf32
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, before)


def test_table_has_speed_ups_and_the_published_figures_labelled() -> None:
    cases = [dataclasses.asdict(case) for case in (CASE, HALF, ENGINE)]
    machine = {"cpu": "x", "cores": 1, "gpus": ["NVIDIA H200, 580"], "python": "3", "packages": {}}
    record = {
        "command": "codetr", "time": "now", "machine": machine, "cuda": "13.0", "device": "cuda", "weights": "x.pth",
        "seconds": 10.0, "tf32": False, "complete": True, "profiles": [], "cases": cases,
    }  # fmt: skip
    lines = to_markdown(record).splitlines()
    rows = [line for line in lines if line.startswith("| 1152x768")]
    assert rows[0].startswith("| 1152x768 | PyTorch float32 | 100.00 ± 0.2% | 101.00 | 102.00 | 10.0 | 1.00x | 0.40x |")
    assert rows[2] == (
        "| 1152x768 | torch float16 | 20.00 ± 0.2% (unsteady) | 101.00 | 102.00 | 10.0 | 5.00x | 2.00x | 3.50 | 2500.0 "
        "| 50% | 99.0%, scores ± 2.0e-03 | 30.2 |"
    )
    assert any("published reference on other hardware" in line for line in lines)
    assert any("TF32 is off" in line for line in lines)


@pytest.mark.parametrize(
    ("variant", "spec", "implementation", "precision", "expected"),
    [
        ("co_dino_swin_l_o365", InputSpec(1280, 1920), "torch", "float16", 79.5),
        ("co_dino_swin_l_o365", InputSpec(608, 608), "PyTorch", "float32", 59.0),
        ("co_dino_swin_l_o365", InputSpec(608, 608), "PyTorch", "bfloat16", None),
        ("co_dino_swin_l_o365", InputSpec(608, 608, 2), "PyTorch", "float32", None),
        ("co_dino_swin_l_o365", InputSpec(1920, 1280), "torch", "float16", None),
        ("co_dino_r50_12e", InputSpec(608, 608), "PyTorch", "float32", None),
    ],
    ids=["engine", "PyTorch", "other precision", "other batch", "turned image", "other network"],
)
def test_published_figures_stand_beside_their_own_case_only(
    variant: str, spec: InputSpec, implementation: str, precision: str, expected: float | None
) -> None:
    assert engine.published_ms(get_variant(variant), spec, implementation, precision) == expected


def test_flops_of_the_operator_and_of_a_batch() -> None:
    shapes = ([2, 50, 8, 32], [2, 7, 5, 2], [2, 7, 8, 5, 4, 2], [2, 7, 8, 5, 4])
    assert ms_deform_attn_flops(*shapes, None, None, out_shape=[2, 7, 256]) == SAMPLE_FLOPS * 2 * 7 * 8 * 5 * 4 * 32
    one, two = (count_flops(SMALL, InputSpec(64, 96, batch)) for batch in (1, 2))
    assert {name: 2 * flops for name, flops in one.items()} == two
    assert {"backbone", "neck", "encoder", "proposals", "decoder"} < set(one)
    # The last box head belongs to no part: two hidden layers of 32 and one of 4, for 20 queries.
    assert one[TOTAL] - sum(flops for name, flops in one.items() if name != TOTAL) == 2 * 20 * (32 * 32 * 2 + 32 * 4)


def test_profile_names_parts_and_kernels_and_writes_a_trace(tmp_path: Path) -> None:
    module = torch.nn.Sequential()
    module.add_module("first", torch.nn.Linear(8, 8))
    module.add_module("second", torch.nn.Softmax(-1))
    found = profile(lambda: module(torch.ones(2, 8)), "cpu", tmp_path / "trace.json.gz", module)
    assert [part.name for part in found.parts] == ["first", "second", OTHER]
    assert [part.calls for part in found.parts] == [1, 1, 1]
    assert sum(part.ms for part in found.parts) == pytest.approx(found.total_ms)
    assert {"aten::addmm", "aten::_softmax"} <= {kernel.name for kernel in found.kernels}
    assert [kernel.ms for kernel in found.kernels] == sorted((kernel.ms for kernel in found.kernels), reverse=True)
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert any(event.get("name") == f"{PART}first" for event in json.load(file)["traceEvents"])
    assert not module.first._forward_hooks
    assert not module.first._forward_pre_hooks


def event(name: str, device: str, us: float = 0.0, kernels: Any = (), children: Any = ()) -> Any:
    return SimpleNamespace(
        name=name, device_type=SimpleNamespace(name=device), is_user_annotation=name.startswith(PART),
        self_device_time_total=us, cpu_children=list(children),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
    )  # fmt: skip


def test_a_gpus_kernels_count_once_for_their_part() -> None:
    launch = event("cudaLaunchKernel", "CPU", kernels=[("gemm", 600.0)])
    operator = event("aten::addmm", "CPU", children=[launch])
    # CUPTI repeats our range on the GPU and links it to the range on the CPU, as if it were a kernel.
    part = event(f"{PART}encoder", "CPU", kernels=[(f"{PART}encoder", 900.0)], children=[operator])
    on_gpu = [event("gemm", "CUDA", 600.0), event("copy", "CUDA", 300.0), event(f"{PART}encoder", "CUDA", 900.0)]
    found = summarise_events([launch, operator, part, *on_gpu], "cuda")
    assert found.total_ms == pytest.approx(0.9 / CALLS)
    assert [(part.name, part.ms) for part in found.parts] == [
        ("encoder", pytest.approx(0.6 / CALLS)),
        (OTHER, pytest.approx(0.3 / CALLS)),
    ]
    assert [kernel.name for kernel in found.kernels] == ["gemm", "copy"]


def test_warm_up_ends_when_the_median_stands_still() -> None:
    times = iter([9.0] * WARM_UP_CALLS + [5.0] * WARM_UP_CALLS + [4.95] * WARM_UP_CALLS)
    assert warm_up(lambda: next(times), seconds=60)
    assert next(times, None) is None


def test_a_warm_up_that_never_ends_is_cut() -> None:
    times = (2.0**i for i in range(10**6))
    assert not warm_up(lambda: next(times), seconds=0)


def test_percentiles_are_of_single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([float(i) for i in range(1, MIN_CALLS + 1)])
    monkeypatch.setattr(latency, "warm_up", lambda timed, seconds: True)
    monkeypatch.setitem(latency.TIMERS, "cpu", lambda call: next(times))
    found = measure_latency(lambda: None, "cpu", seconds=0)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((5.5, 9.1, 9.91))
    assert (found.calls, found.stable) == (MIN_CALLS, True)
    assert found.calls_per_s == pytest.approx(1e3 / 5.5)


def test_prepared_inference_is_the_engines(tmp_path: Path) -> None:
    images, sizes = np.full((2, 64, 96, 3), 200, np.uint8), np.array([[64, 96], [32, 96]], np.int32)
    loaded = onnx_engine.load(write_tiny_engine(tmp_path / "model.onnx"), SPEC)
    for expected, actual in zip(loaded(images, sizes), loaded.prepare(images, sizes)(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    detector = random_detector(SMALL)
    eager = engine.EagerDetector(detector)
    expected = detector(torch.from_numpy(images), torch.from_numpy(sizes))
    for whole, prepared, output in zip(expected, eager.prepare(images, sizes)(), eager(images, sizes), strict=True):
        np.testing.assert_array_equal(prepared.numpy(), whole.numpy())
        np.testing.assert_array_equal(output, whole.numpy())


@pytest.mark.parametrize("batch", [1, 4])
def test_trtexec_measures_the_same_plan(tmp_path: Path, batch: int) -> None:
    spec = InputSpec(768, 1152, batch)
    sizes = trtexec.write_sizes(spec, tmp_path / "sizes.bin")
    assert np.fromfile(sizes, "<i4").tolist() == [768, 1152] * batch
    words = trtexec.command(Path("r/codetr_detector/1/model.plan"), spec, sizes).split()
    assert words[:3] == [
        "trtexec",
        "--loadEngine=r/codetr_detector/1/model.plan",
        "--staticPlugins=r/codetr_detector/1/libcodetr_plugin.so",
    ]
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", f"--loadInputs=image_sizes:{sizes}"} <= set(words)
    assert ("--shapes=images:4x768x1152x3,image_sizes:4x2" in words) == spec.is_dynamic


@pytest.fixture
def fake_trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n[ $1 = fail ] && exit 3\necho '[I] Latency: min = 9 ms, median = 9.5 ms'\n"
        "echo '[I] GPU Compute Time: min = 7.0 ms, max = 8.0 ms, mean = 7.4 ms, median = 7.3125 ms, percentile'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    return program


def test_trtexecs_median_is_read(fake_trtexec: Path, tmp_path: Path) -> None:
    assert trtexec.run("trtexec --loadEngine=x", tmp_path / "log.txt") == 7.3125
    assert "Latency" in (tmp_path / "log.txt").read_text()
    with pytest.raises(CodetrError, match=r"status 3 and no time; .*log.txt says why"):
        trtexec.run("trtexec fail", tmp_path / "log.txt")


def test_a_failing_trtexec_leaves_our_own_figure(
    fake_trtexec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_trtexec.write_text("#!/bin/sh\nexit 1\n")
    plan = target(engine="tensorrt", precision="float16")
    found = Bench(Options(), "cuda", tmp_path, stage, [])._trtexec(plan)
    assert list(found) == ["trtexec"]
    assert "trtexec ended with status 1" in capsys.readouterr().out


def test_without_trtexec_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert trtexec.run("trtexec", tmp_path / "log.txt") is None
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.gpu
def test_on_a_gpu_pytorch_and_engine_are_measured(tmp_path: Path) -> None:
    bench = Bench(Options(seconds=0.1, profile=True), "cuda", tmp_path, stage, [])
    on_gpu = target(engine="torch", precision="float16", repository=tmp_path / "repository")
    cases = list(bench.measure(on_gpu))
    assert [(case.implementation, case.precision) for case in cases] == [
        ("PyTorch", "float32"),
        ("PyTorch", "float16"),
        ("torch", "float16"),
    ]
    for case in cases:
        assert case.memory_gib is not None
        assert case.p50_ms <= case.p90_ms <= case.p99_ms
    eager, compiled = bench.profiles
    assert sum(part["ms"] for part in eager["parts"]) == pytest.approx(eager["total_ms"])
    assert all(part["ms"] >= 0 for part in eager["parts"])
    assert compiled["kernels"]

    images, sizes = engine.noise(SPEC)
    loaded = engine.engine_module("torch").load(on_gpu.file, SPEC)
    replay = loaded.prepare(images, sizes)
    replay()
    for expected, actual in zip(loaded(images, sizes), replay(), strict=True):
        np.testing.assert_array_equal(actual.cpu().numpy(), expected)
