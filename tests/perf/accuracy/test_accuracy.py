from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from codetr.cli import app
from codetr_client.detections import Detections
from codetr_client.drawing import GAP
from demo import WEIGHTS
from demo.shapes import CLASS_NAMES
from demo.shapes.dataset import write_dataset
from demo.shapes.draw import generate
from perf.accuracy.agreement import agreement, draw_worst
from perf.accuracy.collect import collect
from perf.accuracy.dataset import Dataset, by_orientation, category_of_label, read_dataset
from perf.accuracy.detectors import Detect, open_server
from perf.accuracy.scores import check_output, coco_results, report, score, with_own_ids
from serving import contract
from serving.errors import CodetrError

SEED, IMAGES = 8, 6


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return read_dataset(write_dataset(tmp_path / "data", IMAGES, SEED), tmp_path / "data" / "images")


def detections(boxes: object, labels: list[int], scores: list[float] | None = None) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    values = np.array([0.9] * len(labels) if scores is None else scores, np.float32)
    return Detections(array, values, np.array(labels, np.int32), tuple(CLASS_NAMES[label] for label in labels))


def truth(dataset: Dataset, shift: float = 0.0) -> Callable[[], Detect]:
    """A detector that knows the annotations and moves every box by `shift` pixels; scores differ by image."""
    known = {image.path.read_bytes(): generate(SEED, index) for index, image in enumerate(dataset.images)}

    def detect(data: bytes) -> Detections:
        sample = known[data]
        return detections(sample.boxes + shift, sample.labels.tolist(), [0.5 + 1 / (3 + i) for i in sample.labels])

    return lambda: detect


def run(dataset: Dataset, output: Path, make: Callable[[], Detect], on_image: object = None) -> dict[int, Detections]:
    callback = on_image if callable(on_image) else lambda done: None
    return collect(dataset, output / "results.jsonl", "test", make, CLASS_NAMES, on_image=callback)


def test_the_annotations_themselves_have_an_ap_of_1(dataset: Dataset, tmp_path: Path) -> None:
    found = run(dataset, tmp_path, truth(dataset))
    result = report(dataset, "test", found, category_of_label(dataset, CLASS_NAMES), tmp_path)
    assert result["ap"] == pytest.approx(1.0)
    assert {round(figures["ap"], 6) for figures in result["classes"].values()} <= {1.0, -1.0}
    assert json.loads((tmp_path / "accuracy.json").read_text())["ap"] == result["ap"]
    assert sum(group["images"] for group in result["orientations"].values()) == IMAGES
    assert json.loads((tmp_path / "detections.json").read_text())[0].keys() == {
        "image_id",
        "category_id",
        "bbox",
        "score",
    }


def test_moved_boxes_lower_the_ap(dataset: Dataset, tmp_path: Path) -> None:
    found = run(dataset, tmp_path, truth(dataset, shift=3.0))
    ap = score(dataset, coco_results(found, category_of_label(dataset, CLASS_NAMES).categories)).ap
    assert 0.05 < ap < 0.95


def test_no_detections_at_all_have_an_ap_of_0(dataset: Dataset) -> None:
    assert score(dataset, []).ap == 0


def test_a_killed_run_continues_and_gives_the_same_figures(dataset: Dataset, tmp_path: Path) -> None:
    whole = run(dataset, tmp_path / "whole", truth(dataset, 1.0))

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "cut", truth(dataset, 1.0), stop)
    results = tmp_path / "cut" / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])  # killed while it wrote the third image
    asked = []

    def count_calls() -> Detect:
        detect = truth(dataset, 1.0)()
        return lambda data: (asked.append(1), detect(data))[1]

    resumed = run(dataset, tmp_path / "cut", count_calls)
    assert len(asked) == IMAGES - 2
    categories = category_of_label(dataset, CLASS_NAMES).categories
    assert coco_results(resumed, categories) == coco_results(whole, categories)


def test_several_threads_give_the_same_results(dataset: Dataset, tmp_path: Path) -> None:
    one = run(dataset, tmp_path / "1", truth(dataset))
    four = collect(dataset, tmp_path / "4" / "results.jsonl", "test", truth(dataset), CLASS_NAMES, concurrency=4)
    categories = category_of_label(dataset, CLASS_NAMES).categories
    assert coco_results(one, categories) == coco_results(four, categories)


