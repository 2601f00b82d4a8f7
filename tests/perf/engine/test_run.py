from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from builder.engines import onnx as onnx_engine  # noqa: E402  # after the check for torch
from builder.engines.eager import EagerDetector  # noqa: E402
from builder.engines.kinds import engine_kind  # noqa: E402
from builder.engines.tensorrt.child import TensorRTPython  # noqa: E402
from builder.engines.tensorrt.plans import ChildPlan, Timings  # noqa: E402
from builder.pipeline.export import InputSpec  # noqa: E402
from builder.variants import get_variant  # noqa: E402
from demo import DEMO_WEIGHTS  # noqa: E402
from perf.engine import run as engine  # noqa: E402
from perf.engine.flops import TOTAL, count_flops  # noqa: E402
from perf.engine.profile import OTHER  # noqa: E402
from perf.engine.run import Bench, EngineCase, Options  # noqa: E402
from perf.engine.targets import Target, existing_targets, new_targets  # noqa: E402
from perf.latency import MIN_CALLS, Latency  # noqa: E402
from serving.errors import CodetrError  # noqa: E402
from tests.perf.engine.cases import CASE, ENGINE, FAST, SMALL, SPEC, target  # noqa: E402
from tests.tiny_engine import write_tiny_engine  # noqa: E402


def stage(name: str) -> Any:
    return nullcontext()


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
    targets = new_targets([SMALL], [(96, 64)], "onnx", None, [1], tmp_path / "builds")
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
    assert "published ms" in markdown
    assert "published reference" not in markdown  # there is none of this network
    parts = [part["name"] for part in record["profiles"][0]["parts"]]
    assert parts == ["backbone", "neck", "encoder", "proposals", "decoder", "class_head", OTHER]
    assert (output / "trace-small-PyTorch-float32-96x64-batch1.json.gz").is_file()
    assert targets[0].file.is_file()

    again = existing_targets(targets[0].repository)
    assert [dataclasses.replace(each.variant, class_names=None) for each in again] == [SMALL]
    assert [(each.spec, each.file, each.built_from) for each in again] == [(targets[0].spec, targets[0].file, None)]
    record = engine.run(again, Options(), tmp_path / "again", heard.append, stage)
    assert [case["build_seconds"] for case in record["cases"]] == [None, None]
    record = engine.run([*again, *again], Options(), tmp_path / "twice", heard.append, stage)
    assert [(case["implementation"], case["name"]) for case in record["cases"]] == [
        ("PyTorch", ""), ("onnx", "codetr"), ("onnx", "codetr"),
    ]  # fmt: skip
    record = engine.run([*again, *again], Options(), tmp_path / "twice", heard.append, stage, resume=True)
    assert len(record["cases"]) == 3, "all are there"
    other = dataclasses.replace(again[0], name="other")
    assert engine._target_key(other) != engine._target_key(again[0])
    assert existing_targets(targets[0].repository, batches=[1]) == again
    with pytest.raises(CodetrError, match=r"the engine codetr of .* takes batches of 1, not of 2"):
        existing_targets(targets[0].repository, batches=[2])


def test_an_engine_of_every_batch_is_measured_at_those_asked_for(monkeypatch, tmp_path):
    engines = [dataclasses.replace(target(), name=name, spec=InputSpec(64, 96, 4)) for name in "ab"]
    monkeypatch.setattr("perf.engine.targets.chosen_names", lambda *arguments: ["a", "b"])
    monkeypatch.setattr("perf.engine.targets._existing", lambda folder, name: engines["ab".index(name)])
    found = existing_targets(tmp_path, batches=[1, 4])
    assert [(each.name, each.spec.max_batch_size) for each in found] == [("a", 1), ("a", 4), ("b", 1), ("b", 4)]
    assert existing_targets(tmp_path) == engines
    with pytest.raises(CodetrError, match=r"the engine a of .* takes batches of 1 to 4, not of 5"):
        existing_targets(tmp_path, batches=[4, 5])


