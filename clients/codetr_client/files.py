"""Detection over many image files: annotated pictures and one JSON file in a folder."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from codetr_client.detections import Detections
from codetr_client.drawing import draw
from codetr_client.errors import CodetrError, ModelNotFoundError, ModelNotReadyError, ServerUnreachableError
from codetr_client.images import ImageInput, open_upright, read_bytes
from codetr_client.outputs import (
    is_own_picture,
    make_folder,
    plan_pictures,
    refuse_overwriting,
    save_picture,
    write_whole,
)
from codetr_client.threshold import check_threshold

# What a folder is searched for; a file named outright may have any name.
IMAGE_SUFFIXES = frozenset({".bmp", ".jfi", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"})
# Folders in which systems keep copies of pictures: of macOS's archives, of Synology's disks, Windows' deleted ones.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})
RESULTS_NAME = "detections.json"
# The keys of `detections.json`, by which an earlier run's is known again.
RESULTS_KEYS = frozenset({"score_threshold", "images"})

# Faults that every further image would meet too.
FATAL_ERRORS = (ModelNotFoundError, ModelNotReadyError, ServerUnreachableError)


class Detector(Protocol):
    """What can detect: `CoDetrClient`, or a stand-in for it."""

    def detect(self, image: ImageInput, score_threshold: float | None = None) -> Detections:
        """Return the detections of one image."""


@dataclass(frozen=True)
class Detected:
    """A file with its detections, its upright size (width, height) in pixels and its annotated picture."""

    path: Path
    size: tuple[int, int]
    detections: Detections
    picture: Path

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; the picture is named relative to the JSON file."""
        width, height = self.size
        found = self.detections.to_json()
        return {
            "file": str(self.path),
            "width": width,
            "height": height,
            "picture": self.picture.name,
            "detections": found,
        }


@dataclass(frozen=True)
class Failed:
    """A file that got no detections, and why."""

    path: Path
    error: CodetrError

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"file": str(self.path), "error": str(self.error)}


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Return the files that `patterns` name, each once: files as they are, the images in folders, globs (`**` too).

    Folders and globs give no annotated pictures of earlier runs, no hidden files and nothing of `SYSTEM_FOLDERS`, and
    do not follow links to folders. A name that matches nothing is returned as it is, so that reading it says so.
    Raises CodetrError for a folder or glob without images.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _named_by(pattern):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _named_by(pattern: str) -> list[Path]:
    path = Path(pattern)
    try:
        if path.is_dir():
            images = (each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
            return _photographs((each for each in images if _is_shown(each.relative_to(path))), pattern)
        if path.exists() or not glob.has_magic(pattern):
            return [path]
        matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (OSError, ValueError, NotImplementedError) as error:
        raise CodetrError(f"cannot look for {pattern}: {error}; name a file, a folder or a glob") from error
    # A glob can end in `*`: what has another suffix was hardly meant. What it names itself is not hidden.
    images = (each for each in matches if each.suffix.lower() in {*IMAGE_SUFFIXES, ""})
    return _photographs((each for each in images if _is_shown(each, path.parts)), pattern) if matches else [path]


def _is_shown(path: Path, named: Sequence[str] = ()) -> bool:
    """Return whether no part of a path is hidden, or of the system, other than those that the user `named`."""
    parts = (part for part in path.parts if part not in named and part != "..")
    # Hidden are also the `._a.jpg` that some systems put beside `a.jpg`.
    return not any(part.startswith(".") or part in SYSTEM_FOLDERS for part in parts)


def _photographs(paths: Iterable[Path], searched: str) -> list[Path]:
    """Return the files that are no pictures of earlier runs; a broken link is one, a pipe or a device is none."""
    images = sorted(path for path in paths if (path.is_file() or not path.exists()) and not is_own_picture(path))
    if not images:
        raise CodetrError(
            f"no images in {searched}: expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, other than "
            "annotated pictures of earlier runs"
        )
    return images


def detect_files(
    client: Detector,
    paths: Sequence[Path],
    output: Path,
    score_threshold: float | None = None,
    on_result: Callable[[Detected | Failed], None] = lambda result: None,
) -> list[Detected | Failed]:
    """Detect on every file, write annotated JPEGs and `detections.json` to `output`, and return the results in order.

    What an earlier run wrote is overwritten, and nothing else: where a name is taken, the picture of `a.png` becomes
    `a-2.jpg`. A bad image becomes a `Failed` and the rest goes on. A server that is gone ends the run with its error;
    then, and at Ctrl-C, the results so far are still written. `on_result` hears of each result as it comes.

    Raises:
        CodetrError: `score_threshold` is no number in 0..1, `output` is a file, or its `detections.json` is a source or
            no earlier run's; nothing was asked of the detector yet.
    """
    threshold = None if score_threshold is None else check_threshold(score_threshold)
    make_folder(output)
    _check_results(output / RESULTS_NAME, paths)
    pictures = plan_pictures(output, [path.stem for path in paths], paths)
    results: list[Detected | Failed] = []
    try:
        for path, picture in zip(paths, pictures, strict=True):
            results.append(_detect_file(client, path, picture, threshold))
            on_result(results[-1])
    finally:
        document = {"score_threshold": threshold, "images": [result.to_json() for result in results]}
        write_whole(output / RESULTS_NAME, (json.dumps(document, indent=1) + "\n").encode())
    return results


def _check_results(results: Path, sources: Sequence[Path]) -> None:
    """Refuse to replace a `detections.json` that is a source or that no earlier run wrote."""
    refuse_overwriting([results], sources)
    if not os.path.lexists(results):
        return
    try:
        document = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict) or document.keys() != RESULTS_KEYS:
        raise CodetrError(
            f"{results} would be overwritten, but no earlier run wrote it; move it away, or name another output folder"
        )


def _detect_file(client: Detector, path: Path, picture: Path, score_threshold: float | None) -> Detected | Failed:
    try:
        content = read_bytes(path)
        detections = client.detect(content, score_threshold)
        drawn = draw(open_upright(content), detections)
    except FATAL_ERRORS:
        raise
    except CodetrError as error:
        return Failed(path, error)
    save_picture(drawn, picture)
    return Detected(path, drawn.size, detections, picture)
