from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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


def test_no_image_of_a_larger_set_stays_beside_the_annotations(tmp_path: Path) -> None:
    photograph = tmp_path / "images" / "photograph.jpg"
    content = json.loads(write_dataset(tmp_path, images=3, seed=3).read_text())
    photograph.write_bytes(b"of somebody else")
    content["images"].append({"file_name": photograph.name})  # by a hand: no call names an image so
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    write_dataset(tmp_path, images=1, seed=4)
    assert sorted(path.name for path in photograph.parent.iterdir()) == ["000000.jpg", "photograph.jpg"]


def test_an_interrupted_call_leaves_no_annotations_of_other_images(tmp_path: Path) -> None:
    def interrupted(indices: Iterable[int]) -> Iterator[int]:
        yield from list(indices)[:1]
        raise KeyboardInterrupt

    write_dataset(tmp_path, images=2, seed=3)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, images=2, seed=4, progress=interrupted)
    assert not (tmp_path / "annotations.json").exists()
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
