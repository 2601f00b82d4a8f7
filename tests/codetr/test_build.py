"""`codetr build` as a user meets it: each fault is one line that says what to do, and Ctrl-C leaves nothing."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from builder.quantise.search import Search, Trial, described
from builder.variants import get_variant
from codetr import cli
from codetr.labels import read_class_names
from demo import DEMO_WEIGHTS
from serving.errors import CodetrError
from serving.rules import Suppression
from tests.smallest import SMALLEST

ROOT = Path(__file__).parents[2]
DEMO = ["co_dino_demo", "--weights", str(DEMO_WEIGHTS)]


@pytest.fixture
def fault(tmp_path, monkeypatch, capsys):
    """Runs `codetr build` with some arguments, which must fail with one line on standard error; returns the line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["codetr", "build", *arguments, "--repository", str(tmp_path / "repository")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        assert not (tmp_path / "repository").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(
            ["co_dino_x", *DEMO[1:]], "unknown variant 'co_dino_x'; known: co_dino_r50_lsj_12e,", id="variant"
        ),
        pytest.param([*DEMO[:2], "absent.pth"], "no checkpoint at absent.pth", id="no weights file"),
        pytest.param([DEMO[0]], "give either --weights FILE, or --random-weights", id="no weights"),
        pytest.param([*DEMO, "--height", "16"], "height=16 is too small; expected 32 to 4096", id="small"),
        pytest.param([*DEMO, "--width", "5000"], "width=5000 is too large; expected 32 to 4096", id="large"),
        pytest.param([*DEMO, "--height", "0"], "height=0 is too small; expected 32 to 4096", id="no height"),
        pytest.param([*DEMO, "--width", "0"], "width=0 is too small; expected 32 to 4096", id="no width"),
        pytest.param(
            [*DEMO, "--height", "32", "--width", "32"],
            "height=32 and width=32 give variant 'co_dino_demo' 86 encoder tokens, of which it takes num_queries=150",
            id="fewer tokens than queries",
        ),
        pytest.param(
            ["co_dino_r50_12e", "--weights", "absent.pth", "--height", "64", "--width", "64", "--plugin-nodes"],
            "height=64 and width=64 give variant 'co_dino_r50_12e' 341 encoder tokens, of which it takes "
            "num_queries=900",
            id="fewer tokens than queries, before weights",
        ),
        pytest.param([*DEMO, "--static-batch"], "a static batch above 1 cannot be served", id="static batch"),
        pytest.param([*DEMO, "--precision", "fp16"], "no precision fp16; give fp32, int8, or use the torch", id="fp16"),
        pytest.param(
            [*DEMO, "--plugin-nodes", "--name", "x", "--verify-images", "y", "--skip-verification"],
            "name, verify_images, skip_verification: without effect, since plugin nodes go into",
            id="without effect",
        ),
        pytest.param([*DEMO, "--batch", "0"], "batch=0 is too small; expected 1 to 256", id="batch"),
        pytest.param([*DEMO, "--engine", "caffe"], "engine 'caffe' is not known; expected onnx, torch", id="engine"),
        pytest.param([*DEMO, "--precision", "int4"], "--precision 'int4' is not known; expected fp32", id="precision"),
        pytest.param(
            [*DEMO, "--precision", "fp8"],
            "the onnx engine has no precision fp8; give fp32, int8, or use the torch engine on a GPU that has it",
            id="fp8 of another engine",
        ),
        pytest.param(
            [*DEMO, "--precision", "int8", "--engine", "torch"],
            "the torch engine has no precision int8; give fp32, fp16, bf16, fp8, or use the onnx engine on a CPU",
            id="int8 of another engine",
        ),
        pytest.param(
            [*DEMO, "--quantize", "neck"],
            "what is quantised and how is for int8 and fp8, and the precision is fp32",
            id="layers of nothing",
        ),
        pytest.param(
            [*DEMO, "--precision", "int8", "--calibration-count", "0"],
            "0 calibration pictures are not possible",
            id="no pictures",
        ),
        pytest.param(
            [*DEMO, "--precision", "int8", "--calibration-images", "absent"],
            "there is no folder absent of images to calibrate on",
            id="calibration images",
        ),
        pytest.param(
            [*DEMO, "--precision", "int8", "--ap-budget", "0.01"],
            "an AP budget of 0.01 is only kept by a search",
            id="a budget without a search",
        ),
        pytest.param(
            [*DEMO, "--precision", "int8", "--quantize", "neck", "--quantize", "backbone"],
            "'backbone' chooses no linear layer or convolution of co_dino_demo; its groups are backbone-convs",
            id="no group",
        ),
        pytest.param(
            [*DEMO, "--precision", "int8", "--plugin-nodes"],
            "plugin nodes alone are not quantised",
            id="plugin nodes",
        ),
        pytest.param(
            [*DEMO, "--nms", "hard", "--min-score", "0.1"],
            "--min-score: without effect, since the suppression of co_dino_demo is hard; give another --nms",
            id="a score of soft suppression",
        ),
        pytest.param(
            ["rtdetrv2_demo", "--random-weights", "--iou-threshold", "0.5", "--no-class-agnostic"],
            "--iou-threshold, --class-agnostic: without effect, since the suppression of rtdetrv2_demo is none; give "
            "another --nms, or leave it out",
            id="an overlap without suppression",
        ),
        pytest.param(
            [*DEMO, "--plugin-nodes", "--nms", "hard"],
            "--nms: without effect, since plugin nodes go into a model.onnx alone",
            id="suppression of plugin nodes",
        ),
        pytest.param(
            [*DEMO, "--skip-verification", "--verify-images", "photos", "--verify-annotations", "a.json"],
            "--verify-images, --verify-annotations: without effect with --skip-verification",
            id="images of no verification",
        ),
        pytest.param(
            [*DEMO, "--name", "a.2"], "--name a.2: a version is a number of its own; give --name a", id="version"
        ),
        pytest.param([*DEMO, "--name", "a.b"], "name 'a.b' is not possible; expected letters", id="name"),
        pytest.param(
            [*DEMO, "--verify-images", "absent"], "there is no folder absent of images to verify on", id="images"
        ),
        pytest.param([*DEMO, "--optimization-level", "3"], "settings are not for the onnx engine", id="settings"),
        pytest.param([*DEMO, "--tf32"], "settings are not for the onnx engine", id="tf32"),
        pytest.param(
            [*DEMO, "--window-attention", "written-out"],
            "settings are not for the onnx engine",
            id="window attention",
        ),
        pytest.param([*DEMO, "--workspace-gib", "0"], "workspace 0.0 GiB is not possible", id="workspace"),
    ],
)
def test_an_impossible_wish_is_one_line(fault, arguments, expected):
    assert expected in fault(*arguments)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(["--verify-images", "absent"], "there is no folder absent of images to verify on", id="images"),
        pytest.param(["--verify-annotations", "a.json"], "annotations are given without the folder", id="no images"),
        pytest.param(
            ["--verify-images", str(ROOT / "demo"), "--verify-annotations", "absent.json"],
            "annotations absent.json: no file is there; name a COCO annotation file",
            id="annotations",
        ),
    ],
)
def test_what_is_verified_on_is_looked_for_before_weights_are_loaded(fault, monkeypatch, options, expected):
    monkeypatch.setattr("builder.pipeline.build.load", lambda options: pytest.fail("the weights were loaded"))
    assert expected in fault(*DEMO, *options)


