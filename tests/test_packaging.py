"""Nothing of the application gets into other people's site-packages; of the client, one package does."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def wheel(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Let pip build a wheel of `source` without a network: with the build backend that is installed here."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(output)]
    return subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)


def test_the_application_has_no_wheel(tmp_path: Path) -> None:
    built = wheel(ROOT, tmp_path)
    assert built.returncode != 0
    assert "codetr-triton is an application and has no wheel: `pip install -e .` installs it" in built.stderr
    assert not list(tmp_path.iterdir())


def test_installed_editable_it_leaves_only_paths(tmp_path: Path) -> None:
    code = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, check=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        (paths,) = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert archive.read(paths).decode().split() == [str(ROOT), str(ROOT / "clients")]


def test_the_client_is_one_package_with_its_data_and_types(tmp_path: Path) -> None:
    built = wheel(ROOT / "clients", tmp_path)
    assert built.returncode == 0, built.stderr
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"codetr_client"}
    sources = {f"codetr_client/{path.name}" for path in (ROOT / "clients/codetr_client").glob("*.*")}
    assert {"codetr_client/py.typed", "codetr_client/coco_labels.txt"} <= sources
    assert sources <= names
