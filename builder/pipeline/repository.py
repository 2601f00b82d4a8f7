"""An engine file to a folder that `tritonserver` loads as it is."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from builder.engines.kinds import BuiltEngine, EngineKind
from builder.family import DetectorConfig
from builder.pipeline.export import InputSpec
from model_repository import TEMPLATES
from serving.contract import (
    DETECTOR,
    ENSEMBLE,
    GUESTS,
    MODELS,
    POSTPROCESS,
    PREPROCESS,
    ModelContract,
    contract,
    model_name,
)
from serving.errors import CodetrError
from serving.manifest import ABOUT, FILES, MANIFEST, engine_names, foreign_folders, older_manifest, sha256
from serving.postprocess import PostprocessSettings
from serving.preprocess import pixel_parameters
from serving.versions import is_held, name_and_version, versions

# Within the detector's folder, because Triton takes every folder of a repository for a model.
REPORT_FOLDER = "verification"
_LOCK = "codetr-build.lock"  # in a work folder, held by the build that works there
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # no dot: the manifest's name has one
# Unless told, of an engine that they share: while it computes one's batch, the other's is copied.
_SHARING_INSTANCES = 2


# What the detector's inputs and outputs are called, in the order of the contract.
INPUTS = tuple(tensor.name for tensor in contract(1, 1)[DETECTOR].inputs)
CANDIDATES = tuple(tensor.name for tensor in contract(1, 1)[DETECTOR].outputs)


def write_repository(
    destination: Path,
    engine: BuiltEngine,
    variant: DetectorConfig,
    spec: InputSpec,
    manifest: Mapping[str, Any],
    *,
    name: str = ENSEMBLE,
    instances: int | None = None,
    report: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a Triton model repository around one engine, or add the engine to one that is there.

    Everything is written aside and renamed when it is complete; engines of other names are left as they are. The
    tracked `model_repository/` is only read.

    Args:
        destination: the repository's folder.
        engine: its file is copied under the name that its kind has for it. Where it has own names for its outputs
            (torch_tensorrt calls a plan's output0, output1, output2), the ensemble maps them, so clients see no
            difference. What it does not read is not sent to it.
        variant: its rows of outputs, its rules, and its class names in label order; clients read these as the
            parameter `class_names` (JSON) of the ensemble's config.
        spec: the engine's input size and the most images in one inference; of all four models alike.
        manifest: what is known about the engine; `files`, the SHA-256 of each engine file by its path in the
            repository, is added, and all of it written to `manifest.json` in the detector's folder.
        name: of the ensemble; the three other models begin with it. `serving.versions.versioned` gives a version's.
        instances: how many of the engine run, on GPUs on each of them; None for two of a torch engine on a GPU, which
            share it, and for any other its template's own number.
        report: folder with the report of the engine's verification, copied into the detector's.
        overwrite: replace an engine of this name; write into a folder that holds something else.

    Returns:
        `destination`.

    Raises:
        CodetrError: the engine file is missing, an argument is impossible, or the folder holds something else.
    """
    _check_engine(engine)
    check_destination(destination, name, overwrite)
    with _adding(destination, name) as folder:
        for model in contract(spec.height, spec.width, variant.max_detections).values():
            config = _read_config(model.name, engine.kind)
            _leave_out(config, [name for name in INPUTS if name not in engine.inputs])
            _set_sizes(config, model, spec.max_batch_size)
            _customise(config, variant, engine)
            if config.name == DETECTOR:
                _set_instances(config, model_name(DETECTOR, name), engine, instances)
            if config.name == ENSEMBLE:
                config.parameters[ABOUT].string_value = json.dumps(_about(manifest), ensure_ascii=False)
            _rename(config, name)
            _write_model(folder / config.name, config, model.name, engine.kind)
        detector = folder / model_name(DETECTOR, name)
        if "image_sizes" in engine.inputs:
            _write_warmup(detector, spec.height, spec.width)
        engines = {engine.kind.file_name: engine.file, **{path.name: path for path in engine.extra_files}}
        files = _place(folder, {f"{detector.name}/1/{file}": path for file, path in engines.items()})
        if report is not None:
            shutil.copytree(report, detector / REPORT_FOLDER)
        text = json.dumps({**manifest, FILES: files}, indent=2, ensure_ascii=False)
        (detector / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return destination


def check_destination(destination: Path, name: str, overwrite: bool) -> None:
    """Check that an engine called `name` can be written to `destination`; remove what killed builds left there.

    Raises:
        CodetrError: the name is impossible or taken, the folder cannot be written or holds something else; says what
            to do.
    """
    base, _ = name_and_version(name)
    if not _NAME.fullmatch(base) or base.endswith(tuple(model_name(model, "") for model in MODELS[1:])):
        raise CodetrError(
            f"name {base!r} is not possible; expected letters, digits, '-' and '_' that do not end like a step of an "
            "ensemble (_preprocess, _detector, _postprocess)"
        )
    if os.path.isfile(destination):
        raise CodetrError(f"{destination} is a file; name a folder")
    check_writable(destination)
    check_writable(_work_place(destination.absolute()))
    _remove_leftovers(destination.absolute())
    if not destination.is_dir():
        return
    names = engine_names(destination)
    if overwrite or names:
        _refuse_foreign_folders(destination)
    if name in names and is_held(destination, name):
        another = max(versions(destination)[base]) + 1
        raise CodetrError(
            f"a server runs on the engine {name} of {destination}; build version {another} beside it and switch to "
            "that, or stop the server"
        )
    if overwrite:
        return
    if name in names:
        another = max(versions(destination)[base]) + 1
        raise CodetrError(
            f"{destination} has an engine {name}; give the new one another name, make it version {another}, or "
            "overwrite it"
        )
    if not names and any(destination.iterdir()):
        raise CodetrError(
            f"{destination} is not empty and no repository of this project; name another, or overwrite, which "
            "leaves what else is there"
        )


def check_writable(folder: Path) -> None:
    """Check that something can be written to `folder`, which need not be there yet.

    Raises:
        CodetrError: it cannot; says why and what to do.
    """
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        tempfile.TemporaryDirectory(prefix=".codetr-", dir=existing).cleanup()
    except OSError as error:
        raise CodetrError(
            f"{existing} cannot be written ({error.strerror}); name another folder, or let user {os.getuid()} write "
            "there"
        ) from error


def _refuse_foreign_folders(destination: Path) -> None:
    foreign = foreign_folders(destination)
    if foreign:
        raise CodetrError(
            f"{destination} has folders that are no models: {', '.join(foreign)}; no tritonserver loads such a "
            "repository, so move them away, or name another folder"
        )


def _check_engine(engine: BuiltEngine) -> None:
    if not {INPUTS[0]} <= set(engine.inputs) <= set(INPUTS):
        raise CodetrError(f"inputs: expected {INPUTS[0]} and perhaps {INPUTS[1]}, got {list(engine.inputs)}")
    if len(engine.outputs) != len(CANDIDATES):
        raise CodetrError(f"outputs: expected the names of {', '.join(CANDIDATES)}, got {list(engine.outputs)}")
    for path in (engine.file, *engine.extra_files):
        if not path.is_file():
            raise CodetrError(f"no engine file at {path}")


@contextmanager
def _adding(destination: Path, name: str) -> Iterator[Path]:
    """Give a folder to write to, whose content comes into `destination` only if nothing went wrong."""
    destination = destination.absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=_work_place(destination)) as aside,
        Path(aside, _LOCK).open("w") as lock,
    ):
        with suppress(OSError):  # a disk without locks: nobody will take the folder for a leftover
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder, former = Path(aside, "new"), Path(aside, "former")
        folder.mkdir()
        yield folder
        if destination.exists():
            former.mkdir()
            parts = [model_name(model, name) for model in MODELS]
            parts.append(parts.pop(parts.index(model_name(DETECTOR, name))))  # the manifest comes last
            replaced = (path for part in (*parts, older_manifest(name)) if (path := destination / part).exists())
            moves = [(path, former / path.name) for path in replaced]
            _move_all([*moves, *((folder / part, destination / part) for part in parts)])
        else:
            folder.rename(destination)


