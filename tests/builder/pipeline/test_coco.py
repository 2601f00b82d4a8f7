from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builder.family import NO_CLASS
from builder.pipeline.coco import CocoFile, match_categories, read_coco
from serving.errors import CodetrError
from tests.builder.pipeline.coco_files import annotation, content, without, write

# What a file of `content()` is read as, whatever ids it has.
OBJECTS = [(2, 2, (1, 2, 30, 20)), (2, 1, (1, 2, 30, 20)), (1, 2, (0, 0, 9, 9))]


def read(tmp_path: Path, **change: Any) -> CocoFile:
    return read_coco(write(tmp_path / "a.json", content(**change)))


def objects(coco: CocoFile) -> list[tuple[int, int, tuple[float, ...]]]:
    return [(each.image, each.category, each.box) for each in coco.annotations]


def test_images_keep_their_order_and_categories_ascend(tmp_path: Path) -> None:
    coco = read(tmp_path)
    assert [(image.number, image.id, image.file_name) for image in coco.images] == [
        (2, 4, "val/a.jpg"),
        (1, 2, "b.jpg"),
    ]
    assert [(image.width, image.height) for image in coco.images] == [(60, 50), (None, None)]
    assert [(each.number, each.id, each.name) for each in coco.categories] == [(1, 1, "cat"), (2, 9, "dog")]
    assert objects(coco) == OBJECTS
    assert coco.notes == ()


def test_evaluators_get_numbers_from_1(tmp_path: Path) -> None:
    zeros = [annotation(id=0), annotation(id=0, category_id=1), annotation(id=0, image_id=2, bbox=[0, 0, 9, 9])]
    whole = read(tmp_path, annotations=zeros).content()
    assert [each["id"] for each in whole["annotations"]] == [1, 2, 3]
    assert [each["id"] for each in whole["images"]] == [2, 1]
    assert [each["id"] for each in whole["categories"]] == [1, 2]
    assert whole["annotations"][0] == {
        "id": 1,
        "image_id": 2,
        "category_id": 2,
        "bbox": [1, 2, 30, 20],
        "area": 500,
        "iscrowd": 0,
    }


def with_ids(image: Any, category: Any, reference: Any = lambda id_: id_) -> dict[str, Any]:
    """The same content with other ids; annotations refer to them through `reference`."""
    whole = content()
    for entries, rename in (("images", image), ("categories", category)):
        for entry in whole[entries]:
            entry["id"] = rename(entry["id"])
    for each in whole["annotations"]:
        each["image_id"] = reference(image(each["image_id"]))
        each["category_id"] = reference(category(each["category_id"]))
    return whole


@pytest.mark.parametrize(
    ("image", "category", "reference"),
    [
        pytest.param(lambda id_: id_ - 2, lambda id_: id_ - 1, lambda id_: id_, id="from 0"),
        pytest.param(str, str, lambda id_: id_, id="text"),
        pytest.param(str, str, int, id="text that annotations name as numbers"),
        pytest.param(int, int, str, id="numbers that annotations name as text"),
        pytest.param(float, float, int, id="1.0"),
        pytest.param(lambda id_: id_ - 100, lambda id_: id_ - 100, lambda id_: id_, id="negative"),
        pytest.param(lambda id_: id_ + 10**30, lambda id_: id_ + 10**30, lambda id_: id_, id="of 100 bits"),
    ],
)
def test_ids_of_any_kind_give_the_same_objects(tmp_path: Path, image: Any, category: Any, reference: Any) -> None:
    whole = with_ids(image, category, reference)
    coco = read_coco(write(tmp_path / "a.json", whole))
    assert objects(coco) == OBJECTS
    assert [each.id for each in coco.images] == [entry["id"] for entry in whole["images"]]


def test_text_that_is_no_number_keeps_the_files_order(tmp_path: Path) -> None:
    coco = read_coco(write(tmp_path / "a.json", with_ids(lambda id_: f"img-{id_}", lambda id_: f"c{id_}")))
    assert [each.name for each in coco.categories] == ["dog", "cat"]
    assert [(each.image, each.category) for each in coco.annotations] == [(1, 1), (1, 2), (2, 1)]


