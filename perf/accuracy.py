"""COCO accuracy of a running server, of the PyTorch detector or of an engine, on any COCO annotation file."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from builder.ap import coco_rows, evaluate, match_categories
from clients.client import CoDetrClient
from clients.detections import Detections
from clients.draw import draw
from clients.wire import ClassNames, Protocol
from perf import machine
from serving.errors import CodetrError

# Detects on one encoded image.
Detect = Callable[[bytes], Detections]

# Detections below this score are no disagreement worth a picture; matches overlap at least this much.
SHOWN_SCORE, MATCH_IOU = 0.3, 0.5
# An image counts as portrait or landscape if its sides differ by more than this share.
SQUARE_TOLERANCE = 0.05


@dataclass(frozen=True)
class CocoImage:
    """One image of an annotation file."""

    id: int
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Dataset:
    """A COCO annotation file: the images to detect on and the categories, in ascending order of their ids."""

    annotations: Path
    images: tuple[CocoImage, ...]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """COCO's figures, 0..1; -1 where the images hold no such object."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    classes: dict[str, dict[str, float]]  # AP and AP50 of each class


def read_dataset(annotations: Path, images: Path, limit: int | None = None) -> Dataset:
    """Read a COCO annotation file whose images lie in the folder `images`; the first `limit` of them.

    Raises:
        CodetrError: the file is missing or no COCO annotation file, or images are missing.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        found = tuple(
            CocoImage(image["id"], images / image["file_name"], image["width"], image["height"])
            for image in content["images"]
        )
        categories = sorted((category["id"], category["name"]) for category in content["categories"])
        len(content["annotations"])
    except OSError as error:
        raise CodetrError(f"--annotations {annotations}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CodetrError(f"{annotations} is no COCO annotation file: {type(error).__name__} {error}") from error
    found = found[:limit]
    missing = [image.path.name for image in found if not image.path.is_file()]
    if missing or not found:
        raise CodetrError(
            f"{len(missing)} of {len(found)} images are not in {images}: {', '.join(missing[:3])} ...; give the folder "
            "that the file names are relative to"
        )
    return Dataset(annotations, found, tuple(id_ for id_, _ in categories), tuple(name for _, name in categories))


def category_of_label(dataset: Dataset, class_names: Sequence[str]) -> dict[int, int]:
    """Return the data set's category id for each of the detector's labels.

    Classes are matched by name, which turns COCO's 80 labels into its ids of up to 90; a detector without names is
    taken to number the categories in ascending order of their ids. Labels the data set lacks have no entry.

    Raises:
        CodetrError: the data set has a category that the detector does not know.
    """
    categories = dict(zip(dataset.category_ids, dataset.category_names, strict=True))
    return match_categories(categories, class_names, dataset.annotations, "--labels replaces their names")


# ------------------------------------------------------------------------------------------------ detectors


def server_detect(client: CoDetrClient) -> Detect:
    """Return a `Detect` that asks a server for everything it finds, whatever its own score threshold."""
    return lambda data: client.detect(data, score_threshold=0.0)


def open_server(
    url: str | None, protocol: Protocol, timeout: float, labels: ClassNames, model: str
) -> tuple[Callable[[], Detect], tuple[str, ...]]:
    """Return a maker of `Detect`s, one for each thread, and the class names, of a server that answers now."""
    with CoDetrClient(url, protocol, timeout, labels, model) as client:
        client.check()
        names = client.class_names()
    return lambda: server_detect(CoDetrClient(url, protocol, timeout, names or None, model)), names


def pytorch_detect(variant: str, weights: Path, precision: str, device: str) -> tuple[Detect, tuple[str, ...]]:
    """Return the PyTorch detector with the server's pre- and post-processing, and its class names."""
    import torch

    from builder.checkpoint import load_detector

    detector = load_detector(variant, weights, precision).to(device)  # type: ignore[arg-type]
    names = detector.variant.class_names or ()
    height, width = detector.variant.input_size

    @torch.inference_mode()
    def run(images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> tuple[Any, ...]:
        outputs = detector(torch.from_numpy(images).to(device), torch.from_numpy(image_sizes).to(device))
        return tuple(output.cpu().numpy() for output in outputs)

    return _in_process(run, height, width, names), names


def onnx_detect(engine: Path, class_names: tuple[str, ...]) -> Detect:
    """Return an ONNX engine with the server's pre- and post-processing."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(engine), providers=["CPUExecutionProvider"])
    height, width = session.get_inputs()[0].shape[1:3]

    def run(images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> tuple[Any, ...]:
        return tuple(session.run(["boxes", "scores", "labels"], {"images": images, "image_sizes": image_sizes}))

    return _in_process(run, height, width, class_names)


def _in_process(run: Callable[..., tuple[Any, ...]], height: int, width: int, names: tuple[str, ...]) -> Detect:
    from serving.postprocess import PostprocessSettings, postprocess
    from serving.preprocess import preprocess

    def detect(data: bytes) -> Detections:
        prepared = preprocess(data, height, width)
        outputs = run(prepared.images[None], np.array([prepared.image_size], np.int32))
        boxes, scores, all_labels = (output[0] for output in outputs)
        result = postprocess(boxes, scores, all_labels, prepared.original_size, PostprocessSettings())
        n = result.num_detections
        labels = result.labels[:n]
        return Detections(result.boxes[:n], result.scores[:n], labels, tuple(names[label] for label in labels))

    return detect


# --------------------------------------------------------------------------------------------------- results


def collect(
    dataset: Dataset,
    results: Path,
    source: str,
    make_detect: Callable[[], Detect],
    class_names: Sequence[str],
    concurrency: int = 1,
    on_image: Callable[[int], object] = lambda done: None,
) -> dict[int, Detections]:
    """Detect on every image of the data set that the results file lacks, and return all detections by image id.

    Args:
        dataset: what to detect on.
        results: JSON lines, one an image, written as the answers come; an interrupted run continues from it.
        source: what detects; a results file of another source or data set is refused.
        make_detect: called once in each thread.
        class_names: of the detector.
        concurrency: images under way at a time.
        on_image: called with the number of finished images, from this thread.

    Raises:
        CodetrError: the results file belongs to something else, or an image failed; the rest is kept.
    """
    header = {"source": source, "annotations_sha256": hashlib.sha256(dataset.annotations.read_bytes()).hexdigest()}
    found = _read_results(results, header, class_names)
    wanted = {image.id for image in dataset.images}
    missing = [image for image in dataset.images if image.id not in found]
    on_image(len(dataset.images) - len(missing))
    with results.open("a", encoding="utf-8") as file, ThreadPoolExecutor(concurrency) as pool:
        local = threading.local()

        def work(image: CocoImage) -> tuple[CocoImage, Detections]:
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
                found[image.id] = _from_line(json.loads(line), class_names)
                on_image(len(wanted & found.keys()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {id_: detections for id_, detections in found.items() if id_ in wanted}


def _to_line(image_id: int, detections: Detections) -> str:
    """Return one image's JSON line; a thousandth of a pixel and a millionth of a score are finer than any metric."""
    boxes = np.round(detections.boxes.astype(float), 3).tolist()
    scores = np.round(detections.scores.astype(float), 6).tolist()
    return json.dumps({"image_id": image_id, "boxes": boxes, "scores": scores, "labels": detections.labels.tolist()})


def _from_line(line: Mapping[str, Any], class_names: Sequence[str]) -> Detections:
    labels = np.array(line["labels"], np.int32)
    names = tuple(class_names[label] if label < len(class_names) else f"class {label}" for label in labels)
    boxes = np.array(line["boxes"], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array(line["scores"], np.float32), labels, names)


def _read_results(results: Path, header: dict[str, str], class_names: Sequence[str]) -> dict[int, Detections]:
    """Return the detections in a results file, start the file if there is none, and drop a line cut by a kill."""
    results.parent.mkdir(parents=True, exist_ok=True)
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
                "another --output"
            )
        found = [json.loads(line) for line in lines[1:]]
    except ValueError as error:
        raise CodetrError(f"{results} is damaged: {error}; delete it") from error
    if complete != text:
        results.write_text(complete, encoding="utf-8")
    return {line["image_id"]: _from_line(line, class_names) for line in found}


