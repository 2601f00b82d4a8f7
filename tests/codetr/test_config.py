"""The option --config of every command that has it: which network it gives, and each misuse as one line."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from builder.reading.config_file import NOTES
from builder.variants import Variant, VariantError
from codetr import cli
from codetr.config import given_variant, read_variant, variant_name
from serving.errors import CodetrError
from serving.manifest import FILES, older_manifest
from tests.smallest import SMALLEST, built

NAMES = "give either a VARIANT (`codetr variants` lists them) or --config FILE of your own network"


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """Has every config describe SMALLEST, with the settings it holds in place of some of its own."""

    def from_mmdet_config(config, name):
        return SMALLEST.derive(name, **{key: value for key, value in config.items() if key != NOTES})

    monkeypatch.setattr("builder.variants.from_mmdet_config", from_mmdet_config)


@pytest.fixture
def config(tmp_path):
    """Path of a config."""
    (tmp_path / "mine.py").write_text("num_queries = 30", encoding="utf-8")
    return tmp_path / "mine.py"


@pytest.fixture
def fault(monkeypatch, capsys):
    """Runs `codetr` with arguments, which must fail with one line on standard error; returns the line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["codetr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_a_config_is_a_variant_by_its_file_name(config):
    assert given_variant(None, config, False) == SMALLEST.derive("mine", num_queries=30)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my config.v2.py", "my_config_v2"),
        ("Größe.json", "Gr_e"),
        ("a-b_c.py", "a-b_c"),
        ("----.py", "----"),
        ("ü.py", "custom"),
    ],
)
def test_a_file_name_becomes_a_legal_name(tmp_path, file, name):
    assert variant_name(tmp_path / file) == name


def test_a_preset_needs_no_config():
    assert given_variant("co_dino_r50_12e", None, False).name == "co_dino_r50_12e"


@pytest.mark.parametrize(
    ("name", "has_config", "execute", "expected"),
    [
        pytest.param(None, False, False, NAMES, id="neither"),
        pytest.param("co_dino_demo", True, False, NAMES, id="both"),
        pytest.param("co_dino_demo", False, True, "--execute-config is without effect here; add", id="nothing to run"),
    ],
)
def test_exactly_one_is_given(config, name, has_config, execute, expected):
    with pytest.raises(CodetrError) as raised:
        given_variant(name, config if has_config else None, execute)
    assert expected in str(raised.value)


def test_a_repository_needs_neither():
    assert read_variant(None, False) is None


def test_a_skipped_base_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builder.variants.from_mmdet_config", lambda config, name: SMALLEST)
    text = "_base_ = 'mmdet::x.py'\nmodel = dict(type='CoDETR', backbone=dict(type='ResNet'))"
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    read_variant(tmp_path / "a.py", False)
    assert capsys.readouterr().err == f"note: {tmp_path / 'a.py'}: mmdet::x.py was skipped: it is not installed here\n"


def test_execution_is_asked_of_the_reader(monkeypatch, config):
    asked = []
    monkeypatch.setattr("builder.reading.config_file.read_config", lambda *arguments: asked.append(arguments) or {})
    given_variant(None, config, True)
    assert asked == [(config, True)]


class TestBuild:
    """`codetr build --config`."""

    def test_it_builds_the_networks_engine(self, fault, monkeypatch, config, tmp_path):
        def build(options, *arguments):
            raise CodetrError(f"{options.variant} {options.weights} {options.spec.height}")

        monkeypatch.setattr("builder.pipeline.build.build_repository", build)
        line = fault("build", "--config", config, "--weights", "w.pth", "--repository", tmp_path / "r")
        variant = SMALLEST.derive("mine", num_queries=30)
        assert line == f"error: {variant} w.pth {variant.input_size[0]}"

    def test_a_variant_beside_it_is_refused(self, fault, config, tmp_path):
        arguments = ["--config", config, "--weights", "w.pth", "--repository", tmp_path / "r"]
        assert NAMES in fault("build", "co_dino_demo", *arguments)

    def test_neither_is_refused(self, fault, tmp_path):
        assert NAMES in fault("build", "--weights", "w.pth", "--repository", tmp_path / "r")

    def test_a_network_that_is_not_supported(self, fault, config, monkeypatch, tmp_path):
        def refuse(config, name):
            raise VariantError("neck.type='FPN' is not supported")

        monkeypatch.setattr("builder.variants.from_mmdet_config", refuse)
        line = fault("build", "--config", config, "--weights", "w.pth", "--repository", tmp_path / "r")
        assert line == "error: neck.type='FPN' is not supported"

    def test_a_config_that_cannot_be_read(self, fault, config, tmp_path):
        config.write_text("import os")
        line = fault("build", "--config", config, "--weights", "w.pth", "--repository", tmp_path / "r")
        assert f"error: {config}, line 1: `import os` is an import; where mmengine is installed, dump it" in line


