"""The reference data of RT-DETRv2; tests/data/README.md says where it comes from."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from builder import load_detector

CASES = ("eval96", "wide", "tall_b2", "square_b2", "odd", "border")
DISCRETE_CASES = ("eval96", "wide", "square_b2")


class Case:
    """The arrays of one case as tensors."""

    def __init__(self, arrays, name):
        self.arrays, self.name = arrays, name
        images = self["image_u8"]
        self.pixels, self.images = images.float() / 255, images.permute(0, 2, 3, 1).contiguous()
        self.image_sizes = torch.tensor([images.shape[2:]] * len(images), dtype=torch.int32)

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[f"{self.name}/{key}"])

    def list(self, pattern, count):
        return [self[pattern.format(i)] for i in range(count)]


@pytest.fixture(scope="package")
def golden(data_dir):
    with np.load(data_dir / "golden_rtdetrv2_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="package")
def golden_config(golden):
    return json.loads(bytes(golden["config_json"]).decode())


@pytest.fixture(scope="package")
def golden_weights(golden):
    return {key.removeprefix("sd/"): torch.from_numpy(golden[key]) for key in golden if key.startswith("sd/")}


@pytest.fixture(scope="package")
def discrete_config(golden_config):
    config = copy.deepcopy(golden_config)
    config["RTDETRTransformerv2"]["cross_attn_method"] = "discrete"
    return config


@pytest.fixture(scope="package")
def detector(golden_config, golden_weights):
    return load_detector(golden_config, golden_weights)


@pytest.fixture(params=CASES)
def case(golden, request):
    return Case(golden, request.param)


@pytest.fixture
def eval96(golden):
    return Case(golden, "eval96")
