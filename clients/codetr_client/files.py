"""Detection over many image files: annotated pictures and one JSON file in a folder."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from codetr_client.detections import Detections
from codetr_client.drawing import draw
from codetr_client.errors import CodetrError, ModelNotFoundError, ModelNotReadyError, ServerUnreachableError
from codetr_client.images import ImageInput, open_upright, read_bytes

# What a folder is searched for; a file named outright may have any name.
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
RESULTS_NAME = "detections.json"
JPEG_QUALITY = 92  # of the annotated pictures: no visible loss

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

    A name that matches nothing is returned as it is, so that reading it says so. Raises CodetrError for a folder
    without images.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found.update(dict.fromkeys(_images_in(path)))
        else:
            matches = [] if path.exists() else sorted(glob.glob(pattern, recursive=True))
            found.update(dict.fromkeys(map(Path, matches or [pattern])))
    return list(found)


def _images_in(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise CodetrError(f"no images in {folder}: expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def detect_files(
    client: Detector,
    paths: Sequence[Path],
    output: Path,
    score_threshold: float | None = None,
    on_result: Callable[[Detected | Failed], None] = lambda result: None,
) -> list[Detected | Failed]:
    """Detect on every file, write annotated JPEGs and `detections.json` to `output`, and return the results in order.

    A bad image becomes a `Failed` and the rest goes on. A server that is gone ends the run with its error; then, and
    at Ctrl-C, the results so far are still written. `on_result` hears of each result as it comes.
    """
    output.mkdir(parents=True, exist_ok=True)
    results: list[Detected | Failed] = []
    try:
        for path in paths:
            results.append(_detect_file(client, path, output, score_threshold, {_picture(r) for r in results}))
            on_result(results[-1])
    finally:
        document = {"score_threshold": score_threshold, "images": [result.to_json() for result in results]}
        (output / RESULTS_NAME).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return results


def _picture(result: Detected | Failed) -> Path | None:
    return result.picture if isinstance(result, Detected) else None


def _detect_file(
    client: Detector, path: Path, output: Path, score_threshold: float | None, taken: set[Path | None]
) -> Detected | Failed:
    try:
        content = read_bytes(path)
        detections = client.detect(content, score_threshold)
        drawn = draw(open_upright(content), detections)
    except FATAL_ERRORS:
        raise
    except CodetrError as error:
        return Failed(path, error)
    picture = _free_name(output, path.stem, taken)
    drawn.save(picture, quality=JPEG_QUALITY)
    return Detected(path, drawn.size, detections, picture)


def _free_name(output: Path, stem: str, taken: set[Path | None]) -> Path:
    """Return `stem.jpg`, or `stem-2.jpg` and so on where files of one run share a name; older runs are overwritten."""
    picture, count = output / f"{stem}.jpg", 1
    while picture in taken:
        count += 1
        picture = output / f"{stem}-{count}.jpg"
    return picture
