"""codetr_run's steps before and after the engine against the server's own, from raw pixels and made candidates."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.contract import DETECTOR
from serving.manifest import MANIFEST
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
        headers = [Path("/usr/include", name) for name in ("nlohmann/json.hpp", "openssl/evp.h")]
        if shutil.which("g++") is None or not all(header.is_file() for header in headers):
            reason = "codetr_run needs g++, nlohmann-json3-dev and libssl-dev"
            pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
        sources = [
            SOURCE / name for name in ("test/probe.cpp", "checks.cpp", "rules.cpp", "pixels.cpp", "suppress.cpp")
        ]
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
        command = [
            "g++",
            "-std=c++17",
            "-O1",  # as much as the checks want: nlohmann's JSON takes twice as long at -O2
            "-ffp-contract=off",
            *checks,
            *map(str, sources),
            "-lcrypto",
            "-ldl",
            "-o",
            str(path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    return built_once("codetr_probe", write)


@pytest.fixture
def detector(tmp_path: Path, repository: Path) -> Path:
    """Return a detector's folder under another name, with the manifest of a plan."""
    folder = Path(shutil.copytree(repository / DETECTOR, tmp_path / "moved"))
    change(
        folder,
        engine="tensorrt",
        versions={"tensorrt": "8.5.3.1", "torch": "2.13.0+cpu"},
        compute_capability="9.0",
    )
    return folder


def change(folder: Path, **values: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(program: Path, request: str) -> str:
    """Return what the program says against a request; "" if nothing."""
    done = subprocess.run(
        [program], input=request.encode() + b"\n", capture_output=True, check=False, timeout=300, text=False
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr.decode().strip()


def test_a_file_is_run_only_as_it_was_built(probe: Path, detector: Path) -> None:
    assert refusal(probe, f"files {detector} 1") == ""
    assert refusal(probe, f"files {detector} 2") == (
        f"the manifest of {detector} has no engine in folder 2; give another --engine-version"
    )
    engine = detector / "1/model.onnx"
    good = engine.read_bytes()
    built, now = hashlib.sha256(good).hexdigest(), hashlib.sha256(good + b" ").hexdigest()
    engine.write_bytes(good + b" ")
    assert refusal(probe, f"files {detector} 1") == (
        f"{engine} is not the file that was built: its SHA-256 is {now}, manifest.json says {built}; "
        "build the repository again"
    )
    engine.unlink()
    assert refusal(probe, f"files {detector} 1") == (
        f"{detector} is incomplete: 1/model.onnx is missing; build it again"
    )


@pytest.mark.parametrize(
    ("values", "here", "message"),
    [
        pytest.param({}, "8.5.3 9.0", "", id="the same"),
        pytest.param({}, "8.6.1 9.0", "with TensorRT 8.5.3, this machine has 8.6.1", id="another TensorRT"),
        pytest.param(
            {"version_compatible": True}, "8.6.1 9.0", "with TensorRT 8.5.3", id="one that wants the runtime of 8.5 too"
        ),
        pytest.param({}, "8.5.3 8.9", "for compute capability 9.0, this machine has 8.9", id="another GPU"),
        pytest.param({"hardware_compatible": True}, "8.5.3 8.9", "", id="one that the plan is compatible with"),
        pytest.param({"compute_capability": None, "versions": {}}, "8.6.1 8.9", "", id="nothing is known"),
        pytest.param({"engine": "torch"}, "2.13.1 8.9", "", id="a package for CPUs, without a GPU in the question"),
        pytest.param(
            {"engine": "torch"}, "2.11.0 9.0", "with PyTorch 2.13, this machine has 2.11", id="another PyTorch"
        ),
        pytest.param(
            {"engine": "torch", "device": "cuda"}, "2.13.0 8.9", "for compute capability 9.0", id="a package for GPUs"
        ),
        pytest.param(
            {"engine": "torch", "cpu": {"machine": platform.machine(), "features": ["avx", "avx512f", "avx9", "sse2"]}},
            "2.13.0 9.0",
            "for a CPU with avx, avx512f, avx9, which this machine's lacks",
            id="another CPU",
        ),
        pytest.param(
            {"engine": "torch", "cpu": {"machine": "riscv", "features": ["v"]}},
            "2.13.0 9.0",
            "for processors of riscv, this machine has",
            id="another architecture",
        ),
    ],
)
def test_an_engine_is_run_only_where_it_was_built_for(
    probe: Path, detector: Path, tmp_path: Path, values: dict[str, Any], here: str, message: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu sse2 avx\n\nprocessor : 1\nflags\t\t: sse2 fpu avx512f\n")
    change(detector, **values)
    said = refusal(probe, f"machine {detector} {here} {cpuinfo}")
    assert said.startswith(f"the engine was built {message}" if message else "")
    assert bool(said) == bool(message), said
    assert not said or said.endswith("; build it again here")


@pytest.mark.parametrize(
    ("number", "release"), [(8503, "8.5.3"), (9100, "9.1.0"), (101601, "10.16.1"), (110400, "11.4.0")]
)
def test_releases_of_tensorrt_are_read_from_their_numbers(probe: Path, number: int, release: str) -> None:
    assert ask(probe, f"release {number}").decode() == release


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
