import copy
import dataclasses
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from builder import get_variant
from builder.engines import EngineError, output_of
from builder.engines.tensorrt import plugin_onnx
from builder.pipeline.build import BuildOptions, build_repository, compare_engine, write_plugin_onnx
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe, variant_of
from builder.pipeline.verify import LIMITS, Limits, VerificationError, detections
from builder.quantise.layers import QuantisedLinear
from builder.quantise.recipe import AP_BUDGET, Recipe
from demo import DEMO_WEIGHTS
from demo.shapes.dataset import write_dataset
from serving.errors import CodetrError
from serving.manifest import engine_names, read_manifest
from serving.rules import Rules, Suppression
from tests.smallest import SMALLEST, built

SPEC = InputSpec(64, 96)
SMALL = get_variant("co_dino_r50_12e").derive("small", num_classes=8, num_queries=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "caffe"}, "engine 'caffe' is not known; expected onnx"),
        (
            {"engine": "onnx", "precision": "float16"},
            "onnx engine has no precision fp16; give fp32, int8, or use the torch engine",
        ),
    ],
)
def test_impossible_options_are_named_before_anything_is_done(tmp_path, options, message):
    with pytest.raises(EngineError, match=message):
        build_repository(BuildOptions(SMALL, SPEC, **options), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_full_disk_is_named_before_the_long_part(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr("builder.pipeline.build.export_detector", lambda *args: pytest.fail("the export was started"))
    with pytest.raises(CodetrError, match=r"0\.0 GiB free, the build needs 0\.5 GiB"):
        build_repository(BuildOptions(SMALL, SPEC), tmp_path / "repository")


@pytest.fixture
def stand_in(monkeypatch):
    """An engine that is the detector itself with its boxes moved by `shift`; nothing is exported."""
    made = SimpleNamespace(shift=0.0, detector=None)

    def export(detector, spec):
        made.detector = detector

    def build(program, path, settings):
        path.write_bytes(b"an engine")
        return built(file=path)

    def load(path, spec, device, settings):
        def run(images, image_sizes):
            boxes, *rest = made.detector(torch.from_numpy(images), torch.from_numpy(image_sizes))
            return output_of(tensor.detach() for tensor in (boxes + made.shift, *rest))

        return run

    monkeypatch.setattr("builder.pipeline.build.export_detector", export)
    monkeypatch.setattr("builder.engines.onnx.build", build)
    monkeypatch.setattr("builder.engines.onnx.load", load)
    return made


@pytest.fixture
def photos(tmp_path_factory):
    """Two small images: enough where the comparison itself is not tested."""
    annotations = write_dataset(tmp_path_factory.mktemp("photos"), images=2, seed=20)
    annotations.unlink()
    return annotations.parent / "images"


def test_a_second_name_is_added_and_the_same_is_refused_at_once(tmp_path, stand_in, photos, monkeypatch):
    repository = tmp_path / "repository"
    build_repository(BuildOptions(SMALLEST, SPEC, verify_images=photos), repository)
    build_repository(BuildOptions(SMALLEST, InputSpec(96, 64), verify_images=photos, name="portrait"), repository)
    assert [read_manifest(repository, name)["height"] for name in engine_names(repository)] == [64, 96]
    monkeypatch.setattr("builder.pipeline.build.load", lambda options: pytest.fail("the weights were loaded"))
    with pytest.raises(CodetrError, match="has an engine portrait; give the new one another name"):
        build_repository(BuildOptions(SMALLEST, SPEC, name="portrait"), repository)


def test_verification_and_server_suppress_as_the_variant(tmp_path, stand_in, photos, monkeypatch):
    used = []
    monkeypatch.setattr("builder.pipeline.report.detections", lambda *args: used.append(args[2]) or detections(*args))
    monkeypatch.setattr("builder.pipeline.verify.average_precision", lambda *args: used.append(args[-1]))
    variant = dataclasses.replace(SMALLEST, rules=Rules(suppression=Suppression("hard", 0.5, score_threshold=0.125)))
    build_repository(BuildOptions(variant, SPEC, verify_images=photos), tmp_path / "repository")
    assert used == [variant.rules.suppression] * 4
    config = (tmp_path / "repository" / "codetr_postprocess" / "config.pbtxt").read_text()
    assert all(f'string_value: "{value}"' in config for value in ("hard", "0.5", "0.125"))


def test_the_report_is_in_the_repository(tmp_path, stand_in, photos):
    result = build_repository(BuildOptions(SMALLEST, SPEC, verify_images=photos), tmp_path / "repository")
    report = tmp_path / "repository" / "codetr_detector" / "verification"
    figures = json.loads((report / "verification.json").read_text())
    assert (figures["agrees"], figures["matched"], figures["ap"]) == (True, 1.0, None)
    assert read_manifest(tmp_path / "repository")["verification"] == result.to_dict()
    assert len(list(report.glob("*.jpg"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"repository"}


def test_a_disagreeing_engine_leaves_a_report_and_no_repository(tmp_path, stand_in, photos):
    stand_in.shift = 0.3
    for _ in range(2):  # the second replaces the first one's report
        with pytest.raises(VerificationError, match=r"the report with pictures is in .*r-codetr-verification$"):
            build_repository(BuildOptions(SMALLEST, SPEC, verify_images=photos), tmp_path / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["r-codetr-verification"]
    kept = tmp_path / "r-codetr-verification"
    assert "does not reproduce the detector" in (kept / "report.md").read_text()
    assert len(list(kept.glob("*.jpg"))) == 2


def test_random_weights_in_less_than_float32_are_said_to_be_no_measure(tmp_path, stand_in, photos):
    stand_in.shift = 0.3
    options = BuildOptions(SMALLEST, SPEC, precision="int8", recipe=Recipe(images=photos), verify_images=photos)
    with pytest.raises(VerificationError, match="r-codetr-verification; random weights give candidates that are near"):
        build_repository(options, tmp_path / "r")


@pytest.mark.parametrize("shift", [0.0, 0.3], ids=["agrees", "disagrees"])
def test_the_report_goes_where_it_is_asked_for(tmp_path, stand_in, photos, shift):
    stand_in.shift = shift
    options = BuildOptions(SMALLEST, SPEC, verify_images=photos, report=tmp_path / "mounted" / "report")
    with nullcontext() if shift == 0 else pytest.raises(VerificationError, match="mounted/report/r-codetr-verific"):
        build_repository(options, tmp_path / "r")
    assert (tmp_path / "mounted" / "report" / "r-codetr-verification" / "report.md").is_file()
    assert not (tmp_path / "r-codetr-verification").exists()


@pytest.mark.parametrize(
    ("report", "message"),
    [("r/report", "lies in the repository, where"), ("file/report", r"file cannot be written .* name another folder")],
)
def test_an_impossible_report_folder_is_named_at_once(tmp_path, monkeypatch, report, message):
    (tmp_path / "file").touch()
    monkeypatch.setattr("builder.pipeline.build.load", lambda options: pytest.fail("the weights were loaded"))
    with pytest.raises(CodetrError, match=message):
        build_repository(BuildOptions(SMALLEST, SPEC, report=tmp_path / report), tmp_path / "r")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "CUDA out of memory; end what else runs on the GPU .* smaller batch",
        ),
        (MemoryError(), "MemoryError; memory is full: end other programs, or choose a smaller batch or size"),
        (RuntimeError("x DefaultCPUAllocator: can't allocate memory\nmore"), "can't allocate memory; memory is full"),
        (OSError(28, "No space left on device", "/x"), "No space left on device: '/x'; look at that path's disk"),
    ],
    ids=["GPU", "host", "PyTorch on the host", "disk"],
)
@pytest.mark.parametrize("step", ["export_detector", "compare_engine", "write_repository"])
def test_full_memory_and_disks_are_one_line(tmp_path, stand_in, photos, monkeypatch, step, error, message):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(f"builder.pipeline.build.{step}", full)
    with pytest.raises(CodetrError, match=f"^'(export|verify|write repository)' failed: .*{message}"):
        build_repository(BuildOptions(SMALLEST, SPEC, verify_images=photos), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    assert (tmp_path / "r-codetr-build.log").exists() == (step == "export_detector")


def test_no_folder_for_temporary_files_is_named(tmp_path, stand_in, photos, monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("builder.pipeline.build.tempfile.gettempdir", nowhere)
    with pytest.raises(CodetrError, match="no folder for temporary files; set TMPDIR"):
        build_repository(BuildOptions(SMALLEST, SPEC, verify_images=photos), tmp_path / "r")


@pytest.fixture
def unexported(monkeypatch):
    """Nothing is exported, which takes seconds: what writes the file is a stand-in as well."""
    monkeypatch.setattr("builder.pipeline.build.export_detector", lambda *args: None)
    monkeypatch.setattr("builder.pipeline.build.decompose_attention", lambda program, **options: program)


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError("the checker says no")])
def test_a_failed_plugin_file_leaves_the_former(tmp_path, monkeypatch, unexported, error):
    def half(program, path):
        path.write_bytes(b"half")
        raise error

    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"the former")
    monkeypatch.setattr(plugin_onnx, "build", half)
    with pytest.raises((KeyboardInterrupt, EngineError)):
        write_plugin_onnx(BuildOptions(SMALLEST, SPEC, overwrite=True, report=tmp_path / "log"), folder)
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert (folder / "model.onnx").read_bytes() == b"the former"
    kept = [path.name for path in (tmp_path / "log").iterdir()]
    assert kept == ([] if error is KeyboardInterrupt else ["plugin-codetr-build.log"])


def test_a_plugin_file_replaces_the_former(tmp_path, monkeypatch, unexported):
    (tmp_path / "model.onnx").write_bytes(b"the former")
    monkeypatch.setattr(plugin_onnx, "build", lambda program, path: path.write_bytes(b"the new"))
    path = write_plugin_onnx(BuildOptions(SMALLEST, SPEC, overwrite=True), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the new"


def test_the_shapes_detector_is_compared_by_ap_too(tmp_path, stand_in):
    write_dataset(tmp_path / "data", images=2, seed=20)
    options = BuildOptions(
        get_variant("co_dino_demo"), InputSpec(96, 144, 1), DEMO_WEIGHTS, verify_images=tmp_path / "data" / "images"
    )
    result = build_repository(options, tmp_path / "repository")
    assert 0 < result.ap <= 1
    assert result.ap_difference == 0


@pytest.mark.parametrize("name", ["co_dino_swin_l_o365", "co_dino_r50_lsj_36e"])
def test_a_manifest_gives_its_variant_back(name):
    variant = dataclasses.replace(get_variant(name), class_names=tuple(map(str, range(80))))
    manifest = describe(variant, None, 7, built(), "float32", SPEC, None)
    assert variant_of(json.loads(json.dumps(manifest))) == variant
    assert (manifest["weights"], manifest["seed"]) == (None, 7)


def test_a_manifest_without_a_network_is_named():
    with pytest.raises(CodetrError, match="no network this version knows"):
        variant_of({"variant": "x"})


@pytest.fixture
def lenient(monkeypatch):
    """Random weights do not keep their candidates."""
    monkeypatch.setitem(LIMITS, "int8", Limits(0.0, 1.0, 1.0))


def test_a_quantised_build_says_in_its_manifest_and_report_what_was_done(tmp_path, stand_in, photos, lenient):
    options = BuildOptions(SMALLEST, SPEC, precision="int8", recipe=Recipe(images=photos), verify_images=photos)
    build_repository(options, tmp_path / "repository")
    manifest = read_manifest(tmp_path / "repository")
    groups = ["backbone-convs", "backbone-linears", "neck"]
    assert (manifest["precision"], manifest["quantisation"]) == (
        "int8",
        {
            "layers": groups,
            "quantised": 7,
            "method": "percentile",
            "calibration": {"source": "images", "images": 2},
            "search": None,
        },
    )
    made = dict(stand_in.detector.named_modules())
    assert isinstance(made["backbone.stages.0.blocks.0.fc1"], QuantisedLinear)
    assert type(made["decoder.layers.0.ffn.0"]) is torch.nn.Linear
    report = (tmp_path / "repository" / "codetr_detector" / "verification" / "report.md").read_text()
    assert (
        "7 layers are int8: backbone-convs, backbone-linears, neck. Their ranges (percentile) were seen on 2" in report
    )


@pytest.fixture
def trials(monkeypatch, stand_in, lenient):
    """Trials with the stand-in, whose time is less the more groups are quantised; returns the sets that were timed."""
    timed = []

    def milliseconds(engine, images, sizes):
        layers = [type(layer).__name__ for layer in stand_in.detector.modules()]
        timed.append(layers.count("QuantisedLinear") + layers.count("QuantisedConv2d"))
        return 10.0 - timed[-1] / 10

    def export(detector, spec):
        stand_in.detector = detector

    monkeypatch.setattr("builder.quantise.trials.export_detector", export)
    monkeypatch.setattr("builder.quantise.trials.processor_milliseconds", milliseconds)
    monkeypatch.setattr("builder.quantise.trials.CONFIDENT", 0.0)  # what random weights are never above
    return timed


@pytest.mark.parametrize("search", [False, True], ids=["build", "search"])
def test_what_an_engine_prepares_is_exported(tmp_path, monkeypatch, photos, trials, stand_in, search):
    """The detector itself stays as it was: a search prepares it again."""
    prepared = []

    def prepare(detector):
        prepared.append(copy.copy(detector))
        return prepared[-1]

    monkeypatch.setattr("builder.engines.onnx.prepared", prepare)
    recipe = Recipe(("neck",), images=photos, search=search, ap_budget=0.9 if search else AP_BUDGET)
    options = BuildOptions(SMALLEST, SPEC, precision="int8", recipe=recipe, verify_images=photos)
    build_repository(options, tmp_path / "repository")
    assert len(prepared) == (3 if search else 1)  # nothing quantised, the neck, and the engine that is kept
    assert stand_in.detector is prepared[-1]


def test_a_search_keeps_the_fastest_set_and_its_table(tmp_path, trials, photos):
    recipe = Recipe(("backbone-linears", "neck"), images=photos, search=True, ap_budget=0.9)
    options = BuildOptions(SMALLEST, SPEC, precision="int8", recipe=recipe, verify_images=photos)
    build_repository(options, tmp_path / "repository")
    assert trials == [0, 4, 2, 6]
    manifest = read_manifest(tmp_path / "repository")["quantisation"]
    assert manifest["layers"] == ["backbone-linears", "neck"]
    assert [trial["groups"] for trial in manifest["search"]["trials"]] == [
        [],
        ["backbone-linears"],
        ["neck"],
        ["backbone-linears", "neck"],
    ]
    report = (tmp_path / "repository" / "codetr_detector" / "verification" / "report.md").read_text()
    assert "| backbone-linears, neck | 6 |" in report
    assert "float32's own detections on 2 pictures; the budget is 0.9." in report


def test_what_a_search_may_lose_is_no_fault_of_its_engine(tmp_path, trials, photos, monkeypatch):
    monkeypatch.setitem(LIMITS, "int8", Limits(0.0, 1.0, 0.0))
    judged = []

    def compare(*arguments):
        judged.append(arguments[-1])
        return compare_engine(*arguments)

    monkeypatch.setattr("builder.pipeline.build.compare_engine", compare)
    recipe = Recipe(("neck",), images=photos, search=True, ap_budget=0.9)
    options = BuildOptions(SMALLEST, SPEC, precision="int8", recipe=recipe, verify_images=photos)
    build_repository(options, tmp_path / "repository")
    assert judged == [Limits(0.0, 1.0, 0.9)]


def test_a_search_in_which_nothing_pays_writes_nothing(tmp_path, trials, photos, monkeypatch):
    monkeypatch.setattr("builder.quantise.trials.processor_milliseconds", lambda engine, images, sizes: 5.0)
    recipe = Recipe(("neck",), images=photos, search=True)
    options = BuildOptions(SMALLEST, SPEC, precision="int8", recipe=recipe, verify_images=photos)
    with pytest.raises(EngineError, match="no group makes the engine faster"):
        build_repository(options, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_folder_without_pictures_is_named_before_the_weights_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("builder.pipeline.build.load", lambda options: pytest.fail("the weights were loaded"))
    options = BuildOptions(SMALLEST, SPEC, precision="int8", recipe=Recipe(images=tmp_path))
    with pytest.raises(CodetrError, match=r"holds no images \(.*\) to calibrate on"):
        build_repository(options, tmp_path / "repository")


def test_a_recipe_without_a_quantised_precision_is_refused():
    with pytest.raises(EngineError, match="what is quantised and how is for int8 and fp8, and the precision is fp32"):
        BuildOptions(SMALLEST, SPEC, recipe=Recipe(("neck",)))