def _work_place(destination: Path) -> Path:
    """Return where the work folder lies: beside `destination`, or inside where only that can be written or renamed."""
    inside = destination.is_dir() and not _same_writable_disk(destination.parent, destination)
    return destination if inside else destination.parent


def _remove_leftovers(destination: Path) -> None:
    """Remove the work folders of builds that were killed; those of running builds are locked.

    Raises:
        CodetrError: one holds parts of an engine, because the build was killed between its renames.
    """
    beside = destination.parent.glob(f".{glob.escape(destination.name)}.*/{_LOCK}")
    for lock in (*destination.glob(f".*/{_LOCK}"), *beside):
        folder = lock.parent
        with suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if all(any(folder.glob(f"{part}/*")) for part in ("new", "former")):
                raise CodetrError(
                    f"a killed build has left parts of the engine it was replacing in {folder / 'former'}; move them "
                    f"back to {destination}, or remove {folder}"
                )
            shutil.rmtree(folder)


def _same_writable_disk(parent: Path, folder: Path) -> bool:
    return os.access(parent, os.W_OK) and parent.stat().st_dev == folder.stat().st_dev


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each source to its target, or none of them where one fails or Ctrl-C comes between."""
    begun: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            begun.append((source, target))
            source.rename(target)
    except BaseException:
        for source, target in reversed(begun):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


def _read_config(name: str, kind: EngineKind) -> Any:
    path = TEMPLATES / name / (kind.config if name == DETECTOR else "config.pbtxt")
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def _leave_out(config: Any, unread: Sequence[str]) -> None:
    """Remove the inputs that the engine does not read from the detector, its warm-up and the wires to it."""
    if config.name == DETECTOR:
        for index in reversed(range(len(config.input))):
            if config.input[index].name in unread:
                del config.input[index]
    for name in unread:
        for warmup in config.model_warmup:
            del warmup.inputs[name]
        for step in config.ensemble_scheduling.step:
            if step.model_name == PREPROCESS:
                del step.output_map[name]
            if step.model_name == DETECTOR:
                del step.input_map[name]


def _set_sizes(config: Any, model: ModelContract, max_batch_size: int) -> None:
    """Set the shapes of every tensor and the batch size; CUDA graphs and the warm-up follow."""
    config.max_batch_size = max_batch_size
    dims = {tensor.name: tensor.dims for tensor in (*model.inputs, *model.outputs)}
    for tensor in (*config.input, *config.output):
        tensor.dims[:] = dims[tensor.name]
    for warmup in config.model_warmup:
        for name, tensor in warmup.inputs.items():
            tensor.dims[:] = dims[name]
    if config.optimization.cuda.graphs:
        # Unless told, the backend captures graphs for some batch sizes only, and runs the others without.
        for batch_size in range(1, max_batch_size + 1):
            graph = config.optimization.cuda.graph_spec.add(batch_size=batch_size)
            for tensor in config.input:
                graph.input[tensor.name].dim[:] = tensor.dims


def _customise(config: Any, variant: DetectorConfig, engine: BuiltEngine) -> None:
    """Set what only one of the four models knows."""
    if config.name == ENSEMBLE:
        names = json.dumps(list(variant.class_names or ()), ensure_ascii=False)
        config.parameters["class_names"].string_value = names
        step = next(step for step in config.ensemble_scheduling.step if step.model_name == DETECTOR)
        wires = [step.output_map.pop(name) for name in CANDIDATES]
        for name, wire in zip(engine.outputs, wires, strict=True):
            step.output_map[name] = wire
    if config.name == DETECTOR:
        for output, name in zip(config.output, engine.outputs, strict=True):
            output.name = name
        if "device" in config.parameters:
            config.parameters["device"].string_value = engine.device
            on_gpu = engine.device == "cuda"
            config.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.Kind.Value(
                f"KIND_{'GPU' if on_gpu else 'CPU'}"
            )
    if config.name == PREPROCESS:
        for key, text in pixel_parameters(variant.rules.pixels).items():
            config.parameters[key].string_value = text
    if config.name == POSTPROCESS:
        for key, value in asdict(PostprocessSettings.of(variant.rules.suppression, variant.max_detections)).items():
            config.parameters[key].string_value = str(value).lower()


def _set_instances(config: Any, name: str, engine: BuiltEngine, instances: int | None) -> None:
    """Let so many instances of a detector called `name` run; those of a torch engine on a GPU share one."""
    group = config.instance_group[0]
    if engine.kind.name == "torch" and engine.device == "cuda":
        group.count = 1
        guests = (_SHARING_INSTANCES if instances is None else instances) - group.count
        if guests:
            config.instance_group.add(name=f"{name}{GUESTS}", kind=group.kind, count=guests)
    elif instances is not None:
        group.count = instances


def _about(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a running server may tell everybody of its engine."""
    told = ("variant", "engine", "precision", "device", "created")
    return {key: manifest[key] for key in told if manifest.get(key) is not None}


