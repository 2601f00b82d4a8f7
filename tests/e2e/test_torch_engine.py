"""The torch engine on a CPU: compiled, verified, and served by a real tritonserver beside its own runner's source."""

import os
import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from builder import random_detector
from builder.families import FAMILIES
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import InputSpec
from codetr_client.client import CoDetrClient
from serving.launch import running_server
from serving.manifest import read_manifest
from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import preprocess
from serving.rules import Rules
from tests.smallest import SMALLEST
from tests.toy_family import SMALL, TOY

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")


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
    return built_once(f"compiled-{variant.name}", lambda path: build_repository(options, path))


def test_compiled_package_reproduces_the_detector(compiled):
    verification = read_manifest(compiled)["verification"]
    assert verification["matched"] == 1
    assert verification["batch_matched"] == 1


@pytest.mark.server
def test_compiled_package_is_served(compiled, variant):
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(file, "PNG")
    with running_server(compiled) as server, CoDetrClient(server.grpc_url) as client:
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
