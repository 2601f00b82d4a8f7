"""Reads the file of a checkpoint, whatever it is called, and says what a file is that is none.

PyTorch's files, zipped or not; safetensors; and the index of a checkpoint in several files (`*.index.json`), or a
folder that holds one.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors

from builder.reading import unpickle
from builder.reading.unpickle import StandIn
from codetr_client.text import printable
from serving.errors import CodetrError
from serving.manifest import sha256

INDEX = ".index.json"  # how the name of a sharded checkpoint's index ends
METADATA = "__metadata__"  # where the text beside a safetensors file's tensors goes in what is read

_HEAD = 4096  # bytes looked at to tell what a file is
_CHUNK = 1 << 20  # bytes read at once for a checksum
_SAVE = "save its weights instead: torch.save(model.state_dict(), 'weights.pth')"
_AGAIN = "copy or download it again"
# How files begin that come instead of a checkpoint.
_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to; fetch that with `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program or library"),
    (b"ftrt", "a TensorRT plan"),
    (b"GGUF", "a GGUF model"),
)


class CheckpointError(CodetrError):
    """Weights that cannot be loaded; the message says why, and `faults` holds every key at fault, a line each."""

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


def read_file(path: Path) -> Mapping[str, Any]:
    """Return what a checkpoint file holds: tensors by key, possibly nested; text of safetensors under `METADATA`.

    Nothing in the file is executed. Objects of foreign classes come as `builder.reading.unpickle.StandIn`.

    Raises:
        CheckpointError: there is no file; it is cut short, damaged, or something else, which is named.
    """
    if path.is_dir():
        path = _index_in(path)
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; `codetr variants` names the published files, and where they come from"
        )
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if path.name.endswith(INDEX):
            return _read_shards(path)
        content = _reader(path, head)(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if isinstance(content, StandIn) and content.is_module:
        raise CheckpointError(f"{path} holds a whole pickled module, {content.origin}; {_SAVE}")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {_an(type(content).__name__)}, not a state dict; {_SAVE}")
    return content


def digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint as 64 hex digits; of a sharded one that of its files' names and SHA-256."""
    if path.is_dir():
        path = _index_in(path)
    if not path.name.endswith(INDEX):
        return sha256(path)
    lines = "".join(f"{sha256(shard)}  {shard.name}\n" for shard in (path, *_shards(path)))
    return hashlib.sha256(lines.encode()).hexdigest()


def _reader(path: Path, head: bytes) -> Callable[[Path], Any]:
    """Return what reads a file that begins with `head`; raises CheckpointError for one that is no checkpoint."""
    if _is_safetensors(head) or path.suffix == ".safetensors":
        refused = _what_it_is(path, head)
        if refused and not _is_safetensors(head):
            raise CheckpointError(f"{path} is {refused}")
        return _read_safetensors
    refused = _what_it_is(path, head)
    if refused is not None:
        raise CheckpointError(f"{path} is {refused}")
    return _read_torch


def _what_it_is(path: Path, head: bytes) -> str | None:
    """Return in words what a file is, if it is certainly no file of `torch.save`."""
    if not head:
        return f"empty; {_AGAIN}"
    found = next((words for signature, words in _SIGNATURES if head.startswith(signature)), None)
    if found is not None:
        return found
    if head.startswith(b"PK"):
        return _what_zip_it_is(path)
    if tarfile.is_tarfile(path):
        return "a tar archive; unpack it first"
    return None if head.startswith(b"\x80") else _what_text_it_is(head)


def _what_zip_it_is(path: Path) -> str | None:
    try:
        if not zipfile.is_zipfile(path):
            return f"cut short (truncated): the end of its zip archive is missing; {_AGAIN}"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the last: a version of the format that is none
        return f"truncated or not a PyTorch checkpoint: its zip archive is damaged; {_AGAIN}"
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        return f"a TorchScript module; {_SAVE}"
    if "data.pkl" in files:
        return _damage(path)
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays; only files of torch.save and safetensors are read"
    packed = next((name for name in names if name.endswith((".pth", ".pt", ".bin", ".safetensors"))), None)
    if packed is not None:
        return f"a zip archive with {printable(packed)} in it; unpack it first"
    shown = ", ".join(printable(name) for name in names[:3]) or "nothing"
    return f"a zip archive of something else ({shown}{', ...' if len(names) > 3 else ''}), not of torch.save"