def test_results_of_another_source_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, truth(dataset))
    with pytest.raises(CodetrError, match="results of something else"):
        collect(dataset, tmp_path / "results.jsonl", "another", truth(dataset), CLASS_NAMES)


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        pytest.param("B", "test of other weights, of another build or with other settings", id="other weights"),
        pytest.param("A", "1 of 6, such as .*000002.jpg, have changed since", id="another picture"),
    ],
)
def test_results_of_the_same_name_are_not_taken_for_others(
    dataset: Dataset, tmp_path: Path, identity: str, words: str
) -> None:
    results = tmp_path / "results.jsonl"
    collect(dataset, results, "test", truth(dataset), CLASS_NAMES, identity="A")
    kept = results.read_bytes()
    if identity == "A":
        with dataset.images[2].path.open("ab") as file:
            file.write(b"0")
    with pytest.raises(CodetrError, match=words):
        collect(dataset, results, "test", truth(dataset), CLASS_NAMES, identity=identity)
    assert results.read_bytes() == kept


def test_results_of_before_they_said_of_which_weights_are_not_gone_on_with(dataset: Dataset, tmp_path: Path) -> None:
    header = {"source": "test", "annotations_sha256": dataset.coco.sha256}
    (tmp_path / "results.jsonl").write_text(json.dumps(header) + "\n")
    with pytest.raises(CodetrError, match="by an earlier version, which did not say of which weights"):
        run(dataset, tmp_path, truth(dataset))


def test_a_failing_image_keeps_the_results_so_far(dataset: Dataset, tmp_path: Path) -> None:
    def fail_on_last() -> Detect:
        detect = truth(dataset)()
        last = dataset.images[-1].path.read_bytes()

        def guarded(data: bytes) -> Detections:
            if data == last:
                raise CodetrError("the server is gone")
            return detect(data)

        return guarded

    with pytest.raises(CodetrError, match="the server is gone"):
        run(dataset, tmp_path, fail_on_last)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == IMAGES  # the header and all but one image


def test_two_processes_do_not_write_one_results_file(dataset: Dataset, tmp_path: Path) -> None:
    with FileLock(tmp_path / "results.jsonl.lock"), pytest.raises(CodetrError, match="another process is writing"):
        run(dataset, tmp_path, truth(dataset))
    assert len(run(dataset, tmp_path, truth(dataset))) == IMAGES
    assert len(run(dataset, tmp_path, truth(dataset))) == IMAGES  # and this process has let go of it


def with_categories(folder: Path, categories: dict[str, int]) -> Dataset:
    """A data set of one image, and these categories with their ids."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    path = folder / "categories.json"
    entries = [{"id": id_, "name": name} for name, id_ in categories.items()]
    path.write_text(json.dumps({"images": [{"id": 5, "file_name": "a.png"}], "annotations": [], "categories": entries}))
    return read_dataset(path, folder)


def own_categories(dataset: Dataset, names: Sequence[str]) -> dict[int, Any]:
    """The file's own category id for each label."""
    ids = {category.number: category.id for category in dataset.coco.categories}
    return {label: ids[number] for label, number in category_of_label(dataset, names).categories.items()}


def test_cocos_80_labels_become_its_ids_of_up_to_90(tmp_path: Path) -> None:
    names = contract.coco_class_names()
    # COCO's own numbers of some classes: 12, 26, 29 and so on were never used.
    known = {"person": 1, "stop sign": 13, "backpack": 27, "toothbrush": 90}
    some = with_categories(tmp_path, known)
    assert own_categories(some, names) == {names.index(name): id_ for name, id_ in known.items()}
    assert own_categories(some, ()) == {0: 1, 1: 13, 2: 27, 3: 90}


