"""A repository's manifests, one for each engine: which files belong to it, by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from serving.contract import DETECTOR, ENSEMBLE, MODELS, model_name
from serving.errors import CodetrError

MANIFEST = "manifest.json"  # in the detector's folder
# In the manifest: SHA-256 as hex digits by path within the repository.
FILES = "files"
# Of the manifest's keys; those of before had no `schema`, and lay in the repository itself.
SCHEMA = 4
# In the manifest of a plan: "tensorrt" or "python", the backend of Triton that runs it; missing stands for the first.
PLAN_BACKEND = "plan_backend"

# Parameter of the ensemble's config: what of the manifest a running server tells everybody, as JSON.
ABOUT = "about"

CPUINFO = Path("/proc/cpuinfo")
# Of an x86-64 CPU's flags, the instruction sets that compiled code can hold unasked. The rest concerns the system, or
# takes an explicit call (such as rtm, which machines switch off).
_X86_FLAG = re.compile(
    r"avx\w*|amx_\w+|mmx|sse\w*|pni|ssse3|fma4?|f16c|xop|tbm|bmi\d|abm|popcnt|movbe|adx|cx16|lahf_lm|v?aes|"
    r"v?pclmulqdq|gfni|sha_ni"
)


def manifest_path(repository: Path, name: str = ENSEMBLE) -> Path:
    """Return where the manifest of the engine `name` is: in its detector's folder, or where older builds put it."""
    path, older = repository / model_name(DETECTOR, name) / MANIFEST, repository / older_manifest(name)
    return older if older.is_file() and not path.is_file() else path


def older_manifest(name: str) -> str:
    """Return the file name of an engine's manifest in the repositories of version 1."""
    return MANIFEST if name == ENSEMBLE else f"{name}.{MANIFEST}"


def engine_names(repository: Path) -> list[str]:
    """Return the names of a repository's engines, which are those of its ensembles.

    A detector without manifest counts too, so that nothing is served unchecked.
    """
    ending = DETECTOR.removeprefix(ENSEMBLE)
    names = {path.name.removesuffix(ending) for path in repository.glob(f"*{ending}")}
    names |= {path.name.removesuffix(f".{MANIFEST}") for path in repository.glob(f"*.{MANIFEST}")}
    return sorted(names | ({ENSEMBLE} if (repository / MANIFEST).is_file() else set()))