class TestExistingEngines:
    """`codetr verify` and `codetr bench engine --repository` with a config that is the engine's, or another."""

    @pytest.fixture
    def repository(self, tmp_path):
        """A repository with a manifest alone, of SMALLEST with 30 queries."""
        from builder.pipeline.export import InputSpec
        from builder.pipeline.manifest import describe

        variant = SMALLEST.derive("other_name", num_queries=30)
        manifest = describe(variant, None, 0, built(), "float32", InputSpec(64, 64, 1, True), None)
        folder = tmp_path / "repository"
        folder.mkdir()
        (folder / older_manifest("codetr")).write_text(json.dumps(manifest | {FILES: {}}), encoding="utf-8")
        return folder

    @pytest.fixture(autouse=True)
    def reached(self, monkeypatch):
        """Has whatever comes after the check say so."""

        def reach(*arguments):
            raise CodetrError("reached")

        monkeypatch.setattr("builder.pipeline.recheck.chosen_names", lambda repository, name: ["codetr"])
        monkeypatch.setattr("builder.pipeline.recheck.verify_repository", reach)

    def test_verify_goes_on_with_its_own(self, fault, repository, config):
        assert fault("verify", repository, "--config", config) == "error: reached"

    def test_verify_refuses_another(self, fault, repository, config):
        config.write_text("num_queries = 31\nnum_classes = 5\nmax_detections = 40")
        assert fault("verify", repository, "--config", config) == (
            f"error: the engine codetr of {repository} was built from another network than mine: num_classes is 4, "
            "expected 5; num_queries is 30, expected 31; give the config it was built from, or build it again"
        )

    def test_class_names_are_compared_where_there_are_any(self, fault, repository, config):
        config.write_text("num_queries = 30\nclass_names = ('a', 'b', 'c', 'd')")
        assert "class_names differ in a, b, c, d;" in fault("verify", repository, "--config", config)

    @pytest.mark.parametrize(("queries", "expected"), [(30, "error: reached"), (31, "num_queries is 30, expected 31;")])
    def test_bench_engine(self, fault, monkeypatch, repository, config, queries, expected):
        def run(*arguments):
            raise CodetrError("reached")

        config.write_text(f"num_queries = {queries}")
        target = SimpleNamespace(name="codetr", variant=SMALLEST)
        monkeypatch.setattr("perf.engine.targets.existing_targets", lambda *arguments: [target])
        monkeypatch.setattr("perf.engine.run.run", run)
        line = fault("bench", "engine", "--repository", repository, "--config", config, "--random-weights")
        assert expected in line


def test_bench_engine_builds_the_configs_network(fault, monkeypatch, config, tmp_path):
    def run(targets, *arguments):
        raise CodetrError(f"{targets[0].variant}")

    monkeypatch.setattr("perf.engine.run.run", run)
    arguments = ["--random-weights", "--engine", "onnx", "--precision", "fp32", "--builds", tmp_path]
    line = fault("bench", "engine", "--config", config, *arguments)
    assert line == f"error: {SMALLEST.derive('mine', num_queries=30)}"


class TestEvaluate:
    """`codetr evaluate --source pytorch`."""

    @pytest.fixture
    def data(self, tmp_path):
        """The options for a data set of no images."""
        (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}', encoding="utf-8")
        return ["--annotations", tmp_path / "a.json", "--images", tmp_path, "--output", tmp_path / "out"]

    @pytest.fixture(autouse=True)
    def detector(self, monkeypatch):
        """Has the PyTorch detector say what it would be."""

        def detect(variant: Variant, weights, precision, device, setup):
            raise CodetrError(f"{variant.name} {variant.num_queries} {weights.name}")

        monkeypatch.setattr("perf.accuracy.detectors.pytorch_detect", detect)
        monkeypatch.setattr(
            "perf.accuracy.dataset.read_dataset",
            lambda *arguments: SimpleNamespace(images=(), coco=SimpleNamespace(notes=())),
        )

    def test_it_measures_the_configs_network(self, fault, config, data):
        options = ["--source", "pytorch", "--config", config, "--weights", "w.pth"]
        assert fault("evaluate", *options, *data) == "error: mine 30 w.pth"

    def test_it_measures_the_demo_without(self, fault, data):
        assert fault("evaluate", "--source", "pytorch", *data).startswith("error: co_dino_demo ")

    def test_it_has_the_weights_of_every_demo(self, fault, data):
        line = fault("evaluate", "--source", "pytorch", "--variant", "rtdetrv2_demo", *data)
        assert line == "error: rtdetrv2_demo 120 rtdetrv2_demo_fp16.safetensors"

    def test_it_needs_weights(self, fault, config, data):
        line = fault("evaluate", "--source", "pytorch", "--config", config, *data)
        assert line == "error: the variant mine needs --weights, its checkpoint"

    def test_a_variant_beside_it_is_refused(self, fault, config, data):
        line = fault("evaluate", "--source", "pytorch", "--config", config, "--variant", "co_dino_demo", *data)
        assert "give either --variant (`codetr variants` lists them) or --config FILE" in line


@pytest.mark.parametrize("command", [["build"], ["verify"], ["bench", "engine"], ["evaluate"]], ids=" ".join)
def test_every_command_warns_of_execution(command):
    group: Any = typer.main.get_command(cli.app)
    for word in command:
        group = group.commands[word]
    (option,) = [each for each in group.params if "--execute-config" in each.opts]
    assert "only for files that you trust" in option.help
    assert CliRunner().invoke(cli.app, [*command, "--help"]).exit_code == 0