def test_91_ids_with_gaps_ascend_as_numbers(tmp_path: Path) -> None:
    ids = [90, 1, 13, 2, 10]
    coco = read(tmp_path, categories=[{"id": str(id_), "name": f"c{id_}"} for id_ in ids], annotations=[])
    assert [each.name for each in coco.categories] == ["c1", "c2", "c10", "c13", "c90"]


@pytest.mark.parametrize("ids", [(None, None, None), (7, 7, 7), ("x", "x", "y"), (0, 1, 2)], ids=str)
def test_annotations_need_no_ids(tmp_path: Path, ids: tuple[Any, ...]) -> None:
    entries = [
        without(each, "id") | ({} if id_ is None else {"id": id_})
        for each, id_ in zip(content()["annotations"], ids, strict=True)
    ]
    assert objects(read(tmp_path, annotations=entries)) == OBJECTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"annotations": None}, "annotations: expected a list, got NoneType", id="no list"),
        pytest.param({"images": []}, "images: the list is empty", id="no images"),
        pytest.param({"categories": []}, "categories: the list is empty", id="no categories"),
        pytest.param({"images": ["a.jpg"]}, r"images\[0\]: expected an object, got str", id="no object"),
        pytest.param({"annotations": [[1]]}, r"annotations\[0\]: expected an object, got list", id="no object either"),
        pytest.param({"images": [{"id": 1}]}, r"images\[0\].file_name: expected text, got nothing", id="no file"),
        pytest.param({"images": [{"id": 1, "file_name": 3}]}, r"images\[0\].file_name: .* got 3", id="no file name"),
        pytest.param(
            {"images": [{"id": 1, "file_name": "\ud800.jpg"}]},
            r"images\[0\].file_name: expected text",
            id="half a letter",
        ),
        pytest.param(
            {"images": [{"file_name": "a"}]}, r"images\[0\].id: .* whole number or text, got nothing", id="id"
        ),
        pytest.param({"images": [{"id": 1.5, "file_name": "a"}]}, r"images\[0\].id: .* got 1.5", id="half an id"),
        pytest.param({"images": [{"id": True, "file_name": "a"}]}, r"images\[0\].id: .* got True", id="a truth value"),
        pytest.param({"images": [{"id": [1], "file_name": "a"}]}, r"images\[0\].id: .* got \[1\]", id="a list as id"),
        pytest.param(
            {"images": [{"id": 1, "file_name": "a", "width": "wide"}]},
            r"images\[0\].width: expected a whole number of pixels, got 'wide'",
            id="a width in words",
        ),
        pytest.param(
            {"images": [{"id": 1, "file_name": "a", "height": 1.5}]},
            r"images\[0\].height: .* got 1.5",
            id="half pixels",
        ),
        pytest.param(
            {"images": [{"id": 1, "file_name": "a"}, {"id": "1", "file_name": "b"}]},
            r"images\[1\].id: '1' is the id of 'a' already, got 'b'; expected one image an id",
            id="two images of one id",
        ),
        pytest.param(
            {"images": [{"id": 1, "file_name": "a", "width": 4}, {"id": 1, "file_name": "a", "width": 5}]},
            r"images\[1\].id: 1 is the id of 'a' already",
            id="one image of two sizes",
        ),
        pytest.param(
            {"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]},
            r"images\[1\].file_name: 'a' is the file of image 1 already; expected one entry a picture",
            id="one file twice",
        ),
        pytest.param({"categories": [{"id": 1}]}, r"categories\[0\].name: expected text, got nothing", id="no name"),
        pytest.param({"categories": [{"id": 1, "name": 7}]}, r"categories\[0\].name: expected text, got 7", id="name"),
        pytest.param({"categories": [{"name": "cat"}]}, r"categories\[0\].id: expected a whole number", id="no id"),
        pytest.param(
            {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
            r"categories\[1\].id: 1 is the id of 'cat' already, got 'dog'",
            id="two categories of one id",
        ),
        pytest.param(
            {"categories": [{"id": 1, "name": "cat"}, {"id": 9, "name": "cat"}]},
            "categories: 1 and 9 are both called 'cat', and both are in use",
            id="two categories of one name",
        ),
    ],
)
def test_entries_that_cannot_be_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CodetrError, match=rf"a\.json: {message}") as caught:
        read(tmp_path, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"bbox": [1, 2, 3]}, r"bbox: .* got \[1, 2, 3\]", id="three numbers"),
        pytest.param({"bbox": [1, 2, 3, 4, 5]}, "bbox: expected", id="five numbers"),
        pytest.param({"bbox": [[1, 2], [3, 4]]}, "bbox: expected", id="corners"),
        pytest.param({"bbox": "1 2 3 4"}, "bbox: .* got '1 2 3 4'", id="text"),
        pytest.param({"bbox": {"x": 1}}, "bbox: .* got {'x': 1}", id="an object"),
        pytest.param({"bbox": [1, 2, "3", 4]}, "bbox: expected", id="a number as text"),
        pytest.param({"bbox": [1, 2, True, 4]}, "bbox: expected", id="a truth value"),
        pytest.param({"bbox": [1, 2, None, 4]}, "bbox: expected", id="a gap"),
        pytest.param({"bbox": [1, 2, float("nan"), 4]}, r"bbox: .* got \[1, 2, nan, 4\]", id="NaN"),
        pytest.param({"bbox": [1, float("-inf"), 3, 4]}, "bbox: expected", id="infinite"),
        pytest.param({"bbox": [1, 2, 10**400, 4]}, "bbox: expected", id="too large a number"),
        pytest.param({"bbox": [1, 2, -3, 4]}, r"bbox: expected \[x, y, width, height\] in pixels", id="negative"),
        pytest.param({"image_id": None}, "image_id: expected the id of an image, got nothing", id="no image"),
        pytest.param({"image_id": [4]}, r"image_id: .* got \[4\]", id="a list of images"),
        pytest.param({"category_id": 3}, r"category_id: .* id of a category \(1, 9, ...\), got 3", id="category"),
        pytest.param({"category_id": None}, "category_id: .* got nothing", id="no category"),
        pytest.param({"iscrowd": "no"}, "iscrowd: expected 0 or 1, got 'no'", id="crowd"),
    ],
)
def test_annotations_that_cannot_be_are_named_and_counted(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    entries = [annotation(), annotation(**change), annotation(**change)]
    with pytest.raises(CodetrError, match=rf"a\.json: annotations\[1\]\.{message}") as caught:
        read(tmp_path, annotations=entries)
    assert str(caught.value).endswith("; 2 of 3 annotations cannot be used")


@pytest.mark.parametrize(
    ("extra", "note"),
    [
        pytest.param(annotation(bbox=[]), "have no box; they are left out", id="an empty box"),
        pytest.param(without(annotation(), "bbox"), "have no box", id="no box"),
        pytest.param(annotation(bbox=None), "have no box", id="null"),
        pytest.param(annotation(bbox=[5, 5, 0, 9]), "have a box without width or height", id="no width"),
        pytest.param(annotation(bbox=[5, 5, 9, -0.0]), "have a box without width or height", id="no height"),
        pytest.param(annotation(image_id=77), "are of images that the file does not list", id="another image"),
    ],
)
def test_what_can_be_left_out_is_left_out_and_counted(tmp_path: Path, extra: dict[str, Any], note: str) -> None:
    coco = read(tmp_path, annotations=[extra, *content()["annotations"], extra])
    assert objects(coco) == OBJECTS
    (line,) = coco.notes
    assert f"a.json: 2 of 5 annotations {note}" in line
    assert "\n" not in line


def test_equal_entries_count_once_and_equal_annotations_are_noted(tmp_path: Path) -> None:
    whole = content()
    coco = read(tmp_path, **{key: [*whole[key], whole[key][0]] for key in whole})
    assert objects(coco) == [*OBJECTS, OBJECTS[0]]
    assert (len(coco.images), len(coco.categories)) == (2, 2)
    assert [line.split("a.json: ")[1] for line in coco.notes] == [
        "1 images are listed again with the same content; each counts once",
        "1 categories are listed again with the same name; each counts once",
        "1 of 4 annotations are another's image, category and box again; each counts",
    ]


@pytest.mark.parametrize("area", ["missing", None, 0, -3, "large", float("nan")], ids=str)
def test_a_missing_area_is_that_of_the_box(tmp_path: Path, area: Any) -> None:
    one = without(annotation(), "area") if area == "missing" else annotation(area=area)
    coco = read(tmp_path, annotations=[one, annotation(bbox=[1, 1, 4, 4])])
    assert [each.area for each in coco.annotations] == [600, 500]
    assert "1 of 2 annotations have no area; it is taken from the box" in coco.notes[0]


@pytest.mark.parametrize(
    ("value", "expected"), [("missing", False), (None, False), (0, False), (1, True), (True, True)]
)
def test_a_missing_crowd_is_none(tmp_path: Path, value: Any, expected: bool) -> None:
    one = without(annotation(), "iscrowd") if value == "missing" else annotation(iscrowd=value)
    coco = read(tmp_path, annotations=[one])
    assert (coco.annotations[0].is_crowd, coco.content()["annotations"][0]["iscrowd"]) == (expected, int(expected))


@pytest.mark.parametrize(
    "outline", [[[1, 2, 3, 4, 5, 6]], {"counts": [1, 2], "size": [5, 6]}, {"counts": "abc", "size": [5, 6]}, [], None]
)
def test_outlines_are_not_looked_at(tmp_path: Path, outline: Any) -> None:
    assert objects(read(tmp_path, annotations=[annotation(segmentation=outline)])) == OBJECTS[:1]


@pytest.mark.parametrize("size", [None, 0, -1, "missing"], ids=str)
def test_an_unknown_size_is_none(tmp_path: Path, size: Any) -> None:
    entry = {"id": 4, "file_name": "a.jpg"} | ({} if size == "missing" else {"width": size, "height": size})
    (image,) = read(tmp_path, images=[entry]).images
    assert (image.width, image.height) == (None, None)


def test_lvis_names_pictures_by_their_place_on_the_web(tmp_path: Path) -> None:
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    entry = {"id": 4, "coco_url": url, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    coco = read(tmp_path, images=[entry], annotations=[annotation()])
    assert coco.images[0].file_name == "train2017/000000391895.jpg"
    assert "as in LVIS, not all objects are annotated" in coco.notes[0]
    assert read(tmp_path, images=[{**entry, "file_name": "a.jpg"}]).images[0].file_name == "a.jpg"
    with pytest.raises(CodetrError, match=r"images\[0\].file_name: expected text, got nothing"):
        read(tmp_path, images=[{**entry, "coco_url": None}])


def test_a_size_may_be_text(tmp_path: Path) -> None:
    (image,) = read(tmp_path, images=[{"id": 4, "file_name": "a.jpg", "width": "60", "height": 50.0}]).images
    assert (image.width, image.height) == (60, 50)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        pytest.param([annotation(image_id=7)] * 3, "none of the 3 annotations is of an image that", id="other images"),
        pytest.param([annotation(bbox=[])] * 3, r"none of the 3 annotations has a box: expected bbox", id="no boxes"),
        pytest.param(
            [annotation(bbox=[0.1, 0.2, 0.5, 0.5])],
            r"annotations: all boxes lie in 0..1, so they are shares .* got \[0.1, 0.2, 0.5, 0.5\]",
            id="shares",
        ),
    ],
)
def test_a_file_whose_every_annotation_is_of_no_use_is_refused(
    tmp_path: Path, annotations: list[Any], message: str
) -> None:
    with pytest.raises(CodetrError, match=rf"a\.json: {message}"):
        read(tmp_path, annotations=annotations)


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        pytest.param([], "expected an object with images, annotations, categories, got a list", id="a list"),
        pytest.param(
            [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
            "but a results file, which is what a detector found",
            id="results",
        ),
        pytest.param({"score_threshold": 0.3, "images": []}, "but a results file", id="our detections.json"),
        pytest.param({"info": {}}, "it has no images and no annotations and no categories, only info", id="info alone"),
        pytest.param(
            without(content(), "annotations"), "it has no annotations, only images, categories", id="test-dev"
        ),
        pytest.param({}, "only nothing", id="nothing"),
        pytest.param(3, "got int", id="a number"),
        pytest.param(None, "got NoneType", id="null"),
        pytest.param({"shapes": [], "imagePath": "a.jpg"}, "but LabelMe's file of one picture", id="LabelMe"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, whole: Any, message: str) -> None:
    with pytest.raises(CodetrError, match=rf"a\.json: it is no COCO annotation file.*{message}"):
        read_coco(write(tmp_path / "a.json", whole))


def roboflow(*names: str) -> list[dict[str, Any]]:
    """Categories as Roboflow writes them: the first groups the others."""
    root = {"id": 0, "name": names[0], "supercategory": "none"}
    return [root, *({"id": 1 + i, "name": name, "supercategory": names[0]} for i, name in enumerate(names[1:]))]


@pytest.mark.parametrize("names", [("animals", "cat", "dog"), ("cat", "cat", "dog")], ids=["another name", "a class's"])
def test_roboflows_root_is_no_category(tmp_path: Path, names: tuple[str, ...]) -> None:
    coco = read(
        tmp_path, categories=roboflow(*names), annotations=[annotation(category_id=2), annotation(category_id=1)]
    )
    assert [(each.id, each.name) for each in coco.categories] == [(1, "cat"), (2, "dog")]
    assert match_categories(coco, (), "x").categories == {0: 1, 1: 2}
    assert match_categories(coco, ("dog", "cat"), "x").categories == {1: 1, 0: 2}
    assert "a.json: the supercategory" in coco.notes[0]


def test_a_root_that_is_annotated_is_a_category(tmp_path: Path) -> None:
    coco = read(tmp_path, categories=roboflow("animals", "cat"), annotations=[annotation(category_id=0)])
    assert [each.name for each in coco.categories] == ["animals", "cat"]


def test_supercategories_of_coco_leave_out_nothing(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 9, "name": "boat", "supercategory": 3}]
    coco = read(tmp_path, categories=categories)
    assert [each.name for each in coco.categories] == ["person", "boat"]
    assert coco.notes == ()