class Shifted:
    """An engine that sees the detector's boxes elsewhere by a share of the image."""

    def __init__(self, detector: Any, shift: float) -> None:
        self.eager, self.shift = EagerDetector(detector), shift

    def __call__(self, images: Any, image_sizes: Any) -> Any:
        found = self.eager(images, image_sizes)
        return found._replace(boxes=found.boxes + np.float32(self.shift))

    def prepare(self, images: Any, image_sizes: Any) -> Any:
        return self.eager.prepare(images, image_sizes)


def test_boxes_are_compared_where_weights_are_given(untimed: list[Any], tmp_path: Path) -> None:
    bench = Bench(Options(weights=DEMO_WEIGHTS), "cpu", tmp_path, stage, [])
    demo = target(variant=get_variant("co_dino_demo"))
    detector = bench._load_detector(demo)
    subject = engine.Subject.of(demo)
    reference = bench._measure(subject, "PyTorch", "float32", lambda: EagerDetector(detector))
    same = bench._measure(subject, "onnx", "float32", lambda: Shifted(detector, 0.0))
    elsewhere = bench._measure(subject, "onnx", "float32", lambda: Shifted(detector, 0.5))
    assert reference.agreement is None
    assert same.agreement is not None
    assert elsewhere.agreement is not None
    assert (same.agreement["matched"], elsewhere.agreement["matched"]) == (1.0, 0.0)


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
    with pytest.raises(CodetrError, match="too small for torch float16 at 96x64, batch 1; measure a smaller size"):
        bench._measure(engine.Subject.of(target()), "torch", "float16", load)


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


def test_prepared_inference_is_the_engines(tmp_path: Path) -> None:
    images, sizes = np.full((2, 64, 96, 3), 200, np.uint8), np.array([[64, 96], [32, 96]], np.int32)
    loaded = onnx_engine.load(write_tiny_engine(tmp_path / "model.onnx"), SPEC, "cpu")
    for expected, actual in zip(loaded(images, sizes), loaded.prepare(images, sizes)(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_failing_trtexec_leaves_our_own_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    plan = dataclasses.replace(target(engine="tensorrt", precision="float16"), repository=tmp_path)
    (tmp_path / "manifest.json").write_text('{"files": {}, "inputs": ["images"]}', encoding="utf-8")
    found = Bench(Options(), "cuda", tmp_path, stage, [])._trtexec(plan)
    assert list(found) == ["trtexec"]
    assert "image_sizes" not in found["trtexec"]
    assert "trtexec ended with status 1" in capsys.readouterr().out


def test_a_plan_of_another_python_is_measured_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(self: ChildPlan, images: Any, image_sizes: Any, seconds: float, least: int) -> Timings:
        asked.append((images.shape, seconds, least))
        return Timings([3.0] * least, 500.0, 2**30)

    monkeypatch.setattr(ChildPlan, "measure", measure)
    bench = Bench(Options(seconds=2), "cpu", tmp_path, stage, [])
    subject = engine.Subject.of(target(engine="tensorrt", precision="float16"))
    plan = ChildPlan(tmp_path / "a.plan", None, TensorRTPython())
    latency, memory = bench._latency(plan, subject, before=None)
    assert (latency.p50_ms, latency.calls_per_s, memory) == (3.0, 500.0, 2**30)
    assert asked == [(subject.inputs[0].shape, 4, 4 * MIN_CALLS)]


@pytest.mark.gpu
def test_on_a_gpu_pytorch_and_engine_are_measured(tmp_path: Path) -> None:
    bench = Bench(Options(seconds=0.1, profile=True), "cuda", tmp_path, stage, [])
    on_gpu = target(engine="torch", precision="float16", device="cuda", repository=tmp_path / "repository")
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
    loaded = engine_kind("torch").module.load(on_gpu.file, SPEC, "cuda")
    replay = loaded.prepare(images, sizes)
    replay()
    for expected, actual in zip(loaded(images, sizes), replay(), strict=True):
        np.testing.assert_array_equal(actual.cpu().numpy(), expected)
