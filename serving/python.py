"""The Python that Triton's Python steps find: the first on PATH, read in a locale that knows ASCII alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python_folder(folder: Path) -> Path:
    """Return the folder to put first on PATH, so that the steps get this interpreter's packages.

    It is this interpreter's own, unless packages lie under a path that is not ASCII: the steps could not read the
    `.pth` files that name it, and would not start. Then an environment of the same packages is made within `folder`.
    """
    if all(entry.isascii() for entry in sys.path):
        return Path(sys.executable).parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = folder / "python"
    programs = environment / "bin"
    packages = environment / "lib" / f"python{version}" / "site-packages"
    programs.mkdir(parents=True)
    packages.mkdir(parents=True)
    interpreter = Path(sys.executable).resolve()
    (programs / "python3").symlink_to(interpreter)
    (environment / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\n", encoding="utf-8")
    # the first is the script's folder, or the current one
    paths = [os.fsencode(entry) for entry in sys.path[0 if getattr(sys.flags, "safe_path", False) else 1 :]]
    line = f"import os, sys; sys.path += [path for path in map(os.fsdecode, {paths!r}) if path not in sys.path]\n"
    (packages / "paths.pth").write_text(line, encoding="ascii")
    return programs
