"""A built repository before a server gets it: is it whole, what does it need, and links to it for Triton."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from serving.contract import DETECTOR, ENSEMBLE, MODELS, PLUGIN_LIBRARY, POSTPROCESS, PREPROCESS, model_name
from serving.errors import CodetrError
from serving.manifest import (
    FILES,
    PLAN_BACKEND,
    check_files,
    check_versions,
    engine_names,
    foreign_folders,
    no_repository,
    read_manifest,
)
from serving.model_config import read_model_config
from serving.versions import name_and_version, served_engines, unserved_engines


def check_repository(repository: Path, engines: Sequence[str] | None = None) -> None:
    """Check that a repository is complete and its engines those that were built.

    Args:
        repository: its folder.
        engines: those to check; None for all, those that are not served too, and for what says which are served.

    Raises:
        CodetrError: names what is missing, differs or cannot be read.
    """
    if not os.path.isdir(repository):  # Path.is_dir raises for a path that is too long
        raise no_repository(repository)
    try:
        os.listdir(repository)  # Path.glob finds nothing in a folder that may not be read, and says nothing
        if engines is None:
            served_engines(repository)
        _check(repository, engine_names(repository) if engines is None else engines)
    except OSError as error:
        raise CodetrError(
            f"{error.filename or repository} cannot be read ({error.strerror}); let user {os.getuid()} read it"
        ) from error


def _check(repository: Path, engines: Sequence[str]) -> None:
    if not engines and not (repository / ENSEMBLE).is_dir():
        raise CodetrError(f"{repository} holds no engine; name a folder that `codetr build` has written")
    for name in engines or [ENSEMBLE]:
        for role in MODELS:
            for part in ("config.pbtxt", "1/model.py" if role in (PREPROCESS, POSTPROCESS) else "1"):
                path = repository / model_name(role, name) / part
                if not path.exists():
                    missing = path.relative_to(repository)
                    raise CodetrError(f"{repository} is incomplete: {missing} is missing; build it again")
            read_model_config(repository / model_name(role, name) / "config.pbtxt")
        check_files(repository, name)
        check_versions(repository, name)
    if foreign := foreign_folders(repository):
        raise CodetrError(
            f"{repository} has folders that are no models: {', '.join(foreign)}; tritonserver would not start, so "
            "remove them"
        )


def find_plugin(repository: Path, engines: Sequence[str] | None = None) -> Path | None:
    """Return the TensorRT plugin that the server must load for the plans of engines; None if there are none.

    A server can load one library that registers the operator, so the plans must have been built with the same.

    Raises:
        CodetrError: they were not; names the engines.
    """
    plugins = {}
    for name in engine_names(repository) if engines is None else engines:
        file = f"{model_name(DETECTOR, name)}/1/{PLUGIN_LIBRARY}"
        manifest = read_manifest(repository, name)
        digest = manifest[FILES].get(file)
        if digest is not None and manifest.get(PLAN_BACKEND) != "python":  # whose step loads its own
            plugins[name] = (digest, file)
    if len({digest for digest, _ in plugins.values()}) > 1:
        raise CodetrError(
            f"the engines {', '.join(plugins)} of {repository} come with different builds of {PLUGIN_LIBRARY}, of "
            "which a server can load one; build them again with the same plugin, or serve them from two repositories"
        )
    return next((Path(file) for _, file in plugins.values()), None)


def has_version_compatible_plans(repository: Path, engines: Sequence[str] | None = None) -> bool:
    """Return whether a plan of engines is for other releases of TensorRT than its own too."""
    names = engine_names(repository) if engines is None else engines
    manifests = (read_manifest(repository, name) for name in names)
    return any(manifest.get("version_compatible", False) for manifest in manifests)


def link_repository(
    repository: Path, folder: Path, snapshot: bool = True, engines: Sequence[str] | None = None
) -> Path:
    """Make a repository of folders and links to another's files; return its path.

    Triton hands a model's path to a shell, which would take a path with a space, a quote or a dollar apart. And Python
    writes the byte code of a `model.py` beside it: here it does not get into the repository.

    Args:
        repository: what is linked.
        folder: where the result comes, called `models`.
        snapshot: False for one link to all of it, which follows what changes in it.
        engines: what the engines are called that are linked, one version of each; None for those that are served.
            Models of nobody's are linked too. The ensemble of version N gets the name without it, and its version.
    """
    models = folder / "models"
    if not snapshot:
        models.symlink_to(repository.absolute())
        return models
    models.mkdir()
    engines = served_engines(repository) if engines is None else engines
    renamed = {engine: name for engine in engines for name, version in [name_and_version(engine)] if version != 1}
    for model in served_models(repository, engines):
        if model in renamed:
            link_ensemble(repository, model, models / renamed[model])
        else:
            link_model(repository / model, models / model)
    return models


def served_models(repository: Path, engines: Sequence[str]) -> list[str]:
    """Return the names of a repository's models without those of other engines than the given ones."""
    others = {model_name(role, engine) for engine in unserved_engines(repository, engines) for role in MODELS}
    return [path.name for path in sorted(repository.iterdir()) if path.is_dir() and path.name not in others]


def models_of(engine: str) -> list[str]:
    """Return the names of an engine's models, the ensemble first."""
    return [model_name(role, engine) for role in MODELS]


def link_model(model: Path, target: Path) -> None:
    """Make a folder of links to a model's files."""
    target.mkdir()
    for entry in model.absolute().iterdir():
        if entry.is_dir() and entry.name.isdigit():  # a version
            (target / entry.name).mkdir()
            for file in entry.iterdir():
                if file.name != "__pycache__":
                    (target / entry.name / file.name).symlink_to(file)
        else:
            (target / entry.name).symlink_to(entry)


def link_ensemble(repository: Path, engine: str, target: Path) -> None:
    """Make the folder of an engine's ensemble under another name; raises CodetrError as `ensemble_config`."""
    (target / str(name_and_version(engine)[1])).mkdir(parents=True)
    (target / "config.pbtxt").write_text(ensemble_config(repository, engine, target.name), encoding="utf-8")


def ensemble_config(repository: Path, engine: str, name: str) -> str:
    """Return the configuration of an engine's ensemble under another name, and with the engine's version.

    Raises:
        CodetrError: it cannot be read, or has versions of its own.
    """
    path = repository / engine / "config.pbtxt"
    if "version_policy" in read_model_config(path):
        raise CodetrError(f"{path} has a version_policy, which says here which version is served; take it out")
    policy = f"version_policy {{ specific {{ versions: {name_and_version(engine)[1]} }} }}"
    text = path.read_text(encoding="utf-8")
    pattern = rf"""^(\s*name\s*:\s*)(["']){re.escape(engine)}\2"""
    renamed = re.sub(pattern, rf'\g<1>"{name}"', text, count=1, flags=re.MULTILINE)
    return f"{renamed}\n{policy}\n"