def test_a_word_that_chooses_no_layer_leaves_no_log(fault, tmp_path):
    line = fault(*DEMO, "--precision", "int8", "--quantize", "neck,projektions")
    assert line.startswith("error: 'projektions' chooses no linear layer or convolution")
    assert list(tmp_path.iterdir()) == []


def test_words_have_commas_between_or_are_given_several_times(fault, monkeypatch):
    def build(options, *arguments):
        raise CodetrError(f"{options.recipe.layers}")

    monkeypatch.setattr("builder.pipeline.build.build_repository", build)
    words = ("--precision", "int8", "--quantize", "neck, projections", "--quantize", "decoder.*")
    assert fault(*DEMO, *words) == "error: ('neck', 'projections', 'decoder.*')"
    assert fault(*DEMO, "--precision", "int8", "--quantize", "neck,") == (
        "error: 'neck,' has an empty word; expected groups or patterns of modules, with commas between"
    )


def test_what_a_family_says_of_a_build_is_noted_before_it(tmp_path, monkeypatch, capsys):
    arguments = ["build", "detr_r50_dc5", "--weights", "absent.pth", "--repository", str(tmp_path / "repository")]
    monkeypatch.setattr(sys, "argv", ["codetr", *arguments, "--height", "800", "--width", "1344"])
    with pytest.raises(SystemExit):
        cli.main()
    note, fault = capsys.readouterr().err.splitlines()
    assert note.startswith("note: detr_r50_dc5 is a DC5 model")
    assert "do not fill 800x1344 (height x width)" in note
    assert "no checkpoint at absent.pth" in fault


