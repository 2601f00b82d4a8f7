"""The C++ client's program, compiled with the checks of addresses and undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.markers import missing

SOURCE = Path(__file__).parents[3] / "clients/cpp"
# stb's JPEG writer shifts negative numbers to the left, which C++20 defines as every compiler does it.
CHECKS = "-fsanitize=address,undefined -fno-sanitize=shift -fno-sanitize-recover=all"
# What the set-up of CI installs by these names; `clients/cpp/CMakeLists.txt` looks for them.
PACKAGES = "libcurl4-openssl-dev nlohmann-json3-dev libcli11-dev libstb-dev libwebp-dev"


def compiled(built_once: Callable[..., Path]) -> Path:
    """Return the program; skips where a library is missing, in CI fails."""

    def write(path: Path) -> None:
        folder = path.with_name("cpp")
        cmake = ["cmake", "-S", SOURCE, "-B", folder, "-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={CHECKS}"]
        found = subprocess.run(cmake, capture_output=True, text=True, check=False) if shutil.which("cmake") else None
        if found is None or found.returncode != 0:
            reason = f"the C++ client needs cmake, pkg-config and {PACKAGES}"
            missing(reason)
        done = subprocess.run(
            ["cmake", "--build", folder, "--parallel", "2"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        shutil.copy(folder / "codetr_detect", path)

    return built_once("codetr_detect", write)


def run(program: Path, arguments: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    command = [str(program), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )
