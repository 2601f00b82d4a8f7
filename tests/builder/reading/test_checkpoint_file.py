"""Files as people hold them: what loads whatever its name, and what each of the others is called."""

import argparse
import collections
import contextlib
import enum
import functools
import gzip
import io
import json
import pickle
import random
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from builder.reading.checkpoint_file import METADATA, CheckpointError, digest, read_file

WEIGHTS = {"neck.weight": torch.arange(6.0).reshape(2, 3), "neck.bias": torch.ones(2).half()}


def assert_weights(content):
    assert {key: content[key].tolist() for key in WEIGHTS} == {key: value.tolist() for key, value in WEIGHTS.items()}


class History:
    """As mmengine's: an array, and bound methods, whose reading needs `builtins.getattr`."""

    class Statistic:
        pass

    def __init__(self):
        self.log, self.inner = np.arange(3.0), History.Statistic()
        self.methods = {"mean": self.mean}

    def mean(self):
        return self.log.mean()


class Mode(enum.Enum):
    TRAIN = 1


class Settings(dict):
    pass


class Sequence(list):
    pass


def foreign():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    return {
        "message_hub": {"log": History(), "counts": {History()}, History(): 1},
        "mode": Mode.TRAIN,
        "cfg": Settings(lr=1e-4),
        "sequence": Sequence([1, 2]),
        "namespace": argparse.Namespace(epochs=12),
        "partial": functools.partial(max, 1),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2),
        "optimizer": optimizer.state_dict(),
        "numbers": [np.float64(1), np.int32(2), 3 + 4j, collections.Counter("aab"), collections.deque([1])],
        "float8": torch.ones(4).to(torch.float8_e4m3fn),
        "sparse": torch.eye(2).to_sparse(),
        "storage": torch.ones(3).untyped_storage(),
        "device": torch.device("cuda:1"),
        "dtype": torch.float16,
        "by name": collections.defaultdict(list, {"a": [1]}),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_whatever_lies_beside_the_weights(tmp_path, zipped, protocol):
    path = tmp_path / "epoch_12.pth"
    content = {"state_dict": collections.OrderedDict(WEIGHTS), **foreign()}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    read = read_file(path)
    assert read.keys() == content.keys()
    assert_weights(read["state_dict"])
    assert read["by name"] == {"a": [1]}


def test_tensors_share_nothing_with_gradients_or_hooks(tmp_path):
    layer = torch.nn.Linear(2, 3)
    torch.save({"weight": layer.weight}, tmp_path / "w.pth")
    read = read_file(tmp_path / "w.pth")["weight"]
    assert type(read) is torch.Tensor
    assert torch.equal(read, layer.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.bin"])
def test_safetensors_by_any_name(tmp_path, name):
    safetensors.torch.save_file(WEIGHTS, tmp_path / name, metadata={"class_names": "a,b"})
    assert_weights(read_file(tmp_path / name))


def test_a_file_of_torch_save_called_safetensors_is_named(tmp_path):
    torch.save(WEIGHTS, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        read_file(tmp_path / "model.safetensors")


def sharded(folder):
    names = dict(zip(WEIGHTS, ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), strict=True))
    for key, name in names.items():
        safetensors.torch.save_file({key: WEIGHTS[key]}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": names}))
    return index


def test_sharded_by_its_index_or_folder(tmp_path):
    index = sharded(tmp_path)
    assert_weights(read_file(index))
    assert_weights(read_file(tmp_path))
    first = digest(index)
    assert first == digest(tmp_path)
    safetensors.torch.save_file({"neck.bias": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    assert digest(index) != first


@pytest.mark.parametrize("key", WEIGHTS)
def test_the_text_of_one_shard_is_that_of_all(tmp_path, key):
    index = sharded(tmp_path)
    shard = tmp_path / json.loads(index.read_text())["weight_map"][key]
    safetensors.torch.save_file({key: WEIGHTS[key]}, shard, {"class_names": "cat,dog"})
    assert read_file(index)[METADATA] == {"class_names": "cat,dog"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), r"needs model-00002-of-00002\.safe"),
        (
            lambda folder: safetensors.torch.save_file(
                {"x": torch.ones(1)}, folder / "model-00002-of-00002.safetensors"
            ),
            r"lacks neck\.bias, which model\.safetensors\.index\.json says",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "is no JSON object"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[1]"), "is no JSON object"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "has no 'weight_map'"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.pth"}}'),
            r"names '\.\./x\.pth'; expected a file beside it",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"x": "model.safetensors.index.json"}}'
            ),
            "expected a file beside it",
        ),
        (lambda folder: (folder / "other.index.json").write_text("{}"), "several indices"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), r"is a folder without \*\.index\.json"),
    ],
)
def test_broken_sharded_checkpoints(tmp_path, change, message):
    sharded(tmp_path)
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        read_file(tmp_path)


def packed(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def zipped(**members):
    def save(buffer):
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name.replace("__", "."), content)

    return packed(save)


def tarred(buffer):
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


TORCH = packed(lambda buffer: torch.save(WEIGHTS, buffer))
LEGACY = packed(lambda buffer: torch.save(WEIGHTS, buffer, _use_new_zipfile_serialization=False))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
OTHERS = [
    pytest.param(b"", "is empty", id="empty"),
    pytest.param(POINTER, "Git LFS pointer.*git lfs pull", id="LFS pointer"),
    pytest.param(b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML.*download that failed", id="HTML"),
    pytest.param(b"\n\n <HTML><head>", "HTML", id="HTML in capitals"),
    pytest.param(b"\xef\xbb\xbf<html>", "HTML", id="HTML with a byte order mark"),
    pytest.param(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML", id="XML of an object store"),
    pytest.param(b'{"message": "Not Found"}', "JSON text", id="JSON"),
    pytest.param(b"model = dict(type='CoDETR')\n", 'text.*begins with "model = dict', id="a config"),
    pytest.param("größer".encode(), "is text", id="UTF-8 text"),
    pytest.param(TORCH[:-1000], "cut short", id="zip cut at its end"),
    pytest.param(TORCH[:200], "cut short", id="zip cut at its start"),
    pytest.param(LEGACY[:-10], "truncated or not a PyTorch checkpoint", id="legacy cut"),
    pytest.param(LEGACY[:100], "truncated or not a PyTorch checkpoint", id="legacy cut at its start"),
    pytest.param(zipped(word__document="x"), r"a zip archive of something else \(word\.document\)", id="zip"),
    pytest.param(zipped(epoch_12__pth=TORCH), "zip archive with epoch_12.pth in it; unpack", id="zipped checkpoint"),
    pytest.param(packed(lambda b: np.savez(b, x=np.ones(2))), "archive of NumPy arrays", id="npz"),
    pytest.param(packed(lambda b: np.save(b, np.ones(2))), "a NumPy array", id="npy"),
    pytest.param(gzip.compress(TORCH), "gzip archive; unpack", id="gzip"),
    pytest.param(packed(tarred), "tar archive; unpack", id="tar"),
    pytest.param(pickle.dumps({"model": 1}), "Python pickle that torch.save did not write", id="plain pickle"),
    pytest.param(b"\x89PNG\r\n\x1a\n", "PNG image", id="PNG"),
    pytest.param(b"\x08\x07\x12\x07pytorch\x1a\x052.0.0", "an ONNX model", id="ONNX"),
    pytest.param(bytes(range(1, 256)), "truncated or not a PyTorch checkpoint", id="bytes"),
]


@pytest.mark.parametrize(("content", "message"), OTHERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_other_files_are_named(tmp_path, content, message, suffix):
    path = tmp_path / f"co_dino{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"co_dino{suffix} is ") as error:
        read_file(path)
    pickled = suffix == ".safetensors" and content.startswith(b"\x80")
    assert error.match("truncated or not a safetensors file" if pickled else f"(?s){message}")
    assert "weights_only" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


def test_torchscript_is_not_loaded(tmp_path):
    path = tmp_path / "script.pt"
    path.write_bytes(zipped(constants__pkl=b"", data__pkl=b"", code="x"))
    with pytest.raises(CheckpointError, match="a TorchScript module; save its weights"):
        read_file(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "secret.pth").write_bytes(TORCH)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(CheckpointError, match=r"secret\.pth cannot be read: Permission denied"):
        read_file(tmp_path / "secret.pth")


def hostile(module, name):
    """A pickle that builds state on a global: {} on it, and an attribute `__call__`."""
    state = pickle.dumps((None, {"__call__": 1, "__code__": 1}), protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."


@pytest.mark.parametrize(
    ("module", "name"),
    [("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("builtins", "getattr")],
)
def test_a_pickle_cannot_change_what_reads_it(tmp_path, module, name):
    path = tmp_path / "hostile.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", hostile(module, name))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError, match="truncated or not a PyTorch checkpoint"):
        read_file(path)


@pytest.mark.parametrize("content", [TORCH, LEGACY], ids=["zip", "legacy"])
def test_damaged_bytes_are_always_our_error(tmp_path, content):
    rng, path = random.Random(0), tmp_path / "damaged.pth"
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        with contextlib.suppress(CheckpointError):
            read_file(path)  # in a file without checksums a changed weight cannot be told


def test_a_changed_weight_is_told_by_its_checksum(tmp_path):
    path, damaged = tmp_path / "damaged.pth", bytearray(TORCH)
    weight = next(iter(WEIGHTS.values())).numpy().tobytes()
    damaged[TORCH.index(weight)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"damaged: the checksum of \S+/data/\d+ in it does not fit; copy or"):
        read_file(path)


def test_a_file_that_was_saved_without_checksums_is_read(tmp_path):
    path, usual = tmp_path / "epoch_12.pth", torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(usual)
    assert read_file(path).keys() == WEIGHTS.keys()
