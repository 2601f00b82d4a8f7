import json
from pathlib import Path

import pytest

from builder.pipeline.coco import read_coco
from serving.errors import CodetrError

CONTENT = {
    "images": [{"id": 4, "file_name": "val/a.jpg", "width": 6, "height": 5}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 1, "name": "cat"}],
    "annotations": [],
}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_images_keep_their_order_and_categories_ascend(tmp_path):
    found = read_coco(write(tmp_path / "a.json", CONTENT))
    assert found.images == ({"id": 4, "file_name": Path("val/a.jpg")}, {"id": 2, "file_name": Path("b.jpg")})
    assert list(found.categories.items()) == [(1, "cat"), (9, "dog")]
    assert found.content == CONTENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"annotations": None}, "TypeError", id="annotations that are no list"),
        pytest.param({"images": [{"id": 1, "file_name": 3}]}, "TypeError", id="a file name that is none"),
        pytest.param({"categories": [{"id": 1}]}, "KeyError 'name'", id="a category without a name"),
    ],
)
def test_what_is_no_annotation_file_is_named(tmp_path, change, message):
    with pytest.raises(CodetrError, match=rf"a\.json is no COCO annotation file: {message}"):
        read_coco(write(tmp_path / "a.json", {**CONTENT, **change}))


def test_a_key_that_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(CodetrError, match=r"a\.json is no COCO annotation file: KeyError 'width'"):
        read_coco(write(tmp_path / "a.json", CONTENT), ("id", "file_name", "width"))
