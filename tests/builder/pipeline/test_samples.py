import json
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image

from builder.pipeline.samples import IMAGES, sample_images
from demo.shapes import CLASS_NAMES
from demo.shapes.dataset import write_dataset
from serving.errors import CodetrError


def save(path, value=0):
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)


def annotations(path, names, categories=CLASS_NAMES):
    content = {
        "images": [
            {"id": 7 + i, "file_name": f"images/{name}", "height": 4, "width": 6} for i, name in enumerate(names)
        ],
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(categories)],
        "annotations": [],
    }
    path.write_text(json.dumps(content))
    return path


def test_images_come_from_a_folder_in_rgb(tmp_path):
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no image")
    samples = sample_images((), tmp_path)
    (image,) = samples.images
    assert (image == red).all()
    assert (samples.names, samples.truth) == (["b.png"], None)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(CodetrError, match=r"holds no images \(\.jpg,"):
        sample_images((), tmp_path)
    with pytest.raises(CodetrError, match=r"there is no folder .*elsewhere of images to verify on"):
        sample_images((), tmp_path / "elsewhere")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(CodetrError, match=r"a\.png is a file; name a folder of images \(\.jpg, .*\) to verify on"):
        sample_images((), tmp_path / "a.png")
    assert len(sample_images((), tmp_path / "a.png", most=2).images) == 1
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    assert len(sample_images((), tmp_path / "a.tif", most=2).images) == 1  # its content decides
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(CodetrError, match=r"a\.gif \(expected a JPEG, PNG, WEBP, BMP image"):
        sample_images((), tmp_path / "a.gif", most=2)


def test_an_unreadable_image_is_named_among_good_ones(tmp_path):
    save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(
        CodetrError, match=r"1 of 2 images in .* cannot be read: broken\.jpg \(expected a JPEG, .*\); take"
    ):
        sample_images((), tmp_path)