def test_labels_without_a_class_match_no_category(tmp_path: Path) -> None:
    """Where labels are category ids, those of no category are called N/A, any number of them."""
    names = ("N/A", "person", "N/A", "stop sign", "N/A")
    some = with_categories(tmp_path, {"person": 1, "stop sign": 13})
    assert own_categories(some, names) == {1: 1, 3: 13}
    found = {1: detections([[0, 0, 9, 9], [1, 1, 5, 5], [1, 1, 6, 6]], [0, 3, 4])}
    rows = with_own_ids(some, coco_results(found, category_of_label(some, names).categories))
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(5, 13)]
    with pytest.raises(CodetrError, match=r"does not know 1 of the 1 .* 'N/A'; its classes are person, stop sign,"):
        category_of_label(with_categories(tmp_path, {"N/A": 2}), names)


def test_labels_without_a_category_are_left_out(dataset: Dataset) -> None:
    rows = coco_results({1: detections([[0, 0, 9, 9], [1, 1, 5, 5]], [0, 3])}, {3: 44})
    assert [row["category_id"] for row in rows] == [44]


def test_classes_the_detector_does_not_know_are_an_error(dataset: Dataset) -> None:
    with pytest.raises(CodetrError, match="does not know 8 of the 8 categories"):
        category_of_label(dataset, contract.coco_class_names())


def test_a_dead_server_is_one_clear_line() -> None:
    with pytest.raises(CodetrError, match="localhost:9"):
        open_server("localhost:9", "grpc", 2.0, "codetr")


def test_agreement_is_the_mean_overlap_of_matches() -> None:
    box, half, away = [0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60]
    assert agreement(detections([box], [1]), detections([box], [1])) == 1
    assert agreement(detections([box], [1]), detections([box], [2])) == 0
    assert agreement(detections([box, away], [1, 1]), detections([box], [1])) == 0.5
    assert agreement(detections([box], [1]), detections([half], [1])) == pytest.approx(0.6)
    assert agreement(detections([], []), detections([away], [1], [0.2])) == 1  # too weak to be shown


def test_the_worst_image_is_drawn_first_and_side_by_side(dataset: Dataset, tmp_path: Path) -> None:
    found = run(dataset, tmp_path, truth(dataset))
    full = next(image for image in dataset.images if len(found[image.number]))
    other = found | {full.number: detections([], [])}
    drawn = draw_worst(dataset, found, other, tmp_path / "worst", count=2)
    assert [value for _, value in drawn] == [0, 1]
    assert full.path.stem in drawn[0][0].stem
    with Image.open(drawn[0][0]) as picture:
        assert picture.size == (2 * full.width + GAP, full.height)


def test_the_worst_pictures_of_an_earlier_call_go(dataset: Dataset, tmp_path: Path) -> None:
    found = run(dataset, tmp_path, truth(dataset))
    earlier = draw_worst(dataset, found, found, tmp_path / "worst", count=3)
    (tmp_path / "worst" / "01-photograph.jpg").write_bytes(b"of somebody else")
    best = dataset.images[-1].number
    drawn = draw_worst(dataset, found, {**found, best: detections([[0, 0, 9, 9]], [1])}, tmp_path / "worst", count=2)
    assert drawn[0][0] not in [path for path, _ in earlier]
    left = {path.name for path in (tmp_path / "worst").iterdir()}
    assert left == {"01-photograph.jpg", *(path.name for path, _ in drawn)}


def test_orientations_are_those_of_the_files(dataset: Dataset) -> None:
    for name, images in by_orientation(dataset).items():
        assert all((image.width > image.height) == (name == "landscape") for image in images if name != "square")


def test_the_command_compares_with_itself(dataset: Dataset, tmp_path: Path) -> None:
    arguments = ["--annotations", dataset.annotations, "--images", dataset.images[0].path.parent]
    options = ["--output", tmp_path / "out", "--source", "pytorch", "--against", "pytorch", "--limit", 2]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments + options)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "AP pytorch co_dino_demo fp32 cpu - pytorch co_dino_demo fp32 cpu: +0.0000" in result.output
    assert "images=2" in result.output


