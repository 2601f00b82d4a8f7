from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from builder.engines import Device
from builder.engines.kinds import KINDS, BuiltEngine
from builder.pipeline.export import InputSpec
from builder.pipeline.repository import CANDIDATES, INPUTS, _adding, check_destination, write_repository
from builder.variants import SwinConfig, Variant
from model_repository import TEMPLATES
from serving.contract import DETECTOR, ENSEMBLE, POSTPROCESS, PREPROCESS, contract, model_name
from serving.errors import CodetrError
from serving.manifest import check_files, engine_names, manifest_path, older_manifest, read_manifest, sha256
from serving.model_config import instance_count, read_model_config
from serving.postprocess import PostprocessSettings
from serving.repository import check_repository
from serving.rules import Rules, Suppression
from serving.shared_engine import is_guest
from serving.triton import parse_settings
from serving.versions import Hold, served_engines, versions

TINY = Variant("tiny", SwinConfig(), num_classes=2, num_queries=6, max_detections=12, class_names=("cat", "Bär"))


@pytest.fixture
def engine_file(tmp_path: Path) -> Path:
    path = tmp_path / "some-engine.bin"
    path.write_bytes(b"an engine")
    return path


def write(
    destination: Path,
    engine_file: Path,
    kind: str = "onnx",
    device: Device | None = None,
    output_names: tuple[str, ...] = CANDIDATES,
    extra_files: tuple[Path, ...] = (),
    input_names: tuple[str, ...] = INPUTS,
    height: int = 64,
    width: int = 96,
    **options: Any,
) -> Path:
    place = device or KINDS[kind].devices[0]
    engine = BuiltEngine(engine_file, KINDS[kind], place, input_names, output_names, extra_files)
    variant, spec = options.pop("variant", TINY), InputSpec(height, width, 3)
    return write_repository(destination, engine, variant, spec, {"variant": "tiny"}, **options)


def read_config(repository: Path, model: str) -> Any:
    text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and inode of each file: a copy would have another inode."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_ino) for path in paths}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


CONFIGS = {f"{model}/config.pbtxt" for model in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS)}
COMMON = CONFIGS | {
    "codetr_preprocess/1/model.py",
    "codetr_postprocess/1/model.py",
    "codetr_detector/warmup/image_sizes",
    "codetr_detector/manifest.json",
}


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        pytest.param("onnx", {"codetr_detector/1/model.onnx", "codetr_detector/1/model.py"}, id="onnx"),
        pytest.param("tensorrt", {"codetr_detector/1/model.plan"}, id="tensorrt"),
    ],
)
def test_holds_what_the_kind_of_engine_needs_and_nothing_else(
    tmp_path: Path, engine_file: Path, kind: str, engine: set[str]
) -> None:
    repository = write(tmp_path / "repository", engine_file, kind=kind)
    assert files(repository) == COMMON | engine
    assert (repository / "codetr" / "1").is_dir()
    placed = next(path for path in sorted(engine) if not path.endswith(".py"))
    assert (repository / placed).read_bytes() == b"an engine"
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "some-engine.bin"}  # nothing left aside