def test_an_image_that_the_server_refuses_is_named(tmp_path):
    """OpenCV alone fills the rest of a cut JPEG with gray, and a comparison on it says little."""
    save(tmp_path / "good.png")
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(buffer.getvalue()[:-400])
    with pytest.raises(CodetrError, match=r"2 of 3 images .*: b\.jpg \(damaged JPEG .*\), c\.jpg; take them out"):
        sample_images((), tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_turned_photograph_is_upright(tmp_path, suffix):
    """As the server has it, and annotations: OpenCV alone leaves WebP as it is stored."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / f"turned{suffix}", exif=exif)
    (image,) = sample_images((), tmp_path).images
    assert image.shape == (6, 4, 3)


def test_generated_shapes_are_annotated_for_a_detector_of_shapes_alone(tmp_path):
    assert len(sample_images(CLASS_NAMES, most=IMAGES + 1).images) == IMAGES + 1
    samples = sample_images(CLASS_NAMES)
    assert len(samples.images) == len(samples.names) == len(samples.truth.image_ids) == IMAGES
    assert samples.truth.category_ids == {label: label + 1 for label in range(8)}
    assert sample_images(("cat", "dog")).truth is None


def test_generated_annotations_are_those_of_the_data_set(tmp_path):
    written = json.loads(write_dataset(tmp_path, IMAGES, seed=20).read_text())
    assert {key: written[key] for key in ("images", "annotations", "categories")} == sample_images(
        CLASS_NAMES
    ).truth.content


@pytest.mark.parametrize("place", ["images", "."], ids=["in the folder", "beside it"])
def test_annotations_are_found_and_matched_by_name(tmp_path, place):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        save(tmp_path / "images" / name)
    annotations(tmp_path / place / "annotations.json", ["b.png", "elsewhere.png"], ("heart", "circle"))
    truth = sample_images(CLASS_NAMES, tmp_path / "images").truth
    assert truth.image_ids == {1: 1}
    assert truth.category_ids == {7: 1, 0: 2}
    assert truth.content["images"][0] == {"id": 1, "file_name": "images/b.png", "width": 6, "height": 4}


def test_an_unrelated_file_beside_the_folder_is_no_annotation(tmp_path):
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / "a.png")
    path = annotations(tmp_path / "annotations.json", ["other.png"], ("unicorn",))
    assert sample_images(CLASS_NAMES, tmp_path / "images").truth is None
    with pytest.raises(CodetrError, match=r"annotations .*annotations\.json: the file lists none of the images in"):
        sample_images(CLASS_NAMES, tmp_path / "images", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, r"annotations .*some\.json: No such file", id="missing"),
        pytest.param("{", "is no COCO annotation file", id="not JSON"),
        pytest.param(
            '{"images": []}', "it is no COCO annotation file: it has no annotations and no categories", id="incomplete"
        ),
    ],
)
def test_bad_annotations_are_named(tmp_path, content, message):
    save(tmp_path / "a.png")
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CodetrError, match=message):
        sample_images(CLASS_NAMES, tmp_path, path)


def test_classes_the_detector_does_not_know_are_named(tmp_path):
    save(tmp_path / "a.png")
    path = annotations(tmp_path / "some.json", ["a.png"], ("circle", "unicorn"))
    whole = json.loads(path.read_text())
    path.write_text(
        json.dumps({**whole, "annotations": [{"image_id": 7, "category_id": 10, "bbox": [0, 0, 2, 2], "area": 4}]})
    )
    with pytest.raises(CodetrError, match=r"does not know 1 of the 2 categories of .*some\.json, among them 'unicorn'"):
        sample_images(CLASS_NAMES, tmp_path, path)


def test_annotations_need_their_images(tmp_path):
    with pytest.raises(CodetrError, match="annotations are given without the folder of their images; name that too"):
        sample_images(CLASS_NAMES, None, tmp_path / "some.json")


def two_of_a_name(folder, first, second):
    for inner in ("train", "val"):
        (folder / inner).mkdir()
        save(folder / inner / "a.png")
    return annotations(folder / "annotations.json", [first, second])


@pytest.mark.parametrize(
    ("first", "second"), [("train/a.png", "val/a.png"), ("train\\a.png", "val\\a.png")], ids=["slashes", "Windows"]
)
def test_two_images_of_one_name_are_told_apart_by_their_folders(tmp_path, first, second):
    path = two_of_a_name(tmp_path, first, second)
    whole = json.loads(path.read_text())
    for image, name in zip(whole["images"], (first, second), strict=True):
        image["file_name"] = name
    path.write_text(json.dumps(whole))
    assert sample_images(CLASS_NAMES, tmp_path / "val").truth.image_ids == {0: 2}


def test_two_images_that_may_be_one_file_are_refused(tmp_path):
    two_of_a_name(tmp_path, "b/a.png", "c/a.png")
    with pytest.raises(
        CodetrError, match=r"'images/b/a\.png' and 'images/c/a\.png' may both be .*val/a\.png; expected"
    ):
        sample_images(CLASS_NAMES, tmp_path / "val")


def test_a_name_that_is_url_encoded_is_that_file(tmp_path):
    save(tmp_path / "a b.png")
    path = annotations(tmp_path / "some.json", ["a%20b.png"])
    assert sample_images(CLASS_NAMES, tmp_path, path).truth.image_ids == {0: 1}


def test_annotations_of_images_of_another_size_are_refused(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    path = annotations(tmp_path / "some.json", ["a.png"])
    with pytest.raises(
        CodetrError, match=r"1 of 1 pictures have another size .*: 6x4 in the file, 12x8 in the picture"
    ):
        sample_images(CLASS_NAMES, tmp_path, path)


def test_what_is_left_out_of_annotations_is_said(tmp_path, caplog):
    save(tmp_path / "a.png")
    path = annotations(tmp_path / "some.json", ["a.png"], (*CLASS_NAMES, "unicorn"))
    whole = json.loads(path.read_text())
    whole["annotations"] = [{"image_id": 7, "category_id": 0, "bbox": box, "area": 4} for box in ([], [0, 0, 2, 2])]
    path.write_text(json.dumps(whole))
    truth = sample_images(CLASS_NAMES, tmp_path, path).truth
    assert [each["bbox"] for each in truth.content["annotations"]] == [[0, 0, 2, 2]]
    assert [record.message.split("some.json: ")[1] for record in caplog.records] == [
        "1 of 2 annotations have no box; they are left out",
        "1 categories that nothing is annotated with are left out, since the detector does not know them: 'unicorn'",
    ]


def test_a_file_that_was_not_named_says_where_it_was_found(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "annotations.json").write_text('{"shapes": []}')
    message = (
        r"annotations\.json: it is no COCO annotation file but LabelMe's .*; it was found beside the images, so move"
    )
    with pytest.raises(CodetrError, match=message):
        sample_images(CLASS_NAMES, tmp_path)
    with pytest.raises(CodetrError, match=r"export COCO's JSON$"):
        sample_images(CLASS_NAMES, tmp_path, tmp_path / "annotations.json")