def _rename(config: Any, name: str) -> None:
    """Give a model, and the steps of an ensemble, the names that begin with the engine's."""
    config.name = model_name(config.name, name)
    for step in config.ensemble_scheduling.step:
        step.model_name = model_name(step.model_name, name)


def _write_model(folder: Path, config: Any, template: str, kind: EngineKind) -> None:
    (folder / "1").mkdir(parents=True)  # an ensemble has an empty version folder
    text = text_format.MessageToString(config, as_utf8=True)
    header = f"# Written by `codetr build`; model_repository/{template} explains the settings.\n"
    (folder / "config.pbtxt").write_text(header + text, encoding="utf-8")
    code = kind.code if template == DETECTOR else None if template == ENSEMBLE else "1/model.py"
    if code is not None:
        model = folder / "1" / "model.py"
        shutil.copyfile(TEMPLATES / template / code, model)
        model.chmod(0o444)  # the server runs it, and nobody has a reason to write it


def _write_warmup(folder: Path, height: int, width: int) -> None:
    """Write the valid size that the warm-up claims: the whole image."""
    (folder / "warmup").mkdir()
    (folder / "warmup" / "image_sizes").write_bytes(np.array([height, width], "<i4").tobytes())


def _place(folder: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Copy files to their names within `folder`; return their SHA-256 by name."""
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    return {name: sha256(folder / name) for name in files}