def test_a_wrong_checkpoint_is_named_and_all_its_keys_are_in_a_log(tmp_path, monkeypatch, capsys):
    arguments = ["build", "co_dino_r50_12e", *DEMO[1:], "--repository", str(tmp_path / "repository")]
    monkeypatch.setattr(sys, "argv", ["codetr", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    first, *keys, last = capsys.readouterr().err.splitlines()
    assert "this checkpoint has a Swin (32) backbone, variant 'co_dino_r50_12e' has R50" in first
    assert keys[0].strip().startswith("missing: ")
    log = Path(last.split(" are in ")[1])
    assert log.parent == tmp_path
    assert len(log.read_text().splitlines()) > 500


def test_another_class_count_is_named(fault, tmp_path):
    weights = {"class_head.weight": torch.zeros(3, 128), "class_head.bias": torch.zeros(3)}
    torch.save({"state_dict": weights}, tmp_path / "three.pth")
    line = fault("co_dino_demo", "--weights", str(tmp_path / "three.pth"))
    assert "the checkpoint has 3 classes, variant 'co_dino_demo' has 8; give the names of its classes" in line


def test_the_suppression_can_be_set(fault, monkeypatch):
    def build(options, *arguments):
        raise CodetrError(f"{options.variant.rules.suppression}")

    monkeypatch.setattr("builder.pipeline.build.build_repository", build)
    line = fault(*DEMO, "--nms", "hard", "--iou-threshold", "0.6", "--score-threshold", "0.1", "--class-agnostic")
    assert line == f"error: {Suppression('hard', 0.6, score_threshold=0.1, class_agnostic=True)}"
    assert fault(*DEMO) == f"error: {Suppression()}"
    assert "iou_threshold: expected a number in 0..1, got 1.5" in fault(*DEMO, "--iou-threshold", "1.5")


def test_the_classes_of_a_fine_tuned_checkpoint(fault, monkeypatch, tmp_path):
    def build(options, *arguments):
        raise CodetrError(f"{options.variant}")

    (tmp_path / "cats.txt").write_text("cat\nlynx\n")
    monkeypatch.setattr("builder.pipeline.build.build_repository", build)
    line = fault("co_dino_swin_l_o365", "--weights", "cats.pth", "--classes", str(tmp_path / "cats.txt"))
    variant = get_variant("co_dino_swin_l_o365").derive("co_dino_swin_l_o365_cats", class_names=("cat", "lynx"))
    assert line == f"error: {variant}"


def test_classes_of_one_name_are_noted(tmp_path, monkeypatch, capsys):
    (tmp_path / "cats.txt").write_text("N/A\ncat\nlynx\ncat\nN/A\n")
    arguments = ["build", "detr_r50", "--weights", "absent.pth", "--repository", str(tmp_path / "repository")]
    monkeypatch.setattr(sys, "argv", ["codetr", *arguments, "--classes", str(tmp_path / "cats.txt")])
    with pytest.raises(SystemExit):
        cli.main()
    note, _ = capsys.readouterr().err.splitlines()
    assert note.endswith("cats.txt: lines 2, 4 are all 'cat'; answers do not tell these classes apart")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbfcat\r\nlynx\r\n", id="Windows"),
        pytest.param("cat\r\nlynx\r\n".encode("utf-16"), id="UTF-16"),
        pytest.param(b"cat\rlynx", id="old Macintosh"),
        pytest.param(b" cat \nlynx\n\n  \n", id="empty lines at the end"),
    ],
)
def test_class_names_of_every_editor_are_read(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content)
    assert read_class_names(tmp_path / "names.txt", "--classes") == ["cat", "lynx"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(None, "No such file or directory; expected a file with one name a line", id="no file"),
        pytest.param(b"", "line 1 is empty; expected", id="nothing in it"),
        pytest.param(b"cat\n\nlynx\n", "line 2 is empty; expected", id="an empty line"),
        pytest.param(b"caf\xe9", "not UTF-8 text (byte 3); save it as UTF-8; expected", id="other bytes"),
        pytest.param("a\nb".encode("utf-16-le"), "not UTF-8 text (a null character at 1)", id="UTF-16 without a mark"),
    ],
)
def test_a_file_of_classes_that_is_none(fault, tmp_path, content, expected):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    assert f"--classes {tmp_path / 'names.txt'}: {expected}" in fault(*DEMO, "--classes", str(tmp_path / "names.txt"))


