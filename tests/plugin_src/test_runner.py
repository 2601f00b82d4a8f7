"""codetr_run's steps before and after the engine against the server's own, from raw pixels and made candidates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import resize_and_pad
from serving.rules import Pixels, Suppression

SOURCE = Path(__file__).parents[2] / "plugin_src/runner"
Array = NDArray[Any]
FOUND = np.dtype([("box", "f4", 4), ("score", "f4"), ("label", "i4")])


@pytest.fixture(scope="session")
def probe(built_once):
    """Return the program that does both steps, compiled with the checks of addresses and undefined behaviour."""

    def write(path):
        if shutil.which("g++") is None or not Path("/usr/include/nlohmann/json.hpp").is_file():
            reason = "codetr_run needs g++ and nlohmann-json3-dev"
            pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
        sources = [SOURCE / name for name in ("test/probe.cpp", "rules.cpp", "pixels.cpp", "suppress.cpp")]
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
        command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", *checks, *map(str, sources), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    return built_once("codetr_probe", write)


def ask(program, request, *arrays):
    data = request.encode() + b"\n" + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return subprocess.run([program], input=data, capture_output=True, check=True, timeout=300).stdout


def text_of(rule):
    return json.dumps(asdict(rule), separators=(",", ":"))


def pixels_of(program, image, height, width, rule):
    answer = ask(program, f"pixels {image.shape[0]} {image.shape[1]} {height} {width} {text_of(rule)}", image)
    size = np.frombuffer(answer, np.int32, 2)
    return np.frombuffer(answer, np.uint8, offset=8).reshape(height, width, 3), tuple(size.tolist())


RULES = {
    "mmdetection": Pixels(),
    "stretched": Pixels(resize="stretch", antialias=True),
    "stretched without a filter": Pixels(resize="stretch"),
    "detr": Pixels(antialias=True, shortest_edge=80, longest_edge=133),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_pixels_are_the_servers_bit_for_bit(probe, rule):
    random = np.random.default_rng(0)
    sizes = [
        (61, 97),
        (97, 61),
        (251, 333),
        (192, 288),
        (96, 144),
        (1, 1),
        (1, 300),
        (300, 1),
        (2, 3),
        (40, 120),
        (640, 80),
    ]
    sizes += [tuple(random.integers(1, 400, 2).tolist()) for _ in range(12)]
    for h, w in sizes:
        image = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        expected, size = resize_and_pad(image, 96, 144, rule)
        found, found_size = pixels_of(probe, image, 96, 144, rule)
        assert found_size == size, (h, w)
        np.testing.assert_array_equal(found, expected, err_msg=f"{h}x{w}")


def test_pixels_of_the_reference_pipelines(probe, data_dir):
    with np.load(data_dir / "preprocess.npz") as file:
        images = {key.split("/")[0]: file[key] for key in file if key.endswith("/image_rgb_u8")}
    assert len(images) >= 7
    for name, image in images.items():
        expected, size = resize_and_pad(image, 96, 144)
        found, found_size = pixels_of(probe, image, 96, 144, Pixels())
        assert found_size == size, name
        np.testing.assert_array_equal(found, expected, err_msg=name)


def detections_of(program, boxes, scores, labels, original, rule, most, lowest):
    h, w = original
    request = f"detections {len(scores)} {h} {w} {most} {'none' if lowest is None else lowest} {text_of(rule)}"
    answer = ask(program, request, boxes.astype("f4"), scores.astype("f4"), labels.astype("i4"))
    rows = np.frombuffer(answer, FOUND, offset=4)
    assert len(rows) == np.frombuffer(answer, np.int32, 1)[0]
    return rows


def check_detections(program, boxes, scores, labels, rule, most=300, lowest=None, original=(480, 640)):
    boxes, scores, labels = boxes.astype("f4"), scores.astype("f4"), labels.astype("i4")
    expected = postprocess(boxes, scores, labels, original, PostprocessSettings.of(rule, most), lowest)
    found = detections_of(program, boxes, scores, labels, original, rule, most, lowest)
    assert len(found) == expected.num_detections
    np.testing.assert_array_equal(found["box"], expected.boxes[: len(found)])
    np.testing.assert_array_equal(found["score"], expected.scores[: len(found)])
    np.testing.assert_array_equal(found["label"], expected.labels[: len(found)])


def candidates(seed: int, count: int = 200, labels: int = 4) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    centres, sides = random.uniform(0, 1, (count, 2)) ** 2, random.uniform(0.05, 0.4, (count, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    scores = np.round(random.uniform(0, 1, count), 2)  # equal scores are frequent
    return boxes, scores, random.integers(0, labels, count)


@pytest.mark.parametrize("kind", ["soft", "hard", "none"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8])
def test_detections_are_the_servers_to_the_bit(probe, kind, threshold):
    for seed in range(4):
        for rule in (
            Suppression(kind, threshold, class_agnostic=seed % 2 == 0, clip=seed < 2),
            Suppression(kind, threshold, score_threshold=0.3, min_score=0.05),
        ):
            check_detections(probe, *candidates(seed), rule)
            check_detections(probe, *candidates(seed), rule, most=20, lowest=0.25)


def test_detections_of_the_reference_suppression(probe, data_dir):
    with np.load(data_dir / "nms.npz") as file:
        names = sorted({key.split("/")[0] for key in file})
        for name in names:
            boxes, scores, labels = (file[f"{name}/{part}"] for part in ("boxes", "scores", "labels"))
            scale = float(np.abs(boxes).max())
            for kind, threshold in (("soft", 0.8), ("hard", 0.8), ("hard", 0.5)):
                check_detections(probe, boxes / scale, scores, labels, Suppression(kind, threshold))  # type: ignore[arg-type]


def test_candidates_that_are_no_numbers(probe):
    boxes, scores, labels = candidates(9)
    boxes[3, 1], scores[5], boxes[7, 0], scores[11] = np.nan, np.inf, -np.inf, np.nan
    scores[20:40] = 0
    for kind in ("soft", "hard", "none"):
        check_detections(probe, boxes, scores, labels, Suppression(kind))  # type: ignore[arg-type]
    check_detections(probe, boxes[:0], scores[:0], labels[:0], Suppression())


@pytest.mark.parametrize(
    ("request_line", "message"),
    [
        ('pixels 1 1 2 2 {"resize":"crop"}', "resize: expected fit or stretch, got crop"),
        ("pixels 1 1 2 2 []", "the rule of pixels is no JSON object"),
        ('detections 0 1 1 3 none {"kind":"fast"}', "kind of suppression: expected soft, hard or none, got fast"),
        ('detections 0 1 1 3 none {"kind":"soft"}', "the manifest has no usable iou_threshold"),
    ],
)
def test_a_rule_that_is_none_is_named(probe, request_line, message):
    done = subprocess.run(
        [probe], input=request_line.encode() + b"\n\0\0\0", capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.decode().strip() == message