def test_no_python_model_can_be_written_and_all_can_be_replaced(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    for _ in range(2):
        models = list(repository.glob("*/1/*.py"))
        assert len(models) == 3
        assert not [path for path in models if path.stat().st_mode & 0o222]
        write(repository, engine_file, overwrite=True)


@pytest.mark.parametrize("kind", ["onnx", "tensorrt"])
@pytest.mark.parametrize("model", [ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS])
def test_sizes_are_those_of_the_engine(tmp_path: Path, engine_file: Path, kind: str, model: str) -> None:
    config = read_config(write(tmp_path / "repository", engine_file, kind=kind), model)
    expected = contract(64, 96, 12)[model]
    assert [tuple(tensor.dims) for tensor in config.input] == [tensor.dims for tensor in expected.inputs]
    assert [tuple(tensor.dims) for tensor in config.output] == [tensor.dims for tensor in expected.outputs]
    assert config.max_batch_size == 3
    for warmup in config.model_warmup:
        assert tuple(warmup.inputs["images"].dims) == (64, 96, 3)


def test_warmup_claims_a_full_image(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    sizes = np.fromfile(repository / DETECTOR / "warmup" / "image_sizes", "<i4")
    np.testing.assert_array_equal(sizes, [64, 96])


@pytest.mark.parametrize("kind", ["onnx", "torch", "tensorrt"])
def test_nothing_is_sent_that_the_engine_does_not_read(tmp_path: Path, engine_file: Path, kind: str) -> None:
    repository = write(tmp_path / "repository", engine_file, kind=kind, input_names=("images",))
    detector = read_config(repository, DETECTOR)
    assert [(tensor.name, tuple(tensor.dims)) for tensor in detector.input] == [("images", (64, 96, 3))]
    assert [set(warmup.inputs) for warmup in detector.model_warmup] == [{"images"}]
    assert all(set(graph.input) == {"images"} for graph in detector.optimization.cuda.graph_spec)
    assert not (repository / DETECTOR / "warmup").exists()
    first, second, _ = read_config(repository, ENSEMBLE).ensemble_scheduling.step
    assert (set(first.output_map), set(second.input_map)) == ({"images", "original_sizes"}, {"images"})


@pytest.mark.parametrize("names", [(), ("image_sizes",), ("images", "masks")])
def test_inputs_beyond_the_contract_are_refused(tmp_path: Path, engine_file: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(CodetrError, match="inputs: expected images and perhaps image_sizes, got"):
        write(tmp_path / "repository", engine_file, input_names=names)
    assert not (tmp_path / "repository").exists()


def test_tensorrt_captures_a_cuda_graph_for_every_batch_size(tmp_path: Path, engine_file: Path) -> None:
    config = read_config(write(tmp_path / "repository", engine_file, kind="tensorrt"), DETECTOR)
    graphs = config.optimization.cuda.graph_spec
    assert [graph.batch_size for graph in graphs] == [1, 2, 3]
    assert all(tuple(graph.input["images"].dim) == (64, 96, 3) for graph in graphs)
    assert not read_config(write(tmp_path / "other", engine_file), DETECTOR).optimization.cuda.graph_spec


def test_class_names_and_rows_are_parameters(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    assert json.loads(read_config(repository, ENSEMBLE).parameters["class_names"].string_value) == ["cat", "Bär"]
    assert read_config(repository, POSTPROCESS).parameters["max_detections"].string_value == "12"


def test_the_ensemble_tells_what_engine_it_has(tmp_path: Path, engine_file: Path) -> None:
    engine = BuiltEngine(engine_file, KINDS["onnx"], "cpu", INPUTS, CANDIDATES)
    manifest = {"variant": "tiny", "precision": "fp32", "weights": {"file": "secret.pth"}, "device": None}
    repository = write_repository(tmp_path / "repository", engine, TINY, InputSpec(64, 96, 3), manifest)
    about = json.loads(read_config(repository, ENSEMBLE).parameters["about"].string_value)
    assert about == {"variant": "tiny", "precision": "fp32"}


@pytest.mark.parametrize("rule", [Suppression(), Suppression("hard", 0.5, 0.01, 0.25, True), Suppression("none")])
def test_the_server_suppresses_as_the_variant(tmp_path: Path, engine_file: Path, rule: Suppression) -> None:
    repository = write(tmp_path / "repository", engine_file, variant=replace(TINY, rules=Rules(suppression=rule)))
    config = json.loads(
        json_format.MessageToJson(read_config(repository, POSTPROCESS), preserving_proto_field_name=True)
    )
    assert parse_settings(PostprocessSettings, config) == PostprocessSettings.of(rule, 12)


def test_the_ensemble_maps_a_plans_own_output_names(tmp_path: Path, engine_file: Path) -> None:
    names = ("output0", "output1", "output2")
    repository = write(tmp_path / "repository", engine_file, kind="tensorrt", output_names=names)
    assert tuple(output.name for output in read_config(repository, DETECTOR).output) == names
    ensemble = read_config(repository, ENSEMBLE)
    detector, postprocess = ensemble.ensemble_scheduling.step[1:]
    assert set(detector.output_map) == set(names)
    for name, contract_name in zip(names, ("boxes", "scores", "labels"), strict=True):
        assert postprocess.input_map[contract_name] == detector.output_map[name]


def test_manifest_holds_the_hash_of_every_engine_file(tmp_path: Path, engine_file: Path) -> None:
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"weights")
    repository = write(tmp_path / "repository", engine_file, extra_files=(data,))
    assert read_manifest(repository) == {
        "variant": "tiny",
        "files": {
            "codetr_detector/1/model.onnx": sha256(engine_file),
            "codetr_detector/1/model.onnx.data": sha256(data),
        },
    }
    check_files(repository)


def test_templates_are_left_alone(tmp_path: Path, engine_file: Path) -> None:
    def state() -> dict[Path, tuple[bytes, int]]:
        # without byte code, which other processes of the tests write when they import a template
        files = (path for path in TEMPLATES.rglob("*.*") if path.suffix in (".py", ".pbtxt"))
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    write(tmp_path / "repository", engine_file, kind="tensorrt")
    assert len(before) > 8
    assert state() == before


def test_an_engine_is_replaced_whole_if_told(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    before = content(repository)
    with pytest.raises(CodetrError, match=r"has an engine codetr; give .* another name, make it version 2, or"):
        write(repository, engine_file, kind="tensorrt")
    assert content(repository) == before
    write(repository, engine_file, kind="tensorrt", overwrite=True)
    assert "codetr_detector/1/model.plan" in files(repository)
    assert "codetr_detector/1/model.onnx" not in files(repository)


def test_a_foreign_folder_is_refused_unless_told_and_keeps_its_files(tmp_path: Path, engine_file: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"dear to someone")
    with pytest.raises(CodetrError, match="photos is not empty and no repository of this project"):
        write(folder, engine_file)
    assert files(folder) == {"holiday.jpg"}
    write(folder, engine_file, overwrite=True)
    assert files(folder) > {"holiday.jpg", "codetr_detector/manifest.json"}


def test_a_folder_that_holds_folders_is_refused_with_their_names(tmp_path: Path, engine_file: Path) -> None:
    for folder in ("photos", ".hidden"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    with pytest.raises(CodetrError, match=r"mine has folders that are no models: \.hidden, photos; .* move them away"):
        write(tmp_path / "mine", engine_file, overwrite=True)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"photos", ".hidden"}


def test_a_damaged_engine_can_be_replaced(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    (repository / PREPROCESS / "config.pbtxt").unlink()
    write(repository, engine_file, overwrite=True)
    assert files(repository) >= COMMON


def test_a_place_below_a_file_is_refused_at_once(tmp_path: Path, engine_file: Path) -> None:
    with pytest.raises(CodetrError, match=r"some-engine\.bin cannot be written \(Not a directory\); name another"):
        check_destination(engine_file / "deep" / "repository", "codetr", overwrite=False)


@pytest.mark.parametrize("protected", ["repository", "."], ids=["the repository", "the folder around a new one"])
def test_a_folder_of_another_user_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protected: str
) -> None:
    if protected == "repository":
        (tmp_path / "repository").mkdir()
    make = tempfile.TemporaryDirectory

    def refused(prefix: str, dir: Path) -> Any:  # noqa: A002  # the standard library's name
        if dir == tmp_path / protected:
            raise PermissionError(13, "Permission denied")
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr("builder.pipeline.repository.tempfile.TemporaryDirectory", refused)
    with pytest.raises(CodetrError, match=rf"cannot be written \(Permission denied\); .* let user {os.getuid()} write"):
        check_destination(tmp_path / "repository", "codetr", overwrite=False)


def killed_build(repository: Path, inside: bool) -> Path:
    """Have a build killed while it writes; return its work folder."""
    code = (
        "import os, pathlib, signal, sys, builder.pipeline.repository as r\n"
        f"r._same_writable_disk = lambda parent, folder: {not inside}\n"
        "with r._adding(pathlib.Path(sys.argv[1]), 'codetr') as folder:\n"
        "    print(folder.parent, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(repository)], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    return Path(done.stdout.strip())


@pytest.mark.parametrize("inside", [True, False])
def test_the_next_build_removes_what_a_killed_one_left(tmp_path: Path, engine_file: Path, inside: bool) -> None:
    repository = write(tmp_path / "repository", engine_file)
    left = killed_build(repository, inside)
    assert left.parent == (repository if inside else tmp_path)
    write(repository, engine_file, name="large")
    assert not left.exists()
    assert engine_names(repository) == ["codetr", "large"]


def test_the_work_folder_of_a_running_build_stays(tmp_path: Path) -> None:
    with _adding(tmp_path / "repository", "codetr") as folder:
        check_destination(tmp_path / "repository", "large", overwrite=False)
        assert folder.is_dir()


def test_parts_that_a_killed_build_moved_aside_are_not_removed(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    left = killed_build(repository, inside=True)
    (left / "new" / DETECTOR).mkdir()
    (left / "former").mkdir()
    shutil.move(repository / DETECTOR, left / "former")
    with pytest.raises(CodetrError, match=r"parts of the engine it was replacing in .*former; move them back to"):
        write(repository, engine_file, overwrite=True)
    assert (left / "former" / DETECTOR / "1" / "model.onnx").is_file()


def test_a_second_engine_has_its_own_ensemble_and_leaves_the_first_alone(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    before = content(repository)
    write(repository, engine_file, name="large", height=128, width=160)
    assert {key: value for key, value in content(repository).items() if key in before} == before
    assert files(repository) - before.keys() == {
        "large_detector/manifest.json",
        "large/config.pbtxt",
        "large_preprocess/config.pbtxt",
        "large_preprocess/1/model.py",
        "large_detector/config.pbtxt",
        "large_detector/1/model.onnx",
        "large_detector/1/model.py",
        "large_detector/warmup/image_sizes",
        "large_postprocess/config.pbtxt",
        "large_postprocess/1/model.py",
    }
    for model in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS):
        assert read_config(repository, model_name(model, "large")).name == model_name(model, "large")
    steps = read_config(repository, "large").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["large_preprocess", "large_detector", "large_postprocess"]
    assert tuple(read_config(repository, "large_detector").input[0].dims) == (128, 160, 3)
    assert engine_names(repository) == ["codetr", "large"]
    assert list(read_manifest(repository, "large")["files"]) == ["large_detector/1/model.onnx"]


def test_a_version_is_written_beside_the_others_and_not_served(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    before = content(repository)
    write(repository, engine_file, name="codetr.2", height=128, width=160)
    assert {key: value for key, value in content(repository).items() if key in before} == before
    steps = read_config(repository, "codetr.2").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["codetr.2_preprocess", "codetr.2_detector", "codetr.2_postprocess"]
    assert versions(repository) == {"codetr": [1, 2]}
    assert served_engines(repository) == ["codetr"]
    check_repository(repository)
    with pytest.raises(CodetrError, match=r"has an engine codetr\.2; give .* make it version 3, or overwrite it"):
        write(repository, engine_file, name="codetr.2")


@pytest.mark.parametrize("name", ["a.b", "a.0", "a.2.3", ".2", "a_detector.2"])
def test_a_name_with_what_is_no_version_is_refused(tmp_path: Path, engine_file: Path, name: str) -> None:
    with pytest.raises(CodetrError, match="is not possible; expected letters"):
        write(tmp_path / "repository", engine_file, name=name)


def test_an_engine_that_a_server_runs_on_is_not_overwritten(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    hold, before = Hold(repository, "codetr"), content(repository)
    with pytest.raises(CodetrError, match=r"a server runs on the engine codetr of .*; build version 2 beside it"):
        write(repository, engine_file, overwrite=True)
    assert content(repository) == before
    hold.release()
    write(repository, engine_file, overwrite=True)
    assert content(repository) != before


@pytest.mark.parametrize(
    ("kind", "device", "instances", "count"),
    [
        ("onnx", "cpu", None, 1),
        ("onnx", "cpu", 3, 3),
        ("torch", "cpu", None, 1),
        ("torch", "cpu", 2, 2),
        ("torch", "cuda", 1, 1),
        ("tensorrt", "cuda", None, 2),
        ("tensorrt", "cuda", 1, 1),
    ],
)
def test_instances_run_where_the_engine_does(
    tmp_path: Path, engine_file: Path, kind: str, device: Device, instances: int | None, count: int
) -> None:
    repository = write(tmp_path / "repository", engine_file, kind=kind, device=device, instances=instances)
    (group,) = read_config(repository, DETECTOR).instance_group
    place = {"cpu": "CPU", "cuda": "GPU"}[device]
    assert group.kind == model_config_pb2.ModelInstanceGroup.Kind.Value(f"KIND_{place}")
    assert group.count == count
    assert list(group.gpus) == [], "on each that the server sees"


@pytest.mark.parametrize(
    ("instances", "count"), [pytest.param(None, 2, id="the default"), pytest.param(2, 2, id="as asked"), (5, 5)]
)
def test_instances_of_a_torch_engine_on_a_gpu_share_one(
    tmp_path: Path, engine_file: Path, instances: int | None, count: int
) -> None:
    repository = write(tmp_path / "repository", engine_file, kind="torch", instances=instances, name="large")
    engine, guests = read_config(repository, "large_detector").instance_group
    assert (engine.name, engine.count, guests.count) == ("", 1, count - 1)
    assert engine.kind == guests.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert list(guests.gpus) == [], "one for each engine"
    assert is_guest(guests.name)
    assert guests.name.startswith("large_detector"), "by which processes are told"
    assert instance_count(read_model_config(repository / "large_detector" / "config.pbtxt")) == count


def test_overwriting_one_engine_leaves_the_others(tmp_path: Path, engine_file: Path) -> None:
    repository = write(tmp_path / "repository", engine_file)
    write(repository, engine_file, name="large")
    before = {key: value for key, value in content(repository).items() if not key.startswith("large")}
    write(repository, engine_file, name="large", kind="tensorrt", overwrite=True)
    after = content(repository)
    assert {key: value for key, value in after.items() if not key.startswith("large")} == before
    assert "large_detector/1/model.plan" in after
    assert "large_detector/1/model.onnx" not in after


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a.b", "day_detector", "day_preprocess"])
def test_impossible_names_are_refused(tmp_path: Path, engine_file: Path, name: str) -> None:
    with pytest.raises(CodetrError, match=f"name {name!r} is not possible; expected letters"):
        write(tmp_path / "repository", engine_file, name=name)
    assert files(tmp_path) == {"some-engine.bin"}


@pytest.mark.parametrize("renames", range(8))  # four old parts go, four new ones come
def test_ctrl_c_between_two_renames_leaves_what_was_there(
    tmp_path: Path, engine_file: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    repository = write(tmp_path / "repository", engine_file)
    write(repository, engine_file, name="large")
    before = content(repository)
    rename, done = Path.rename, []

    def interrupted(path: Path, target: Path) -> Any:
        done.append(path)
        if len(done) == renames + 1:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(repository, engine_file, kind="tensorrt", overwrite=True)
    assert content(repository) == before
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "some-engine.bin"}


def test_a_repository_whose_parent_cannot_be_used_is_written_from_inside(
    tmp_path: Path, engine_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mounted folder is in a container."""
    monkeypatch.setattr("builder.pipeline.repository._same_writable_disk", lambda parent, folder: False)
    monkeypatch.setattr("builder.pipeline.repository.tempfile.TemporaryDirectory", in_folder(tmp_path / "mount"))
    (tmp_path / "mount").mkdir()
    write(tmp_path / "mount", engine_file)
    assert files(tmp_path / "mount") >= COMMON
    assert all(not path.name.startswith(".") for path in (tmp_path / "mount").iterdir())


def in_folder(expected: Path) -> Any:
    make = tempfile.TemporaryDirectory

    def checked(prefix: str, dir: Path) -> Any:  # noqa: A002  # the standard library's name
        assert dir == expected
        return make(prefix=prefix, dir=dir)

    return checked


def test_the_verification_report_lies_where_triton_sees_no_model(tmp_path: Path, engine_file: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("agrees")
    repository = write(tmp_path / "repository", engine_file, report=tmp_path / "report", name="large")
    assert (repository / "large_detector" / "verification" / "report.md").read_text() == "agrees"


def test_an_empty_or_new_folder_is_taken(tmp_path: Path, engine_file: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert files(write(tmp_path / "empty", engine_file)) >= COMMON
    assert files(write(tmp_path / "new" / "nested", engine_file)) >= COMMON


def test_what_was_there_survives_a_failure(tmp_path: Path, engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = write(tmp_path / "repository", engine_file)
    before = files(repository)

    def full_disk(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builder.pipeline.repository.shutil.copyfile", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(repository, engine_file, kind="tensorrt", overwrite=True)
    assert files(repository) == before
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "some-engine.bin"}


@pytest.mark.parametrize("name", ["codetr", "large"])
def test_an_engine_of_an_older_repository_is_replaced_with_its_manifest(
    tmp_path: Path, engine_file: Path, name: str
) -> None:
    repository = write(tmp_path / "repository", engine_file, name=name)
    older = repository / older_manifest(name)
    manifest_path(repository, name).rename(older)  # as before it lay in the detector's folder
    assert engine_names(repository) == [name]
    check_files(repository, name)
    engine_file.write_bytes(b"another")
    write(repository, engine_file, name=name, overwrite=True)
    assert not older.exists()
    assert set(read_manifest(repository, name)["files"].values()) == {sha256(engine_file)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"output_names": ("a",)}, "outputs: expected the names of boxes, scores, labels", id="names"),
        pytest.param({"extra_files": (Path("nowhere"),)}, "no engine file at nowhere", id="missing file"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, engine_file: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CodetrError, match=message):
        write(tmp_path / "repository", engine_file, **options)
    assert not (tmp_path / "repository").exists()
