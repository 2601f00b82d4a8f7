"""A built repository before a server gets it: is it whole, what does it need, and links to it for Triton."""

from __future__ import annotations

import os
from pathlib import Path

from serving.contract import DETECTOR, ENSEMBLE, PLUGIN_LIBRARY, POSTPROCESS, PREPROCESS, model_name
from serving.errors import CodetrError
from serving.manifest import (
    FILES,
    PLAN_BACKEND,
    check_files,
    check_versions,
    engine_names,
    foreign_folders,
    read_manifest,
)


def check_repository(repository: Path) -> None:
    """Check that a repository is complete and its engines those that were built.

    Raises:
        CodetrError: names what is missing, differs or cannot be read.
    """
    if not os.path.isdir(repository):  # Path.is_dir raises for a path that is too long
        raise CodetrError(f"no repository at {repository}; write one there with `codetr build`")
    try:
        _check(repository)
    except OSError as error:
        raise CodetrError(
            f"{error.filename or repository} cannot be read ({error.strerror}); let user {os.getuid()} read it"
        ) from error


def _check(repository: Path) -> None:
    os.listdir(repository)  # Path.glob finds nothing in a folder that may not be read, and says nothing
    for name in engine_names(repository) or [ENSEMBLE]:
        for role in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS):
            for part in ("config.pbtxt", "1/model.py" if role in (PREPROCESS, POSTPROCESS) else "1"):
                path = repository / model_name(role, name) / part
                if not path.exists():
                    missing = path.relative_to(repository)
                    raise CodetrError(f"{repository} is incomplete: {missing} is missing; build it again")
        check_files(repository, name)
        check_versions(repository, name)
    if foreign := foreign_folders(repository):
        raise CodetrError(
            f"{repository} has folders that are no models: {', '.join(foreign)}; tritonserver would not start, so "
            "remove them"
        )


def find_plugin(repository: Path) -> Path | None:
    """Return the TensorRT plugin that the server must load for a repository's plans; None if there are none.

    A server can load one library that registers the operator, so the plans must have been built with the same.

    Raises:
        CodetrError: they were not; names the engines.
    """
    plugins = {}
    for name in engine_names(repository):
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


def has_version_compatible_plans(repository: Path) -> bool:
    """Return whether a plan is for other releases of TensorRT than its own too."""
    manifests = (read_manifest(repository, name) for name in engine_names(repository))
    return any(manifest.get("version_compatible", False) for manifest in manifests)


def link_repository(repository: Path, folder: Path, snapshot: bool = True) -> Path:
    """Make a repository of folders and links to another's files; return its path.

    Triton hands a model's path to a shell, which would take a path with a space, a quote or a dollar apart. And Python
    writes the byte code of a `model.py` beside it: here it does not get into the repository.

    Args:
        repository: what is linked.
        folder: where the result comes, called `models`.
        snapshot: False for one link to all of it, which follows what changes in it.
    """
    models = folder / "models"
    if not snapshot:
        models.symlink_to(repository.absolute())
        return models
    models.mkdir()
    for model in filter(Path.is_dir, sorted(repository.absolute().iterdir())):
        (models / model.name).mkdir()
        for entry in model.iterdir():
            if entry.is_dir() and entry.name.isdigit():  # a version
                (models / model.name / entry.name).mkdir()
                for file in entry.iterdir():
                    if file.name != "__pycache__":
                        (models / model.name / entry.name / file.name).symlink_to(file)
            else:
                (models / model.name / entry.name).symlink_to(entry)
    return models