def test_a_namesake_that_is_not_annotated_is_left_out(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "dog"}]
    coco = read(tmp_path, categories=categories)
    assert [(each.id, each.name) for each in coco.categories] == [(1, "cat"), (9, "dog")]
    assert "of two categories called 'dog' the one that nothing is annotated with is left out" in coco.notes[0]


def test_classes_are_matched_by_name_or_by_order(tmp_path: Path) -> None:
    coco = read(tmp_path)
    assert match_categories(coco, ("dog", NO_CLASS, "cow", "cat", NO_CLASS), "x").categories == {0: 2, 3: 1}
    assert match_categories(coco, (), "x").categories == {0: 1, 1: 2}


def test_an_unknown_category_matters_only_if_it_is_annotated(tmp_path: Path) -> None:
    more = [*content()["categories"], {"id": 5, "name": "unicorn"}]
    matched = match_categories(read(tmp_path, categories=more), ("dog", "cat"), "x")
    assert matched.categories == {0: 3, 1: 1}
    assert "a.json: 1 categories that nothing is annotated with are left out" in matched.notes[0]
    annotated = [*content()["annotations"], annotation(category_id=5)]
    with pytest.raises(
        CodetrError, match=r"does not know 1 of the 3 categories of .*a\.json, among them 'unicorn'; its"
    ):
        match_categories(read(tmp_path, categories=more, annotations=annotated), ("dog", "cat"), "x")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(
            ("bird", "cow"), "2 of the 2 .* among them 'cat'; its classes are bird, cow, ... .tell.", id="all"
        ),
        pytest.param(("dog", "Cat"), r"1 of the 2 .* among them 'cat' \(not 'Cat'\); its classes", id="a capital"),
        pytest.param(("dog", " cat"), r"among them 'cat' \(not ' cat'\)", id="a space"),
        pytest.param(("dog", "cat", "dog"), "two classes of the detector are called 'dog'; expected one", id="twice"),
    ],
)
def test_classes_that_do_not_match_are_named(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        match_categories(read(tmp_path), names, "tell")


def test_a_detector_that_knows_no_category_is_refused_even_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match="does not know 2 of the 2 categories"):
        match_categories(read(tmp_path, annotations=[]), ("bird",), "x")