def test_the_command_does_not_go_on_with_the_results_of_another_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    other = load_file(WEIGHTS["co_dino"])
    other["class_head.bias"] = other["class_head.bias"] + 1
    save_file(other, tmp_path / "other.safetensors")
    arguments = ["--annotations", dataset.annotations, "--images", dataset.images[0].path.parent]
    options = ["--output", tmp_path / "out", "--source", "pytorch", "--limit", 1]
    words = ["evaluate", *map(str, arguments + options)]
    for _ in range(2):
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    with pytest.raises(CodetrError, match="of other weights"):
        CliRunner().invoke(app, [*words, "--weights", str(tmp_path / "other.safetensors")], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--source", "onnx", "--weights", "epoch_12.pth"], "--weights: .* --source onnx", id="weights"),
        pytest.param(["--device", "cuda", "--precision", "fp16"], "--precision, --device: .*server", id="of PyTorch"),
        pytest.param(["--source", "onnx", "--variant", "detr_r50"], "--variant: .* --source onnx", id="variant"),
        pytest.param(["--source", "pytorch", "--url", "server:1"], "--url: .* --source pytorch", id="url"),
        pytest.param(
            ["--source", "pytorch", "--against", "pytorch", "--ca-file", "ca.pem"], "--ca-file: ", id="of TLS"
        ),
        pytest.param(
            ["--source", "onnx", "--concurrency", "8", "--timeout", "5", "--retries", "1"],
            "--concurrency, --timeout, --retries: .* --source onnx",
            id="of a server",
        ),
        pytest.param(
            ["--source", "pytorch", "--model", "street"], "--model: .* and no --repository", id="of no repository"
        ),
    ],
)
def test_options_that_do_not_count_are_refused(
    dataset: Dataset, tmp_path: Path, options: Sequence[str], words: str
) -> None:
    arguments = ["--annotations", dataset.annotations, "--images", tmp_path, "--output", tmp_path / "out", *options]
    with pytest.raises(CodetrError, match=f"^{words}"):
        CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_labels_also_name_the_classes_of_a_detector_in_this_process(dataset: Dataset, tmp_path: Path) -> None:
    content = json.loads(dataset.annotations.read_text())
    for category in content["categories"]:
        category["name"] = f"my {category['name']}"
    dataset.annotations.write_text(json.dumps(content))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"my {name}" for name in CLASS_NAMES))
    arguments = ["--annotations", dataset.annotations, "--images", dataset.images[0].path.parent, "--limit", 1]
    words = ["evaluate", *map(str, arguments), "--source", "pytorch", "--output", str(tmp_path / "out"), "--labels"]
    result = CliRunner().invoke(app, [*words, str(names)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "my circle" in result.output
    with pytest.raises(CodetrError, match="--labels coco: 80 names, and the detector has 8 classes"):
        CliRunner().invoke(app, [*words, "coco"], catch_exceptions=False)


@pytest.mark.parametrize("name", ["annotations", "image", "weights"])
def test_an_evaluation_overwrites_none_of_its_sources(dataset: Dataset, tmp_path: Path, name: str) -> None:
    output, source = tmp_path / "out", tmp_path / "source"
    output.mkdir()
    source.write_text(name)
    (output / "detections.json").hardlink_to(source)
    (output / "results.jsonl").touch()
    with pytest.raises(CodetrError, match=r"detections\.json would be overwritten, but it is read"):
        check_output(output, [None, dataset.annotations, source])
    check_output(output, [None, dataset.annotations])


def test_an_evaluation_overwrites_no_file_of_somebody_else(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "detections.json").write_text("[]")
    with pytest.raises(CodetrError, match=r"has detections\.json but no results\.jsonl of an earlier evaluation"):
        check_output(tmp_path, [])
    arguments = ["--annotations", dataset.annotations, "--images", dataset.images[0].path.parent]
    options = ["--output", tmp_path, "--source", "pytorch"]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments + options)])
    assert isinstance(result.exception, CodetrError)
    assert (tmp_path / "detections.json").read_text() == "[]"
    assert not (tmp_path / "results.jsonl").exists()


def test_the_worst_pictures_leave_photographs_alone(dataset: Dataset, tmp_path: Path) -> None:
    found = run(dataset, tmp_path, truth(dataset))
    first = draw_worst(dataset, found, found, tmp_path / "worst", count=1)[0][0]
    first.write_bytes(b"a photograph")
    for _ in range(2):
        ((second, _),) = draw_worst(dataset, found, found, tmp_path / "worst", count=1)
        assert second.stem == f"{first.stem}-2"
    assert first.read_bytes() == b"a photograph"
