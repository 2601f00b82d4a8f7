"""The torch engine on a CPU: compiled, verified, and served by a real tritonserver beside its own runner's source."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from builder import random_detector
from builder.families import FAMILIES
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import InputSpec
from codetr_client.client import CoDetrClient
from model_repository.torch_runner import TorchRunner
from serving.errors import CodetrError
from serving.manifest import read_manifest
from serving.model_config import instance_count, read_model_config
from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import preprocess, resize_and_pad
from serving.rules import Rules
from serving.stubs import stubs_of
from tests.clients.cpp.program import PACKAGES
from tests.e2e.conftest import killed_server
from tests.smallest import SMALLEST
from tests.toy_family import SMALL, TOY

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None and os.environ.get("CI") != "true", reason="needs a C++ compiler"
)


ROOT = Path(__file__).parents[2]
# A network of a few kernels, and one with our operator, whose compilation takes two minutes.
VARIANTS = {"toy": replace(SMALL, rules=Rules()), "smallest": SMALLEST}


@pytest.fixture(scope="module", params=["toy", pytest.param("smallest", marks=pytest.mark.slow)])
def variant(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy", TOY)
        yield VARIANTS[request.param]


@pytest.fixture(scope="module")
def compiled(variant, built_once):
    """The repository of a package; tests must not change it."""
    options = BuildOptions(variant, InputSpec(64, 96, 2), seed=3, engine="torch")
    # Precompiling PyTorch's headers takes longer than to read them once.
    headers = {"cpp_cache_precompile_headers": False, "aot_inductor.precompile_headers": False}
    with torch._inductor.config.patch(headers):
        return built_once(f"compiled-{variant.name}", lambda path: build_repository(options, path))


@pytest.fixture(scope="module")
def served(compiled):
    with killed_server(compiled) as server:
        yield server


def test_compiled_package_reproduces_the_detector(compiled):
    verification = read_manifest(compiled)["verification"]
    assert verification["matched"] == 1
    assert verification["batch_matched"] == 1


@pytest.mark.server
def test_compiled_package_is_served(served, variant):
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(file, "PNG")
    with CoDetrClient(served.grpc_url) as client:
        found = client.detect(file.getvalue())

    images, image_size, original_size = preprocess(file.getvalue(), 64, 96)
    detector = random_detector(variant, seed=3)
    candidates = detector(torch.from_numpy(images)[None], torch.tensor([image_size], dtype=torch.int32))
    boxes, scores, labels = (part[0].numpy() for part in candidates)
    expected = postprocess(
        boxes, scores, labels, original_size, PostprocessSettings(max_detections=variant.max_detections)
    )
    np.testing.assert_allclose(found.boxes, expected.boxes[: len(found)], atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores[: len(found)], atol=1e-4)


def busy_seconds(metrics_url):
    with urllib.request.urlopen(metrics_url, timeout=60) as page:
        found = re.search(rb"^codetr_engine_busy_seconds_total\{.*\} (.+)$", page.read(), re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.server
def test_instances_that_share_an_engine_answer_as_one_and_come_back_when_it_dies(compiled, served, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(compiled, repository)
    config = repository / "codetr_detector" / "config.pbtxt"
    if "codetr_detector_guest" not in config.read_text():  # of an engine for a GPU `codetr build` lets one be a guest
        config.write_text(
            config.read_text() + '\ninstance_group { name: "codetr_detector_guest" kind: KIND_CPU count: 2 }\n'
        )
    guests = {f"codetr_detector_guest_{i}" for i in range(instance_count(read_model_config(config)) - 1)}
    pictures = [np.random.default_rng(i).integers(0, 256, (50 + i, 40, 3), dtype=np.uint8) for i in range(6)]

    def detections(url):
        with CoDetrClient(url) as client:
            return [client.detect(picture).boxes for picture in pictures]

    def check(found):
        for boxes, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(boxes, wanted, atol=1e-2)

    expected = detections(served.grpc_url)
    with killed_server(repository) as server:
        began = time.monotonic()
        server.watch(lambda said: None)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(detections, [server.grpc_url] * 16):
                check(found)
        processes = {
            stub.instance: psutil.Process(stub.pid)
            for stub in stubs_of(server.process.pid)
            if stub.model == "codetr_detector"
        }
        with_torch = {
            name for name, each in processes.items() if any("libtorch" in part.path for part in each.memory_maps())
        }
        assert with_torch == {"codetr_detector_0_0"}
        # The engine's time is on the page, that of all instances' batches and each second once.
        until = time.monotonic() + 60
        while not (busy := busy_seconds(server.metrics_url)):
            assert time.monotonic() < until, "no time of the engine on the page of metrics"
            time.sleep(0.2)
        assert 0 < busy < time.monotonic() - began
        assert guests
        assert set(processes) == {"codetr_detector_0_0"} | guests
        processes["codetr_detector_0_0"].kill()
        answered = 0
        until = time.monotonic() + 180
        while answered < 6:  # in a row: guests of the new engine too
            assert time.monotonic() < until, "no answers again"
            try:
                check(detections(server.grpc_url))
                answered += 1
            except CodetrError:
                answered = 0
                time.sleep(0.2)


@pytest.mark.slow
def test_codetr_run_finds_what_the_server_finds(compiled, built_once, tmp_path):
    """The package without a server, by libtorch."""
    program = built_once("codetr_run", build_codetr_run)
    images = [np.random.default_rng(i).integers(0, 256, (50 + i, 40, 3), dtype=np.uint8) for i in range(3)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    detector = compiled / "codetr_detector"
    command = [program, detector, *(tmp_path / f"{i}.png" for i in range(3)), "--output", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--score-threshold", "0.05"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    runner = TorchRunner(detector / "1" / "model.pt2", (64, 96), "cpu")
    manifest = read_manifest(compiled)
    rules = Rules.restore(manifest["network"])
    settings = PostprocessSettings.of(rules.suppression, manifest["max_detections"])
    for image, result in zip(images, found, strict=True):
        canvas, size = resize_and_pad(image, 64, 96, rules.pixels)
        boxes, scores, labels = (each[0] for each in runner(canvas[None], np.array([size], np.int32)))
        expected = postprocess(boxes, scores, labels, image.shape[:2], settings, lowest_score=0.05)
        assert expected.num_detections > 0
        rows = result["detections"]
        assert [row["label"] for row in rows] == expected.labels[: expected.num_detections].tolist()
        np.testing.assert_array_equal([row["score"] for row in rows], expected.scores[: len(rows)])
        np.testing.assert_array_equal([row["box"] for row in rows], expected.boxes[: len(rows)])


def build_codetr_run(path):
    folder = path.with_name("runner")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    cmake = ["cmake", "-S", ROOT / "plugin_src/runner", "-B", folder, prefix, "-DTENSORRT_INCLUDE_DIR="]
    found = subprocess.run(cmake, capture_output=True, text=True, check=False) if shutil.which("cmake") else None
    if found is None or found.returncode != 0:
        reason = f"codetr_run needs cmake, pkg-config, libssl-dev and {PACKAGES}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    command = ["cmake", "--build", folder, "--target", "codetr_run", "--parallel", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    shutil.copy(folder / "codetr_run", path)
