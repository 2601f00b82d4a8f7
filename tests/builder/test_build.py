import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from builder import get_variant
from builder.build import BuildOptions, build_repository, sample_images
from builder.engines import EngineError
from builder.export import InputSpec
from builder.manifest import describe, variant_of
from serving.errors import CodetrError

SPEC = InputSpec(64, 96)
SMALL = get_variant("co_dino_r50_12e").derive("small", num_classes=8, num_queries=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "caffe"}, "engine 'caffe' is not known; expected onnx"),
        ({"engine": "onnx", "precision": "float16"}, "onnx engine has no precision 'float16'; expected float32"),
    ],
)
def test_impossible_options_are_named_before_anything_is_done(tmp_path, options, message):
    with pytest.raises(EngineError, match=message):
        build_repository(BuildOptions(SMALL, SPEC, **options), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_full_disk_is_named_before_the_long_part(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr("builder.build.export_detector", lambda *args: pytest.fail("the export was started"))
    with pytest.raises(CodetrError, match=r"0\.0 GiB free, the build needs 0\.5 GiB"):
        build_repository(BuildOptions(SMALL, SPEC), tmp_path / "repository")


def test_sample_images_come_from_a_folder_in_rgb(tmp_path):
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no image")
    (image,) = sample_images(tmp_path)
    assert (image == red).all()


@pytest.mark.parametrize("content", [None, b"not an image"], ids=["empty folder", "broken image"])
def test_a_folder_without_readable_images_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(CodetrError, match="holds no readable images"):
        sample_images(tmp_path)


@pytest.mark.parametrize("name", ["co_dino_swin_l_o365", "co_dino_r50_lsj_36e"])
def test_a_manifest_gives_its_variant_back(name):
    variant = dataclasses.replace(get_variant(name), class_names=tuple(map(str, range(80))))
    manifest = describe(variant, None, 7, "onnx", "float32", SPEC, None)
    assert variant_of(json.loads(json.dumps(manifest))) == variant
    assert (manifest["weights"], manifest["seed"]) == (None, 7)


def test_a_manifest_without_a_network_is_named():
    with pytest.raises(CodetrError, match="no network this version knows"):
        variant_of({"variant": "x"})