def foreign_folders(repository: Path) -> list[str]:
    """Return the names of a repository's folders that are no models, with which no tritonserver starts."""
    own = {model_name(model, name) for name in engine_names(repository) for model in MODELS}
    folders = (path for path in repository.iterdir() if path.is_dir() and path.name not in own)
    return sorted(folder.name for folder in folders if not (folder / "config.pbtxt").is_file())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(repository: Path, name: str = ENSEMBLE) -> dict[str, Any]:
    """Return the manifest of the engine `name` of a repository.

    Raises:
        CodetrError: there is none, or it is not a manifest.
    """
    path = manifest_path(repository, name)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _without_manifest(repository, name) from None
    except ValueError as error:
        raise CodetrError(f"{path} is not JSON ({error}); build the repository again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get(FILES), dict):
        raise CodetrError(f"{path} lists no {FILES!r}; build the repository again")
    schema = manifest.get("schema", 1)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise CodetrError(
            f"{path} is of schema {schema}, this version reads up to {SCHEMA}; update codetr-triton, or build the "
            "repository again"
        )
    return manifest


def _without_manifest(repository: Path, name: str) -> CodetrError:
    names = engine_names(repository)
    if name in names:
        missing = manifest_path(repository, name).relative_to(repository)
        return CodetrError(f"{repository} is incomplete: {missing} is missing; build it again")
    return unknown_engine(repository, name, names) if names else no_repository(repository)


def no_repository(repository: Path) -> CodetrError:
    """Return the error that a folder is not there, or has no engine."""
    return CodetrError(f"no repository at {repository}; write one there with `codetr build`")


def unknown_engine(repository: Path, name: str, names: Sequence[str]) -> CodetrError:
    """Return the error that a repository has engines, and none of this name."""
    return CodetrError(f"{repository} has no engine {name!r}; it has {', '.join(names)}")


def check_files(repository: Path, name: str = ENSEMBLE) -> None:
    """Compare the files of the engine `name` with its manifest.

    Raises:
        CodetrError: a file is missing or is another one; names the file, both hashes and what to do.
    """
    for file, expected in read_manifest(repository, name)[FILES].items():
        path = repository / file
        if not path.is_file():
            raise CodetrError(f"{repository} is incomplete: {file} is missing; build it again")
        actual = sha256(path)
        if actual != expected:
            raise CodetrError(
                f"{path} is not the file that was built: its SHA-256 is {actual}, {MANIFEST} says "
                f"{expected}; build the repository again"
            )


def check_versions(repository: Path, name: str = ENSEMBLE) -> None:
    """Compare what the engine `name` was built with and for with this machine: TensorRT or PyTorch, and GPU or CPU.

    Raises:
        CodetrError: they differ; names both. What the manifest or this machine does not tell is not judged.
    """
    check_machine(read_manifest(repository, name), f"the engine {name} in {repository}")


def check_machine(manifest: Mapping[str, Any], engine: str) -> None:
    """Do as `check_versions` does for a manifest that is read already; `engine` is what its engine is called."""
    built = manifest.get("versions", {})
    if manifest.get("engine") == "tensorrt":
        # Also with version compatibility: such a plan of torch_tensorrt lacks the runtime that another TensorRT needs.
        _compare(engine, "with TensorRT", built.get("tensorrt"), _installed("tensorrt"))
    elif manifest.get("engine") == "torch":
        # The package is compiled against PyTorch's headers and calls its libraries.
        _compare(engine, "with PyTorch", _release(built.get("torch", "")), [*map(_release, _installed("torch"))])
    else:
        return
    _check_cpu(engine, manifest.get("cpu"))
    capability = manifest.get("compute_capability")
    if capability is not None and not manifest.get("hardware_compatible", False):
        _compare(engine, "for compute capability", capability, compute_capabilities())


def _check_cpu(engine: str, built: Any) -> None:
    """Refuse a CPU that lacks instructions which the CPU had that an engine was compiled on, and so for."""
    here = cpu()
    if not isinstance(built, dict) or not built.get("features") or not here["features"]:
        return
    _compare(engine, "for processors of", built.get("machine"), [here["machine"]])
    missing = sorted(set(built["features"]) - set(here["features"]))
    if missing:
        names = [each.get("name") or "name unknown" for each in (built, here)]
        raise CodetrError(
            f"{engine} was built for a CPU with {', '.join(missing)} ({names[0]}), which this machine's ({names[1]}) "
            "lacks; build it again here"
        )


def cpu() -> dict[str, Any]:
    """Return this machine's architecture, and its CPU's name and instruction sets, as /proc/cpuinfo has them.

    The sets are those that a compiler uses by itself under `-march=native`; empty where unknown.
    """
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    # "flags" on x86-64, "Features" on ARM. A machine with several kinds of cores runs what all of them can.
    lines = re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE)
    common = set.intersection(*(set(line.split()) for line in lines)) if lines else set[str]()
    machine = platform.machine()
    if machine == "x86_64":
        common = {flag for flag in common if _X86_FLAG.fullmatch(flag)}
    name = re.search(r"^model name[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return {"machine": machine, "name": name and name[1], "features": sorted(common)}


def compute_capabilities() -> list[str]:
    """Return the compute capabilities of this machine's GPUs, such as 9.0, each once; empty where unknown."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(set(re.findall(r"\d+\.\d+", done.stdout)))


def _compare(engine: str, what: str, built: str | None, here: Sequence[str]) -> None:
    if built and here and built not in here:
        raise CodetrError(f"{engine} was built {what} {built}, this machine has {', '.join(here)}; build it again here")


def _installed(distribution: str) -> list[str]:
    """Return the version that this Python has of a distribution; empty if it has none."""
    try:
        return [metadata.version(distribution)]
    except metadata.PackageNotFoundError:
        return []


def _release(version: str) -> str:
    """Return major.minor of a version such as 2.13.0+cpu."""
    return ".".join(version.split(".")[:2])
