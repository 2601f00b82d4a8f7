"""Finding a `tritonserver`: on PATH, or in the wheel that `make setup` fetches."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from serving.errors import CodetrError

# Where the set-up puts the wheel that carries a tritonserver; see `INSTALL_HINT`.
TRITON_FOLDER = Path(__file__).resolve().parent.parent / ".triton"
INSTALL_HINT = "python -m pip install --no-deps --target .triton/pytriton nvidia-pytriton==0.7.0"


@dataclass(frozen=True)
class Binary:
    """A tritonserver and what it needs to run here.

    Attributes:
        path: of the program.
        backend_files: of its Python backend, which has to be put together; none where it knows its backends.
        library_path: folder to look for libraries in first, or None.
    """

    path: Path
    backend_files: tuple[Path, ...]
    library_path: str | None

    def link_backends(self, folder: Path) -> Path | None:
        """Make the folder of backends that the program is to use within `folder`; None where it knows its own.

        It holds links, because the libraries find theirs relative to where they really lie.
        """
        if not self.backend_files:
            return None
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        for file in self.backend_files:
            (backend / file.name).symlink_to(file)
        return backend.parent

    def environment(self, python: Path) -> dict[str, str]:
        """Return our environment, with the folder `python` where the Python backend looks: first on PATH."""
        environment = dict(os.environ)
        environment["PATH"] = os.pathsep.join([str(python), environment.get("PATH", os.defpath)])
        if self.library_path:
            paths = [self.library_path, environment.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
        return environment

    def known_options(self) -> frozenset[str]:
        """Return the names of the options that this release has; none where it does not tell."""
        command = [str(self.path), "--help"]
        try:
            done = subprocess.run(
                command,
                env=self.environment(Path(sys.executable).parent),
                capture_output=True,
                text=True,
                timeout=30,
                errors="replace",
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return frozenset()
        return frozenset(re.findall(r"^\s*--([a-z][\w-]*)", done.stdout + done.stderr, re.MULTILINE))

    def has_config_field(self, name: str) -> bool:
        """Return whether a model's configuration can have a field in this release.

        A field that it does not know would keep the model from being loaded. The schema of the configuration lies in
        the program, each field with its tag, its name's length and its name (descriptor.proto, FieldDescriptorProto).
        """
        try:
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
                return program.find(bytes([10, len(name)]) + name.encode()) >= 0
        except (OSError, ValueError):  # an empty file cannot be mapped
            return False


def find_tritonserver() -> Binary:
    """Return the tritonserver on PATH, or the one of the nvidia-pytriton wheel in `.triton`.

    Raises:
        CodetrError: there is neither, or the wheel's does not work with this Python or numpy.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Binary(Path(on_path).absolute(), backend_files=(), library_path=None)
    wheel = TRITON_FOLDER / "pytriton" / "pytriton" / "tritonserver"
    if not (wheel / "bin" / "tritonserver").is_file():
        raise CodetrError(f"no tritonserver on PATH and none in {TRITON_FOLDER.name}/; run: {INSTALL_HINT}")
    numpy_version = metadata.version("numpy")
    if int(numpy_version.split(".")[0]) >= 2:
        raise CodetrError(
            f"numpy {numpy_version} corrupts the tensors of this tritonserver silently; "
            "run: python -m pip install numpy==1.26.4"
        )
    return Binary(wheel / "bin" / "tritonserver", _backend_files(wheel), sysconfig.get_config_var("LIBDIR"))


def _backend_files(wheel: Path) -> tuple[Path, ...]:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise CodetrError(f"this tritonserver has no Python backend for Python {version}; use Python 3.10 to 3.12")
    backend = wheel / "backends" / "python"
    return (stub, backend / "libtriton_python.so", backend / "triton_python_backend_utils.py")