# ---------------------------------------------------------------------------------------------------- scores


def coco_results(found: Mapping[int, Detections], category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return COCO result records of all detections whose label has a category."""
    return [
        row
        for image_id, each in sorted(found.items())
        for row in coco_rows(image_id, each.boxes, each.scores, each.labels, category_ids)
    ]


def score(dataset: Dataset, results: list[dict[str, Any]], images: Iterable[CocoImage] | None = None) -> Accuracy:
    """Return COCO's AP and AR of `results` on the data set, or on some of its images."""
    image_ids = [image.id for image in (dataset.images if images is None else images)]
    stats, precision = evaluate(dataset.annotations, results, image_ids, dataset.category_ids)
    ap, ap50, ap75, small, medium, large, _, _, *recalls = stats.tolist()
    ar100, ar_small, ar_medium, ar_large = recalls
    classes = {
        name: {"ap": _mean(precision[:, :, k]), "ap50": _mean(precision[0, :, k])}
        for k, name in enumerate(dataset.category_names)
    }
    return Accuracy(ap, ap50, ap75, small, medium, large, ar100, ar_small, ar_medium, ar_large, classes)


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def by_orientation(dataset: Dataset) -> dict[str, list[CocoImage]]:
    """Return the data set's landscape, square and portrait images."""
    groups: dict[str, list[CocoImage]] = {"landscape": [], "square": [], "portrait": []}
    for image in dataset.images:
        ratio = image.width / image.height
        square = 1 / (1 + SQUARE_TOLERANCE) < ratio < 1 + SQUARE_TOLERANCE
        groups["square" if square else "landscape" if ratio > 1 else "portrait"].append(image)
    return {name: images for name, images in groups.items() if images}


def report(
    dataset: Dataset, source: str, found: Mapping[int, Detections], category_ids: Mapping[int, int], output: Path
) -> dict[str, Any]:
    """Write `detections.json` (COCO results) and `accuracy.json` to `output` and return the latter's content."""
    results = coco_results(found, category_ids)
    (output / "detections.json").write_text(json.dumps(results), encoding="utf-8")
    annotated = {a["image_id"] for a in json.loads(dataset.annotations.read_text(encoding="utf-8"))["annotations"]}
    empty = [found[image.id].scores for image in dataset.images if image.id not in annotated]
    content = {
        **machine.header("accuracy"),
        "source": source,
        "images": len(dataset.images),
        **asdict(score(dataset, results)),
        "orientations": {
            name: {"images": len(images), "ap": score(dataset, results, images).ap}
            for name, images in by_orientation(dataset).items()
        },
        "empty_images": len(empty),
        "highest_score_on_empty": max((float(scores.max(initial=0)) for scores in empty), default=0.0),
    }
    (output / "accuracy.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


# ------------------------------------------------------------------------------------------------ comparison


def agreement(a: Detections, b: Detections) -> float:
    """Return how alike two detections of one image are: the mean IoU of their matches, 0 for what has none.

    Only scores from `SHOWN_SCORE` count; a match has the same label and an IoU from `MATCH_IOU`. Two empty images
    agree.
    """
    a, b = a.above(SHOWN_SCORE), b.above(SHOWN_SCORE)
    if not len(a) and not len(b):
        return 1.0
    overlaps = _iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels[None])
    overlaps[overlaps < MATCH_IOU] = 0
    total = 0.0
    while overlaps.size and (best := float(overlaps.max())) > 0:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        total += best
        overlaps[row] = overlaps[:, column] = 0
    return total / max(len(a), len(b))


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (a, b)]
    iou: NDArray[np.float32] = overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1e-9)
    return iou


def draw_worst(
    dataset: Dataset, a: Mapping[int, Detections], b: Mapping[int, Detections], output: Path, count: int = 8
) -> list[tuple[Path, float]]:
    """Draw the images on which `a` (left) and `b` (right) agree least; return the pictures with their agreement."""
    output.mkdir(parents=True, exist_ok=True)
    ranked = sorted((agreement(a[image.id], b[image.id]), image.id, image) for image in dataset.images)[:count]
    drawn = []
    for rank, (value, _, image) in enumerate(ranked, 1):
        left, right = (draw(image.path, found[image.id].above(SHOWN_SCORE)) for found in (a, b))
        pair = Image.new("RGB", (left.width + right.width, left.height))
        pair.paste(left, (0, 0))
        pair.paste(right, (left.width, 0))
        path = output / f"{rank:02d}-{image.path.stem}.jpg"
        pair.save(path, quality=92)
        drawn.append((path, value))
    return drawn
