"""The repository's `manifest.json`: which engine files belong to it, by their SHA-256."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from serving.errors import CodetrError

MANIFEST = "manifest.json"
# In the manifest: SHA-256 as hex digits by path within the repository.
FILES = "files"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(repository: Path) -> dict[str, Any]:
    """Return the manifest of a repository.

    Raises:
        CodetrError: there is none, or it is not a manifest.
    """
    path = repository / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CodetrError(f"{repository} is incomplete: {MANIFEST} is missing; build it again") from None
    except ValueError as error:
        raise CodetrError(f"{path} is not JSON ({error}); build the repository again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get(FILES), dict):
        raise CodetrError(f"{path} lists no {FILES!r}; build the repository again")
    return manifest


def check_files(repository: Path) -> None:
    """Compare the repository's engine files with its manifest.

    Raises:
        CodetrError: a file is missing or is another one; names the file, both hashes and what to do.
    """
    for name, expected in read_manifest(repository)[FILES].items():
        path = repository / name
        if not path.is_file():
            raise CodetrError(f"{repository} is incomplete: {name} is missing; build it again")
        actual = sha256(path)
        if actual != expected:
            raise CodetrError(
                f"{path} is not the file that was built: its SHA-256 is {actual}, {MANIFEST} says {expected}; "
                "build the repository again"
            )


def check_versions(repository: Path) -> None:
    """Compare this machine's TensorRT with the one that built the repository's plan.

    Raises:
        CodetrError: they differ; names both. A machine whose Python knows of no TensorRT is not judged.
    """
    manifest = read_manifest(repository)
    built = manifest.get("versions", {}).get("tensorrt")
    if manifest.get("engine") != "tensorrt" or built is None:
        return
    try:
        installed = metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return
    if installed != built and not manifest.get("version_compatible", False):
        raise CodetrError(
            f"the plan in {repository} was built with TensorRT {built}, this machine has {installed}; build the "
            "repository again here"
        )