def test_the_table_of_a_search_is_that_of_the_version_that_was_built(tmp_path, monkeypatch):
    trials = (Trial((), 0, 0.0, 10.0), Trial(("neck",), 5, 0.001, 8.0))
    manifest = {"quantisation": {"search": described(Search(trials, trials[1], 0.005, "64 annotated pictures"))}}
    read = []
    monkeypatch.setattr("builder.pipeline.build.build_repository", lambda *arguments: None)
    monkeypatch.setattr("serving.manifest.read_manifest", lambda folder, name: read.append(name) or manifest)
    words = ["build", *DEMO, "--precision", "int8", "--search", "--version", "2", "--repository", str(tmp_path)]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert read == ["codetr.2"]
    assert "chosen" in result.output
    assert "AP lost on 64 annotated pictures; the budget is 0.005" in " ".join(result.output.split())


def test_a_full_disk(fault, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    line = fault(*DEMO)
    assert (
        "has 0.0 GiB free, the build needs 0.1 GiB; free some, or choose another disk for TMPDIR and the repository"
        in line
    )


def test_a_full_disk_for_the_plugin_file(fault, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    assert "has 0.0 GiB free, the build needs 0.1 GiB" in fault(*DEMO, "--plugin-nodes")


def test_a_file_as_the_plugin_files_folder(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    arguments = ["codetr", "build", *DEMO, "--plugin-nodes", "--repository", str(tmp_path / "file")]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr("builder.pipeline.build.load", lambda options: pytest.fail("the weights were loaded"))
    with pytest.raises(SystemExit):
        cli.main()
    assert f"error: output {tmp_path / 'file'}: it is a file or lies in one" in capsys.readouterr().err


def test_no_gpu(fault, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "the tensorrt engine needs an NVIDIA GPU and its driver; use the onnx engine" in fault(
        *DEMO, "--engine", "tensorrt"
    )


def test_no_tensorrt(fault, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    line = fault(*DEMO, "--engine", "tensorrt", "--frontend", "torch-tensorrt")
    assert "the tensorrt engine needs torch_tensorrt, which cannot be imported" in line
    assert line.endswith("use the image of Dockerfile.triton, or the onnx engine")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delenv("CODETR_TENSORRT_PYTHON", raising=False)
    assert "needs torch_tensorrt or tensorrt, and this Python has neither" in fault(*DEMO, "--engine", "tensorrt")


def test_the_python_with_tensorrt_is_asked(fault, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = fault(*DEMO, "--engine", "tensorrt", "--tensorrt-python", "/nowhere/python")
    assert line.endswith("cannot run /nowhere/python: No such file or directory; name a Python with tensorrt")
    line = fault(*DEMO, "--engine", "tensorrt", "--tensorrt-python", "/a/python", "--frontend", "torch-tensorrt")
    assert "frontend torch-tensorrt runs in this Python, not in /a/python" in line


@pytest.mark.parametrize(
    "option",
    [("--frontend", "onnx"), ("--tensorrt-python", "/a/python"), ("--plan-backend", "python"), ("--mark-outputs", "a")],
    ids=lambda option: option[0],
)
def test_options_of_plans_are_not_dropped_by_other_engines(fault, option):
    assert "settings are not for the onnx engine; use the tensorrt engine" in fault(*DEMO, *option)


@pytest.mark.parametrize("batch", [4, 256])
def test_a_gpu_without_room(fault, monkeypatch, batch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr("builder.engines.torch.check", lambda uses_operator, settings: None)
    monkeypatch.setattr(
        "builder.pipeline.build.export_detector", lambda *arguments: pytest.fail("the export was started")
    )
    line = fault(*DEMO, "--engine", "torch", "--batch", str(batch), "--height", "640", "--width", "960")
    needed = batch * 640 * 960 * 1900 / 2**30 + 1
    assert f"Some GPU has 2.0 GiB free, the build needs about {needed + 0.1:.1f} GiB" in line
    assert line.endswith("choose a smaller batch or size")


def test_a_failed_compilation_names_its_log(fault, monkeypatch, tmp_path):
    from builder.engines import EngineError, onnx

    def build(program, path, settings):
        print("a compiler's complaint")
        raise EngineError("no ONNX form of aten::x")

    monkeypatch.setattr("builder.pipeline.build.export_detector", lambda *arguments: None)
    monkeypatch.setattr("builder.pipeline.build.load", lambda options: __import__("builder").random_detector(SMALLEST))
    monkeypatch.setattr(onnx, "build", build)
    log = tmp_path / "repository-codetr-build.log"
    assert fault(*DEMO).endswith(f"no ONNX form of aten::x; the compilers' log is {log}, and `verbose` shows it")
    assert "a compiler's complaint" in log.read_text()


def test_ctrl_c_that_a_compiler_takes_for_its_own_ends_the_build(tmp_path, monkeypatch):
    def export(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("codetr.stages.own_console", lambda: Console(quiet=True))
    monkeypatch.setattr("builder.pipeline.build.export_detector", export)
    monkeypatch.setattr("builder.pipeline.build.load", lambda options: __import__("builder").random_detector(SMALLEST))
    monkeypatch.setattr(sys, "argv", ["codetr", "build", *DEMO, "--repository", str(tmp_path / "repository")])
    with pytest.raises(SystemExit, match="130"):
        cli.main()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_build_and_leaves_nothing(tmp_path, sent, status):
    command = [sys.executable, "-c", "from codetr.cli import main; main()", "build", *DEMO]
    command += ["--height", "64", "--width", "96"]
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [*command, "--repository", str(tmp_path / "repository")],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "load weights" in process.stdout.readline()
        process.send_signal(sent)  # the export is under way, or about to be
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in output
    assert "verify" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("codetr-")] == []


def test_a_file_that_is_no_timing_cache_is_refused_before_anything_else(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    arguments = ["build", *DEMO[:1], "--random-weights", "--engine", "tensorrt", "--repository", str(tmp_path / "r")]
    result = CliRunner().invoke(cli.app, [*arguments, "--timing-cache", str(tmp_path / "notes.txt")])
    assert "it is no file of an earlier build's timings" in str(result.exception)
    assert (tmp_path / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("source", "options"),
    [
        pytest.param("repository/codetr_detector/1/w.pth", ["--overwrite"], id="weights in the engine's folder"),
        pytest.param("repository/model.onnx", ["--plugin-nodes", "--overwrite"], id="weights called as the ONNX file"),
        pytest.param("w.pth", ["--timing-cache", "w.pth", "--engine", "tensorrt"], id="weights as timing cache"),
    ],
)
def test_a_source_that_would_be_replaced_is_refused(tmp_path, monkeypatch, source, options):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / source
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(DEMO_WEIGHTS, path)
    arguments = ["build", DEMO[0], "--weights", source, "--repository", "repository", *options]
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, CodetrError)
    assert "replaced" in str(result.exception) or "overwritten, but it is read" in str(result.exception)
    assert path.read_bytes() == DEMO_WEIGHTS.read_bytes()