def _damage(path: Path) -> str | None:
    """Return in words which part of a zip archive is damaged, by its checksum, which PyTorch's reader ignores.

    A checksum of 0 is none: `torch.serialization.set_crc32_options(False)` leaves them out.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if not part.CRC:
                continue
            try:
                with archive.open(part) as file:
                    while file.read(_CHUNK):
                        pass
            except OSError:
                raise
            except Exception:  # a damaged archive can raise anything
                return f"damaged: the checksum of {printable(part.filename)} in it does not fit; {_AGAIN}"
    return None


def _what_text_it_is(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"<":
        return f"an HTML or XML page, probably of a download that failed; {_AGAIN}"
    if b"onnx" in head[:64] or b"pytorch" in head[:64]:
        return "an ONNX model; the checkpoint that it was exported from is needed"
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        text = start[: error.start].decode("utf-8") if error.start > len(start) - 4 else ""
    if not text or not all(char.isprintable() or char.isspace() for char in text):
        return "truncated or not a PyTorch checkpoint: it begins like no file of torch.save or safetensors"
    kind = "JSON text" if text[0] in "{[" else "text"
    return f"{kind}, not a PyTorch checkpoint; it begins with {printable(text.splitlines()[0][:40])!r}"


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**27


def _read_torch(path: Path) -> Any:
    try:
        return unpickle.load(path)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if "magic number" in str(error):
            raise CheckpointError(
                f"{path} is a Python pickle that torch.save did not write, not a PyTorch checkpoint"
            ) from error
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint; {_AGAIN}") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
            return tensors | {METADATA: file.metadata() or {}}
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        reason = printable(str(error).splitlines()[0])
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({reason}); {_AGAIN}") from error


def _index_in(folder: Path) -> Path:
    """Return the one index in a folder."""
    found = sorted(folder.glob(f"*{INDEX}"))
    if len(found) != 1:
        several = ", ".join(path.name for path in found)
        raise CheckpointError(
            f"{folder} is a folder with several indices ({several}); name one"
            if found
            else f"{folder} is a folder without *{INDEX}; name the checkpoint's file"
        )
    return found[0]


def _weight_map(index: Path) -> dict[str, str]:
    """Return which file of a sharded checkpoint holds each key."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{index} is no JSON object ({error}); {_AGAIN}") from error
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} has no 'weight_map' of keys to file names")
    foreign = [name for name in shards.values() if Path(name).name != name or name.endswith(INDEX)]
    if foreign:
        raise CheckpointError(f"{index} names {printable(foreign[0])!r}; expected a file beside it")
    return shards


def _shards(index: Path) -> list[Path]:
    """Return the files of a sharded checkpoint; raises CheckpointError for one that is not there."""
    shards = [index.with_name(name) for name in sorted(set(_weight_map(index).values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(f"{index} needs {', '.join(missing)} beside it; {_AGAIN}")
    return shards


def _read_shards(index: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for shard in _shards(index):
        content = read_file(shard)
        tensors |= {METADATA: tensors.get(METADATA) or content.get(METADATA, {})}
        wanted = [key for key, name in _weight_map(index).items() if name == shard.name]
        absent = [printable(key) for key in wanted if key not in content]
        if absent:
            raise CheckpointError(
                f"{shard} lacks {absent[0]}, which {index.name} says it has ({len(absent)} such keys); {_AGAIN}",
                tuple(f"missing: {key}" for key in absent),
            )
        tensors |= {key: content[key] for key in wanted}
    return tensors


def _an(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
