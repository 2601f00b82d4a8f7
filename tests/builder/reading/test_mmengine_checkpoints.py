"""Files of mmengine's own runner: whatever it trained with, what is read back are the tensors it had to deploy."""

import zipfile

import numpy as np
import pytest
import torch

from builder import load_detector
from builder.checkpoint import read_checkpoint
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import InputSpec
from builder.variants import from_mmdet_config
from tests.smallest import built

# The entries that only a case's settings put into the file of an epoch.
ENTRIES = {
    "plain": (),
    "ema": ("ema_state_dict",),
    "amp": ("loss_scaler",),
    "ema_amp": ("ema_state_dict", "loss_scaler"),
}
FILES = [
    pytest.param("epoch_1.pth", id="epoch"),
    pytest.param("best_coco_bbox_mAP_epoch_1.pth", id="best"),
    pytest.param("epoch_1-????????.pth", id="published"),
]


def truth(folder, part):
    with np.load(folder / "truth.npz") as file:
        keys = [key for key in file if key.startswith(f"{part}/")]
        return {key.removeprefix(f"{part}/"): torch.from_numpy(file[key]) for key in keys}


def class_names(folder):
    with np.load(folder / "truth.npz") as file:
        return tuple(file["classes"].tolist())


def pickled(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        return archive.read(name)


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(tensors[key], expected[key])] == []


@pytest.mark.parametrize("case", ENTRIES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_runners_tensors_and_class_names(mmengine_runs, shallow_config, case, name):
    (path,) = (mmengine_runs / case).glob(name)
    expected = truth(path.parent, "expected")
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, expected)
    assert checkpoint.class_names == class_names(path.parent)

    detector = load_detector(shallow_config, path)
    assert_same(detector.state_dict(), load_detector(shallow_config, expected).state_dict())
    assert detector.variant.class_names == class_names(path.parent)


def test_a_build_exports_the_averaged_weights_and_serves_the_classes(
    mmengine_runs, shallow_config, tmp_path, monkeypatch
):
    """The quick form of tests/e2e/test_mmengine_checkpoint.py: nothing is exported."""
    exported = []

    def build(program, path, settings):
        path.write_bytes(b"an engine")
        return built(file=path)

    monkeypatch.setattr("builder.pipeline.build.export_detector", lambda detector, spec: exported.append(detector))
    monkeypatch.setattr("builder.engines.onnx.build", build)
    run = mmengine_runs / "ema_amp"
    options = BuildOptions(
        from_mmdet_config(shallow_config), InputSpec(64, 96), run / "epoch_1.pth", skip_verification=True
    )
    build_repository(options, tmp_path / "repository")
    expected = load_detector(shallow_config, truth(run, "expected"))
    assert_same(exported[0].state_dict(), expected.state_dict())
    config = (tmp_path / "repository" / "codetr" / "config.pbtxt").read_text(encoding="utf-8")
    assert all(f'\\"{name}\\"' in config for name in class_names(run))


@pytest.mark.parametrize("case", ENTRIES)
def test_the_files_hold_what_makes_them_hard_to_read(mmengine_runs, shallow_weights, case):
    """Without this the other test could pass on files that nobody has: no history, or an average of nothing."""
    content = pickled(mmengine_runs / case / "epoch_1.pth")
    for line in (b"cmmengine.logging.history_buffer\nHistoryBuffer\n", b"c__builtin__\ngetattr\n"):
        assert line in content
    assert tuple(entry for entry in ENTRIES["ema_amp"] if entry.encode() in content) == ENTRIES[case]

    trained, expected = (truth(mmengine_runs / case, part) for part in ("trained", "expected"))
    weights = [key for key, value in shallow_weights.items() if value.is_floating_point()]
    assert all(not torch.equal(trained[key], shallow_weights[key]) for key in weights)
    averaged = [key for key in weights if not torch.equal(trained[key], expected[key])]
    assert averaged == (weights if "ema_state_dict" in ENTRIES[case] else [])
