"""Detections of a whole data set, kept as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

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
) -> dict[int, Detections]:
    """Detect on every image of the data set that the results file lacks, and return all detections by our numbers.

    Args:
        dataset: what to detect on.
        results: JSON lines, one an image, written as the answers come; an interrupted run continues from it.
        source: what detects; a results file of another source or data set is refused.
        make_detect: called once in each thread.
        class_names: of the detector.
        concurrency: images under way at a time.
        on_image: called with the number of finished images, from this thread.

    Raises:
        CodetrError: the results file belongs to something else or another process is writing it, or an image failed;
            the rest is kept.
    """
    with _sole_writer(results):
        header = {"source": source, "annotations_sha256": dataset.coco.sha256}
        numbers = {image.id: image.number for image in dataset.images}
        found = _read_results(results, header, numbers, class_names)
        missing = [image for image in dataset.images if image.number not in found]
        on_image(len(dataset.images) - len(missing))
        with results.open("a", encoding="utf-8") as file, ThreadPoolExecutor(concurrency) as pool:
            local = threading.local()

            def work(image: Picture) -> tuple[Picture, Detections]:
                if not hasattr(local, "detect"):
                    local.detect = make_detect()
                return image, local.detect(image.path.read_bytes())

            futures = [pool.submit(work, image) for image in missing]
            try:
                for future in as_completed(futures):
                    image, detections = future.result()
                    line = _to_line(image.id, detections)
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


def _to_line(image_id: Id, detections: Detections) -> str:
    """Return one image's JSON line; a thousandth of a pixel and a millionth of a score are finer than any metric."""
    boxes = np.round(detections.boxes.astype(float), 3).tolist()
    scores = np.round(detections.scores.astype(float), 6).tolist()
    return json.dumps({"image_id": image_id, "boxes": boxes, "scores": scores, "labels": detections.labels.tolist()})


def _from_line(line: Mapping[str, Any], class_names: Sequence[str]) -> Detections:
    labels = np.array(line["labels"], np.int32)
    boxes = np.array(line["boxes"], np.float32).reshape(-1, 4)
    return Detections.named(boxes, np.array(line["scores"], np.float32), labels, class_names)


def _read_results(
    results: Path, header: dict[str, str], numbers: Mapping[Id, int], class_names: Sequence[str]
) -> dict[int, Detections]:
    """Return the wanted detections in a results file; start it if there is none, and drop a line cut by a kill."""
    if not results.exists():
        results.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    text = results.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    lines = complete.splitlines()
    try:
        if not lines or json.loads(lines[0]) != header:
            raise CodetrError(
                f"{results} holds results of something else ({lines[0] if lines else 'nothing'}); delete it or choose "
                "another output"
            )
        found = [json.loads(line) for line in lines[1:]]
    except ValueError as error:
        raise CodetrError(f"{results} is damaged: {error}; delete it") from error
    if complete != text:
        results.write_text(complete, encoding="utf-8")
    return {numbers[line["image_id"]]: _from_line(line, class_names) for line in found if line["image_id"] in numbers}
