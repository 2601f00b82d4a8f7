from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

import perf.engine.run  # after the check for torch
import perf.engine.targets
from builder.pipeline.export import InputSpec
from builder.variants import get_variant
from codetr import cli
from codetr.bench_engine import print_case
from perf.engine.run import EngineCase, Options
from perf.engine.targets import Target
from serving.errors import CodetrError

CASE = EngineCase(
    variant="x", implementation="torch", precision="float16", device="cuda", width=1152, height=768, batch=1,
    p50_ms=20.0, p90_ms=21.0, p99_ms=22.0, spread=0.002, calls=100, stable=True, images_per_s=50.0, memory_gib=3.5,
    sm_mhz=1980, gflop=2500.0, gemm_tflops=700.0, gemm_share=0.18, published_ms=30.2, build_seconds=99.0,
    agreement={"matched": 0.99, "max_score_difference": 0.002, "mean_box_iou": 0.995},
)  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that the library is called with."""
    arguments: list[Any] = []
    monkeypatch.setattr(perf.engine.run, "run", lambda *given: arguments.extend(given))
    return arguments


def invoke(*options: str) -> Any:
    return CliRunner().invoke(cli.app, ["bench", "engine", *options])


def test_options_reach_the_library(seen: list[Any], tmp_path: Path) -> None:
    options = ["--engine", "onnx", "--size", "96x64", "--size", "608x608", "--batch", "2", "--output", str(tmp_path)]
    flags = ["--random-weights", "--profile", "--tf32", "--seconds", "3", "--device", "cpu", "--resume"]
    result = invoke("co_dino_demo", *options, *flags, "--precision", "fp32")
    assert result.exit_code == 0, result.output
    targets, settings, output, *_, device, resume = seen
    assert [target.spec for target in targets] == [
        InputSpec(64, 96, 2, dynamic_batch=False),
        InputSpec(608, 608, 2, dynamic_batch=False),
    ]
    assert {(target.variant.name, target.engine, target.precision) for target in targets} == {
        ("co_dino_demo", "onnx", "float32")
    }
    assert settings == Options(None, 3.0, True, True, None)
    assert (output, device, resume) == (tmp_path, "cpu", True)


def test_without_sizes_they_are_the_published_ones(seen: list[Any]) -> None:
    assert invoke("co_dino_swin_l_o365", "--random-weights", "--engine", "onnx").exit_code == 0
    assert [(target.spec.width, target.spec.height) for target in seen[0]] == [(1920, 1280), (1152, 768), (608, 608)]


def test_several_variants_and_batches_stand_side_by_side(seen: list[Any]) -> None:
    names = "co_dino_swin_l_o365, co_dino_demo"
    options = ["--variants", names, "--random-weights", "--engine", "onnx", "--batch", "1", "--batch", "4"]
    assert invoke(*options).exit_code == 0
    assert [(target.variant.name, target.spec.width, target.spec.max_batch_size) for target in seen[0]] == [
        *(("co_dino_swin_l_o365", width, batch) for width in (1920, 1152, 608) for batch in (1, 4)),
        ("co_dino_demo", 480, 1),
        ("co_dino_demo", 480, 4),
    ]
    assert len({target.repository for target in seen[0]}) == 8


def test_a_repository_gives_size_and_precision(
    seen: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Target(get_variant("co_dino_demo"), InputSpec(64, 96, 4), "torch", "float16", tmp_path, "cpu", exists=True)
    asked = []

    def existing(*arguments: Any) -> list[Target]:
        asked.append(arguments)
        return [found]

    monkeypatch.setattr(perf.engine.targets, "existing_targets", existing)
    assert invoke("--random-weights", "--repository", str(tmp_path)).exit_code == 0
    assert seen[0] == [found]
    assert invoke("--random-weights", "--repository", str(tmp_path), "--batch", "1", "--batch", "4").exit_code == 0
    assert asked == [(tmp_path, None, []), (tmp_path, None, [1, 4])]
    result = invoke("co_dino_r50_12e", "--random-weights", "--repository", str(tmp_path))
    assert isinstance(result.exception, CodetrError)
    assert "holds co_dino_demo, not co_dino_r50_12e" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["co_dino_demo"], "give either --weights FILE, or --random-weights"),
        (["--random-weights"], "give a VARIANT to build engines of"),
        (["no_such", "--random-weights"], "unknown variant 'no_such'"),
        (["--variants", "co_dino_demo,no_such", "--random-weights"], "unknown variant 'no_such'"),
        (["co_dino_demo", "--variants", "co_dino_demo", "--random-weights"], "leave out VARIANT and --config"),
        (["--variants", "co_dino_demo", "--weights", "x.pth"], "one checkpoint is of one variant"),
        (["--variants", "co_dino_demo", "--random-weights", "--repository", "x"], "with --repository leave it out"),
        (["co_dino_demo", "--random-weights", "--size", "1152"], "expected WIDTHxHEIGHT"),
        (["co_dino_demo", "--random-weights", "--size", "16x16"], "height=16 is too small"),
        (
            ["co_dino_demo", "--random-weights", "--engine", "onnx", "--precision", "fp16"],
            "onnx engine has no precision fp16; give fp32, int8",
        ),
        (["--random-weights", "--repository", "/no/such"], "no repository at /no/such"),
    ],
)
def test_impossible_options_are_named(seen: list[Any], options: list[str], message: str) -> None:
    result = invoke(*options)
    assert isinstance(result.exception, CodetrError)
    assert message in str(result.exception)
    assert not seen


def test_a_case_is_one_parsable_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_case(CASE)
    (line,) = capsys.readouterr().out.splitlines()
    values = dict(word.split("=", 1) for word in line.split(" "))
    assert values["size"] == "1152x768"
    assert float(values["p50_ms"]) == 20
    assert (values["matched"], values["score_difference"]) == ("99.0%", "2.0e-03")
    assert values["sm_mhz"] == "1980"
