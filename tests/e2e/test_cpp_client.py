"""The C++ client beside the Python one, on the real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from codetr_client.client import CoDetrClient
from codetr_client.files import detect_files
from serving.launch import TritonServer
from tests.clients.cpp.program import compiled, run
from tests.e2e.test_detection import IMAGES


@pytest.fixture(scope="session")
def program(built_once: Callable[..., Path]) -> Path:
    return compiled(built_once)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for index, make in enumerate(make for name, make in IMAGES.items() if name != "huge"):
        folder.joinpath(f"{index:02}.jpg").write_bytes(make())  # the content decides, not the name
    return sorted(folder.iterdir())


def pixels(path: Path) -> npt.NDArray[np.int_]:
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def test_both_clients_find_and_write_the_same(
    server: TritonServer, program: Path, pictures: list[Path], tmp_path: Path
) -> None:
    done = run(
        program, [*pictures, "--output", tmp_path / "cpp", "--url", server.http_url, "--score-threshold", "0.0078125"]
    )
    assert (done.returncode, done.stderr) == (0, "")
    with CoDetrClient(server.http_url, "http") as client:
        results = detect_files(client, pictures, tmp_path / "python", 0.0078125)
    assert any(result.to_json()["detections"] for result in results)
    ours, theirs = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("cpp", "python"))
    assert ours == theirs
    for picture, result in zip(pictures, theirs["images"], strict=True):
        with Image.open(tmp_path / "cpp" / result["picture"]) as drawn, Image.open(picture) as original:
            assert drawn.size == ImageOps.exif_transpose(original).size
    assert done.stdout.splitlines()[0].split() == ["image", "detections", "classes"]


def test_boxes_are_drawn_where_the_python_client_draws_them(
    server: TritonServer, program: Path, pictures: list[Path], tmp_path: Path
) -> None:
    run(program, [pictures[0], "--output", tmp_path / "cpp", "--url", server.http_url, "--score-threshold", "0"])
    with CoDetrClient(server.http_url, "http") as client:
        detect_files(client, pictures[:1], tmp_path / "python", 0.0)
    plain = np.asarray(Image.open(pictures[0])).astype(int)
    ours, theirs = (
        np.asarray(Image.open(tmp_path / name / pictures[0].name)).astype(int) for name in ("cpp", "python")
    )
    changed = [np.abs(drawn - plain).max(-1) > 60 for drawn in (ours, theirs)]
    # labels have other letters, so most of what is drawn, and not all, lies at the same places
    assert (changed[0] & changed[1]).sum() > 0.7 * max(each.sum() for each in changed)
