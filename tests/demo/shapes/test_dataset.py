from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.shapes.dataset import write_dataset


def test_an_earlier_data_set_is_replaced_and_an_interrupted_one_completed(tmp_path: Path) -> None:
    write_dataset(tmp_path, images=2, seed=3)
    annotations = write_dataset(tmp_path, images=2, seed=4)
    assert json.loads(annotations.read_text())["info"]["seed"] == 4
    annotations.unlink()
    (tmp_path / "images" / "000001.jpg").unlink()
    write_dataset(tmp_path, images=2, seed=4)


@pytest.mark.parametrize("content", ['{"images": [], "annotations": [], "categories": []}', "no JSON"])
def test_the_annotations_of_somebody_else_stay(tmp_path: Path, content: str) -> None:
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(FileExistsError, match=r"annotations\.json would be replaced"):
        write_dataset(tmp_path, images=1, seed=3)
    assert (tmp_path / "annotations.json").read_text() == content
    assert not (tmp_path / "images").exists(), "refused before anything is written"


def test_an_image_of_somebody_else_stays(tmp_path: Path) -> None:
    write_dataset(tmp_path, images=1, seed=3)
    foreign = tmp_path / "images" / "000001.jpg"
    foreign.write_bytes(b"a photograph")
    with pytest.raises(FileExistsError, match=r"000001\.jpg would be replaced, but it is another image"):
        write_dataset(tmp_path, images=2, seed=3)
    assert foreign.read_bytes() == b"a photograph"


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="it is a file; expected a folder"):
        write_dataset(tmp_path / "file", images=1, seed=3)
