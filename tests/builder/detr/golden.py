"""The arrays of the original's own run, by case (tests/data/README.md)."""

import copy
import json

import torch

from builder import load_detector

CASES = ("full", "batch2", "odd", "odd_on_canvas", "few_valid", "tiny_alone", "e2e", "dc5_batch2")


class Golden:
    """What the file holds: settings, weights and cases."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.config = json.loads(bytes(arrays["config_json"]).decode())
        self.weights = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}

    def settings(self, dilated=False):
        config = copy.deepcopy(self.config)
        config["backbone"]["dilation_c5"] = dilated
        return config

    def detector(self, dilated=False, precision="float32"):
        return load_detector(self.settings(dilated), self.weights, precision)


class Case:
    """The arrays of one case as tensors."""

    def __init__(self, golden, name):
        self.golden, self.name = golden, name
        self.dilated = bool(golden.arrays[f"{name}/dilation_c5"])
        source = golden.arrays.get(f"{name}/inputs_from")
        self.inputs = self if source is None else Case(golden, bytes(source).decode())
        self.pixels, self.image_sizes = self.inputs["image"], self.inputs["valid_hw"].int()

    def __getitem__(self, key):
        return torch.from_numpy(self.golden.arrays[f"{self.name}/{key}"])

    def __contains__(self, key):
        return f"{self.name}/{key}" in self.golden.arrays

    def images(self):
        """Return the uint8 images [B, H, W, 3], with noise in the padding, where nothing may matter."""
        batch, _, height, width = self.pixels.shape
        images = torch.randint(256, (batch, height, width, 3), generator=torch.Generator().manual_seed(0)).byte()
        for index in range(batch):
            image = self.inputs[f"image_rgb_u8/{index}"]
            images[index, : image.shape[0], : image.shape[1]] = image
        return images


def assert_close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
