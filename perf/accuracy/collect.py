"""Detections of a whole data set, kept as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from builder.pipeline.coco_entries import Id
from codetr_client.detections import Detections
from perf.accuracy.dataset import Dataset, Picture
from perf.accuracy.detectors import Detect
from serving.errors import CodetrError


def collect(
    dataset: Dataset,
    results: Path,
    source: str,
    make_detect: Callable[[], Detect],
    class_names: Sequence[str],
    concurrency: int = 1,
    on_image: Callable[[int], object] = lambda done: None,
    identity: str = "",
) -> dict[int, Detections]:
    """Detect on every image of the data set that the results file lacks, and return all detections by our numbers.

    Args:
        dataset: what to detect on.
        results: JSON lines, one an image, written as the answers come; an interrupted run continues from it.
        source: what detects; a results file of another source, data set or picture is refused.
        make_detect: called once in each thread.
        class_names: of the detector.
        concurrency: images under way at a time.
        on_image: called with the number of finished images, from this thread.
        identity: what else decides the answers, as weights and rules do; a results file of another is refused.

    Raises:
        CodetrError: the results file belongs to something else or another process is writing it, or an image failed;
            the rest is kept.
    """
    with _sole_writer(results):
        header = {"source": source, "identity": identity, "annotations_sha256": dataset.coco.sha256}
        found = _read_results(results, header, dataset.images, class_names)
        missing = [image for image in dataset.images if image.number not in found]
        on_image(len(dataset.images) - len(missing))
        with results.open("a", encoding="utf-8") as file, ThreadPoolExecutor(concurrency) as pool:
            local = threading.local()

            def work(image: Picture) -> tuple[Picture, str, Detections]:
                if not hasattr(local, "detect"):
                    local.detect = make_detect()
                data = image.path.read_bytes()
                return image, hashlib.sha256(data).hexdigest(), local.detect(data)

            futures = [pool.submit(work, image) for image in missing]
            try:
                for future in as_completed(futures):
                    image, digest, detections = future.result()
                    line = _to_line(image.id, digest, detections)
                    file.write(line + "\n")
                    file.flush()
                    found[image.number] = _from_line(json.loads(line), class_names)
                    on_image(len(found))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found


@contextmanager
def _sole_writer(results: Path) -> Iterator[None]:
    """Keep other processes from writing the results file, whose folder is made if it is not there."""
    results.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(f"{results}.lock").acquire(blocking=False)
    except Timeout as error:
        raise CodetrError(f"another process is writing {results}; wait for it or choose another output") from error
    with lock:
        yield


def _to_line(image_id: Id, digest: str, detections: Detections) -> str:
    """Return one image's JSON line; a thousandth of a pixel and a millionth of a score are finer than any metric."""
    boxes = np.round(detections.boxes.astype(float), 3).tolist()
    scores = np.round(detections.scores.astype(float), 6).tolist()
    answer = {"boxes": boxes, "scores": scores, "labels": detections.labels.tolist()}
    return json.dumps({"image_id": image_id, "image_sha256": digest, **answer})


def _from_line(line: Mapping[str, Any], class_names: Sequence[str]) -> Detections:
    labels = np.array(line["labels"], np.int32)
    boxes = np.array(line["boxes"], np.float32).reshape(-1, 4)
    return Detections.named(boxes, np.array(line["scores"], np.float32), labels, class_names)


def _read_results(
    results: Path, header: dict[str, str], images: Sequence[Picture], class_names: Sequence[str]
) -> dict[int, Detections]:
    """Return the wanted detections in a results file; start it if there is none, and drop a line cut by a kill."""
    if not results.exists():
        results.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    text = results.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    lines = complete.splitlines()
    pictures = {image.id: image for image in images}
    try:
        if not lines or (written := json.loads(lines[0])) != header:
            found_there = _difference(written, header) if lines else "nothing"
            raise CodetrError(
                f"{results} holds results of something else ({found_there}); delete it or choose another output"
            )
        found = [line for line in map(json.loads, lines[1:]) if line["image_id"] in pictures]
    except ValueError as error:
        raise CodetrError(f"{results} is damaged: {error}; delete it") from error
    _check_pictures(results, {line["image_id"]: line["image_sha256"] for line in found}, pictures)
    if complete != text:
        results.write_text(complete, encoding="utf-8")
    return {pictures[line["image_id"]].number: _from_line(line, class_names) for line in found}


def _difference(written: Any, header: Mapping[str, str]) -> str:
    """Return what a results file is of, where it is not what `header` says."""
    if not isinstance(written, dict) or written.get("source") != header["source"]:
        return json.dumps(written)
    if written.get("annotations_sha256") != header["annotations_sha256"]:
        return f"{header['source']} on other annotations"
    if "identity" not in written:
        return f"{header['source']}, by an earlier version, which did not say of which weights"
    return f"{header['source']} of other weights, of another build or with other settings"


def _check_pictures(results: Path, digests: Mapping[Id, str], pictures: Mapping[Id, Picture]) -> None:
    """Refuse results of pictures that were other ones then."""
    changed = [
        path
        for number, digest in digests.items()
        if hashlib.sha256((path := pictures[number].path).read_bytes()).hexdigest() != digest
    ]
    if changed:
        raise CodetrError(
            f"{results} holds results of other pictures: {len(changed)} of {len(digests)}, such as {changed[0]}, have "
            "changed since; delete it or choose another output"
        )
