from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import serving.triton
from codetr_client.contract import DEADLINE_PARAMETER, DEADLINE_PASSED
from serving import admission, metrics
from serving.contract import PREPROCESS
from serving.errors import CodetrError, InvalidImageError
from serving.postprocess import PostprocessSettings
from serving.preprocess import PreprocessSettings, pixel_parameters, preprocess, resize_and_pad
from serving.rules import Pixels
from serving.telemetry import Telemetry
from serving.triton import (
    OnnxSettings,
    Postprocess,
    Preprocess,
    output_dims,
    parse_settings,
    respond,
    respond_together,
    run_in_batches,
    threads_of_instance,
)


@dataclass
class Tensor:
    name: str
    array: Any

    def as_numpy(self) -> Any:
        return self.array


@dataclass
class TritonError:
    message: str
    code: str

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


@dataclass
class Response:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def outputs(self) -> dict[str, Any]:
        assert self.error is None, self.error
        return {tensor.name: tensor.array for tensor in self.output_tensors}


@dataclass
class Request:
    inputs: dict[str, Any]
    text: str = ""
    cancelled: bool = False

    def parameters(self) -> str:
        return self.text

    def request_id(self) -> str:
        return "request 1"

    def is_cancelled(self) -> bool:
        return self.cancelled


@dataclass
class FakeTriton:
    """What this project uses of `triton_python_backend_utils`."""

    logged: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    Tensor = Tensor
    TritonError = TritonError
    InferenceResponse = Response

    @property
    def Logger(self) -> Any:  # noqa: N802  # the backend's name
        return SimpleNamespace(log_error=self.logged.append, log_warn=self.warned.append)

    @staticmethod
    def get_input_tensor_by_name(request: Request, name: str) -> Any:
        return Tensor(name, request.inputs[name]) if name in request.inputs else None


def config(name: str, outputs: dict[str, list[int]], **parameters: str) -> dict[str, Any]:
    """A model's config as `initialize` receives it."""
    return {
        "name": name,
        "output": [{"name": key, "dims": [str(dim) for dim in dims]} for key, dims in outputs.items()],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }


def png(width: int, height: int, value: int = 200) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def image_request(*images: bytes) -> Request:
    return Request({"image": np.array(images, np.object_).reshape(-1, 1)})


def preprocess_step(**parameters: str) -> Preprocess:
    return Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}, **parameters))


PREPROCESS_STEP = preprocess_step()


def postprocess_step() -> Postprocess:
    return Postprocess(config("codetr_postprocess", {"boxes": [4, 4]}, max_detections="4"), print)


def test_each_request_of_a_batch_has_its_own_answer_or_error() -> None:
    triton = FakeTriton()
    requests = [image_request(png(20, 10)), image_request(b"text"), image_request(b""), image_request(png(8, 30))]
    first, second, third, fourth = respond(triton, PREPROCESS, requests, PREPROCESS_STEP)
    for response, size in ((first, (10, 20)), (fourth, (30, 8))):
        expected = preprocess(png(size[1], size[0]), 32, 48)
        np.testing.assert_array_equal(response.outputs()["images"], expected.images[None])
        np.testing.assert_array_equal(response.outputs()["image_sizes"], [expected.image_size])
        np.testing.assert_array_equal(response.outputs()["original_sizes"], [size])
        assert response.outputs()["image_sizes"].dtype == np.int32
    assert second.error.code == TritonError.INVALID_ARG
    assert second.error.message.startswith("expected a JPEG")
    assert third.error.message == "the image is empty (0 bytes)"
    assert not triton.logged
    assert [line[: line.index(" ms=")] for line in triton.warned] == [
        'request_id="request 1" model=codetr_preprocess cause=wrong_format format=unknown bytes=4',
        'request_id="request 1" model=codetr_preprocess cause=empty format=unknown bytes=0',
    ]


def test_several_images_in_a_request_fail_together_and_name_the_index() -> None:
    (response,) = respond(FakeTriton(), PREPROCESS, [image_request(png(9, 9), b"", b"x")], PREPROCESS_STEP)
    assert response.error.message == "image 1 of 3: the image is empty (0 bytes)"
    (response,) = respond(FakeTriton(), PREPROCESS, [image_request(png(9, 9), png(8, 7))], PREPROCESS_STEP)
    np.testing.assert_array_equal(response.outputs()["original_sizes"], [[9, 9], [7, 8]])


class Counts:
    """Takes what a step counts; of times only that there were some."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []

    def __call__(self, family: metrics.Family, value: float, *labels: str) -> None:
        assert len(labels) == len(family.labels)
        self.taken.append((family.name, *labels) if family is metrics.STAGE_SECONDS else (family.name, *labels, value))


def test_images_are_counted_by_format_and_fate() -> None:
    counts = Counts()
    step = Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}), counts)
    respond(FakeTriton(), PREPROCESS, [image_request(png(20, 10), png(20, 10)[:45])], step)
    assert counts.taken == [
        ("codetr_stage_seconds", "decode"),
        ("codetr_stage_seconds", "resize"),
        ("codetr_images_total", "PNG", "decoded", 1),
        ("codetr_image_pixels", 200),
        ("codetr_images_total", "PNG", "damaged", 1),
    ]


def test_images_of_a_request_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=60)

    def decode(*arguments: Any) -> Any:
        together.wait()  # nobody comes past it alone
        return preprocess(*arguments)

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(serving.triton, "preprocess", decode)
    sizes = [(20, 10), (8, 30), (60, 70), (1, 1)]
    images = [png(*size) for size in sizes]
    step = Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}))
    outputs = step({"image": np.array(images, np.object_)}, {})
    for row, image in enumerate(images):
        expected = preprocess(image, 32, 48)
        np.testing.assert_array_equal(outputs["images"][row], expected.images)
        assert outputs["image_sizes"][row].tolist() == list(expected.image_size)
        assert outputs["original_sizes"][row].tolist() == list(expected.original_size)


@pytest.mark.parametrize(
    ("sizes", "threads"),
    [
        pytest.param([(40, 20)], 1, id="one image"),
        pytest.param([(40, 10), (40, 10)], 2, id="as many pixels as one may have"),
        pytest.param([(40, 10), (40, 11)], 1, id="more pixels"),
        pytest.param([(4, 1), None], 1, id="a header that does not say"),
    ],
)
def test_images_side_by_side_take_no_more_memory_than_one_may(
    sizes: list[Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.Thread] = []

    def decode(*arguments: Any) -> Any:
        seen.append(threading.current_thread())
        return preprocess(*arguments)

    monkeypatch.setattr(serving.triton, "preprocess", decode)
    images = [b"\x89PNG\r\n\x1a\n" if size is None else png(*size) for size in sizes]
    respond(FakeTriton(), PREPROCESS, [image_request(*images)], preprocess_step(max_pixels="800"))
    assert len(seen) == len(images)
    assert (threading.main_thread() in seen) == (threads == 1)


def test_the_first_image_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    step = Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}), counts)
    images = [png(20, 10), png(20, 10)[:45], png(3, 3)[:45], png(9, 9)]
    with pytest.raises(InvalidImageError, match="image 1 of 4: damaged PNG"):
        step({"image": np.array(images, np.object_)}, {})
    assert [each for each in counts.taken if "images_total" in each[0]] == [
        ("codetr_images_total", "PNG", "decoded", 1),
        ("codetr_images_total", "PNG", "damaged", 1),
    ]


def test_boxes_are_counted_before_and_after_suppression() -> None:
    counts = Counts()
    model = config("codetr_postprocess", {"boxes": [4, 4]}, max_detections="4", score_threshold="0.3")
    Postprocess(model, lambda line: None, counts)(candidates(0.9, float("nan"), 0.2), {})
    assert counts.taken == [
        ("codetr_stage_seconds", "suppression"),
        ("codetr_candidates_total", 1),
        ("codetr_detections_total", 1),
        ("codetr_candidates_dropped_total", 1),
    ]


def test_batches_of_the_engine_are_counted() -> None:
    telemetry = Telemetry(FakeTriton(), "codetr_detector")
    telemetry.record = counts = Counts()
    respond_together(FakeTriton(), [detector_request(7), detector_request(9, 8)], Engine(), 2, telemetry)
    assert counts.taken == [
        ("codetr_stage_seconds", "engine"),
        ("codetr_engine_batch_images", 2),
        ("codetr_stage_seconds", "engine"),
        ("codetr_engine_batch_images", 1),
    ]


def test_request_without_images_is_an_error() -> None:
    (response,) = respond(FakeTriton(), PREPROCESS, [image_request()], PREPROCESS_STEP)
    assert (response.error.code, response.error.message) == ("INVALID_ARG", "the request holds no image")


def test_the_unexpected_is_internal_and_logged() -> None:
    def step(inputs: Any, parameters: Any) -> Any:
        raise ZeroDivisionError("of all things")

    triton = FakeTriton()
    (response,) = respond(triton, PREPROCESS, [image_request(b"")], step)
    assert response.error.code == "INTERNAL"
    assert response.error.message == "ZeroDivisionError; the server's log says more"
    (line,) = triton.logged
    assert 'request_id="request 1" model=codetr_preprocess cause=internal error="ZeroDivisionError: of all' in line


def test_limits_come_from_the_config() -> None:
    step = Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}, max_pixels="80", formats="PNG, BMP"))
    assert step.settings == PreprocessSettings(max_pixels=80, formats=("PNG", "BMP"))
    with pytest.raises(InvalidImageError, match="9x9 pixels"):
        step({"image": np.array([[png(9, 9)]], np.object_)}, {})


def candidates(*scores: float) -> dict[str, Any]:
    """One image of 50 x 100 with one box of 0..0.5 in each class."""
    return {
        "boxes": np.tile(np.float32([0, 0, 0.5, 0.5]), (1, len(scores), 1)),
        "scores": np.array([scores], np.float32),
        "labels": np.arange(len(scores), dtype=np.int32)[None],
        "original_sizes": np.array([[50, 100]], np.int32),
    }


def test_postprocess_step_answers_with_the_ensembles_outputs() -> None:
    outputs = postprocess_step()(candidates(0.2, 0.9), {})
    assert list(outputs) == ["boxes", "scores", "labels", "num_detections"]
    np.testing.assert_array_equal(outputs["boxes"], [[[0, 0, 50, 25], [0, 0, 50, 25], [0] * 4, [0] * 4]])
    np.testing.assert_array_equal(outputs["labels"], [[1, 0, -1, -1]])
    np.testing.assert_array_equal(outputs["num_detections"], [[2]])
    assert outputs["num_detections"].dtype == np.int32


def test_postprocess_step_takes_every_image_of_a_request() -> None:
    one, two = candidates(0.2, 0.9), candidates(0.7, 0.1)
    two["original_sizes"] = np.array([[10, 10]], np.int32)
    outputs = postprocess_step()({key: np.concatenate([one[key], two[key]]) for key in one}, {"score_threshold": 0.15})
    np.testing.assert_array_equal(outputs["num_detections"], [[2], [1]])
    np.testing.assert_array_equal(outputs["boxes"][1, 0], [0, 0, 5, 5])


def test_a_request_sets_its_own_score_threshold() -> None:
    step = postprocess_step()
    inputs = candidates(0.2, 0.9)
    (strict, usual) = respond(
        FakeTriton(), "codetr_postprocess", [Request(inputs, '{"score_threshold": 0.5}'), Request(inputs)], step
    )
    assert strict.outputs()["num_detections"] == [[1]]
    assert usual.outputs()["num_detections"] == [[2]]


def test_a_requests_threshold_also_holds_for_what_soft_nms_has_lowered() -> None:
    inputs = candidates(0.9, 0.8)
    inputs["labels"][:] = 0  # the second box lies on the first, and soft NMS leaves it a score of 0.8 * (1 - 0.9)
    inputs["boxes"][0, 1, 2] = 0.45
    assert postprocess_step()(inputs, {})["num_detections"] == [[2]]
    outputs = postprocess_step()(inputs, {"score_threshold": 0.3})
    assert outputs["num_detections"] == [[1]]
    assert outputs["scores"][0, 0] == np.float32(0.9)


@pytest.mark.parametrize("text", ['{"score_threshold": "0.3"}', '{"score_treshold": 0.3}'], ids=["a value", "a name"])
def test_parameters_are_refused_before_the_engine_and_by_the_last_step(text: str) -> None:
    first = image_request(b"no image, which is looked at later")
    first.text = text
    (early,) = respond(FakeTriton(), PREPROCESS, [first], PREPROCESS_STEP)
    (late,) = respond(FakeTriton(), "codetr_postprocess", [Request(candidates(0.5), text)], postprocess_step())
    assert early.error == late.error
    assert early.error.code == TritonError.INVALID_ARG
    assert early.error.message.startswith(("score_threshold: expected", "unknown request parameter 'score_treshold'"))


def test_unknown_parameters_are_ignored_where_the_config_says_so() -> None:
    ignoring = {"unknown_parameters": "ignore"}
    step = Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}, **ignoring))
    assert len(step({"image": np.array([[png(9, 9)]], np.object_)}, {"iou": 1})["images"]) == 1
    last = Postprocess(config("codetr_postprocess", {"boxes": [4, 4]}, max_detections="4", **ignoring), print)
    assert last(candidates(0.2, 0.9), {"iou": 1, "score_threshold": 0.5})["num_detections"] == [[1]]


def test_dropped_candidates_are_warned_about() -> None:
    warnings: list[str] = []
    step = Postprocess(config("codetr_postprocess", {"boxes": [4, 4]}, max_detections="4"), warnings.append)
    outputs = step(candidates(0.2, float("nan")), {})
    assert outputs["num_detections"] == [[1]]
    assert warnings == ["dropped 1 candidates that were NaN or infinite: the engine computes outside its range"]


def test_rows_of_the_output_and_the_setting_must_agree() -> None:
    with pytest.raises(CodetrError, match="max_detections: expected 7, the rows of the output boxes, got 300"):
        Postprocess(config("codetr_postprocess", {"boxes": [7, 4]}), print)


class Engine:
    """Answers with numbers that name the image, and remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Any, sizes: Any) -> tuple[Any, Any, Any]:
        self.batches.append(len(images))
        first = images[:, 0, 0, 0].astype(np.float32)
        return np.tile(first[:, None, None], (1, 3, 4)), np.tile(first[:, None], (1, 3)), np.tile(sizes[:, :1], (1, 3))


def detector_inputs(*values: int) -> tuple[Any, Any]:
    images = np.zeros((len(values), 200, 2, 3), np.uint8)
    images[:, 0, 0, 0] = values
    return images, np.array([[value + 100, 1] for value in values], np.int32)


@pytest.mark.parametrize(
    ("limit", "batches"),
    [
        pytest.param(8, [6], id="all at once"),
        pytest.param(4, [4, 2], id="a batch across requests"),
        pytest.param(1, [1] * 6, id="an engine of batch 1"),
    ],
)
def test_requests_share_batches_and_get_their_own_rows(limit: int, batches: list[int]) -> None:
    engine = Engine()
    outputs = run_in_batches(engine, [detector_inputs(1), detector_inputs(2, 3, 4), detector_inputs(5, 6)], limit)
    assert engine.batches == batches
    for output, values in zip(outputs, [(1,), (2, 3, 4), (5, 6)], strict=True):
        np.testing.assert_array_equal(output["boxes"][:, 0, 0], values)
        np.testing.assert_array_equal(output["scores"][:, 2], values)
        np.testing.assert_array_equal(output["labels"][:, 1], np.array(values) + 100)


def test_a_request_that_is_a_whole_batch_is_not_copied() -> None:
    given: list[Any] = []

    def engine(*arrays: Any) -> Any:
        given.extend(arrays)
        return Engine()(*arrays)

    batch = detector_inputs(5, 6)
    run_in_batches(engine, [batch], 4)
    assert len(given) == len(batch)
    assert all(np.shares_memory(here, there) for here, there in zip(given, batch, strict=True))


@pytest.mark.parametrize("limit", [8, 4, 2, 1])
@pytest.mark.parametrize("requests", [[(1,), (2, 3, 4), (5, 6)], [(1, 2, 3, 4)], [(1,)]], ids=["three", "one", "image"])
def test_inputs_are_written_once_to_where_the_engine_reads_them(limit: int, requests: list[tuple[int, ...]]) -> None:
    memory = detector_inputs(*[0] * limit)
    engine, batches = Engine(), [detector_inputs(*values) for values in requests]

    def run(images: Any, sizes: Any) -> Any:
        assert np.shares_memory(images, memory[0])
        assert np.shares_memory(sizes, memory[1])
        return engine(images, sizes)

    outputs = run_in_batches(run, batches, limit, lambda count: [array[:count] for array in memory])
    assert max(engine.batches) <= limit
    for output, values in zip(outputs, requests, strict=True):
        np.testing.assert_array_equal(output["boxes"][:, 0, 0], values)
        np.testing.assert_array_equal(output["labels"][:, 1], np.array(values) + 100)


def detector_request(*values: int) -> Request:
    images, sizes = detector_inputs(*values)
    return Request({"images": images, "image_sizes": sizes})


def test_detector_step_answers_requests_in_order() -> None:
    responses = respond_together(FakeTriton(), [detector_request(7), detector_request(9, 8)], Engine(), 4)
    assert [list(response.outputs()["scores"][:, 0]) for response in responses] == [[7], [9, 8]]
    assert list(responses[0].outputs()) == ["boxes", "scores", "labels"]


def test_detector_step_gives_the_engine_only_what_requests_have() -> None:
    given: list[tuple[int, ...]] = []

    def engine(*inputs: Any) -> Any:
        given.append(tuple(len(each) for each in inputs))
        return tuple(np.zeros((len(inputs[0]), 1), np.float32) for _ in range(3))

    requests = [Request({"images": detector_inputs(*values)[0]}) for values in ((7,), (9, 8))]
    responses = respond_together(FakeTriton(), requests, engine, 2)
    assert [response.outputs()["scores"].shape for response in responses] == [(1, 1), (2, 1)]
    assert given == [(2,), (1,)]


def test_what_nobody_waits_for_is_not_computed_and_its_neighbours_are() -> None:
    engine = Engine()
    late = detector_request(8)
    late.text = json.dumps({DEADLINE_PARAMETER: 1000})
    gone = detector_request(9)
    gone.cancelled = True
    first, second, third, last = respond_together(
        FakeTriton(), [detector_request(7), late, gone, detector_request(10)], engine, 4
    )
    assert engine.batches == [2]
    assert [response.outputs()["scores"][0, 0] for response in (first, last)] == [7, 10]
    assert [response.error.code for response in (second, third)] == ["UNAVAILABLE"] * 2
    assert DEADLINE_PASSED in second.error.message


def test_triton_is_not_asked_for_cancelled_requests_where_none_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> bool:
        raise AssertionError("it takes a third of a millisecond")

    monkeypatch.setattr(admission.Account, "is_slow", False)
    asked = detector_request(7)
    monkeypatch.setattr(asked, "is_cancelled", ask)
    (response,) = respond_together(FakeTriton(), [asked], Engine(), 4)
    assert response.outputs()["scores"][0, 0] == 7


def test_a_run_of_nothing_runs_nothing() -> None:
    engine, gone = Engine(), detector_request(9)
    gone.cancelled = True
    (response,) = respond_together(FakeTriton(), [gone], engine, 4)
    assert (response.error.code, engine.batches) == ("UNAVAILABLE", [])


def test_failing_engine_is_an_internal_error_of_every_request() -> None:
    def engine(images: Any, sizes: Any) -> Any:
        raise RuntimeError("out of memory")

    triton = FakeTriton()
    responses = respond_together(triton, [detector_request(7), detector_request(9)], engine, 4)
    assert [response.error.message for response in responses] == ["RuntimeError; the server's log says more"] * 2
    assert {response.error.code for response in responses} == {"INTERNAL"}
    assert len(triton.logged) == 2


def test_impossible_sizes_are_an_error_of_their_request_which_the_engine_never_sees() -> None:
    engine, bad = Engine(), detector_request(9)
    bad.inputs["image_sizes"][:] = 0
    first, second, third = respond_together(FakeTriton(), [detector_request(7), bad, detector_request(8)], engine, 4)
    assert [list(response.outputs()["scores"][:, 0]) for response in (first, third)] == [[7], [8]]
    assert engine.batches == [2]
    assert second.error.code == "INVALID_ARG"
    assert second.error.message == "image_sizes: expected height and width in 1..200 and 1..2, got 0 and 0"
    (alone,) = respond_together(FakeTriton(), [bad], engine, 4)
    assert (alone.error.code, engine.batches) == ("INVALID_ARG", [2])


def test_parameters_that_are_no_text_are_an_error_of_their_request() -> None:
    class Broken(Request):
        def parameters(self) -> str:
            return b'{"\xff": 1}'.decode()

    bad = Broken(image_request(png(9, 9)).inputs)
    first, second = respond(FakeTriton(), PREPROCESS, [bad, image_request(png(9, 9))], PREPROCESS_STEP)
    assert (first.error.code, first.error.message) == ("INVALID_ARG", "parameters: expected names and values in UTF-8")
    assert second.outputs()["original_sizes"].tolist() == [[9, 9]]


def test_settings_are_read_by_their_types() -> None:
    parameters = {
        "score_threshold": "0.25",
        "nms": "hard",
        "iou_threshold": "0.5",
        "min_score": "1e-2",
        "class_agnostic": "true",
        "clip": "false",
        "max_detections": "7",
        "EXECUTION_ENV_PATH": "for the Python backend, not for us",
    }
    settings = parse_settings(PostprocessSettings, config("codetr_postprocess", {}, **parameters))
    assert settings == PostprocessSettings(0.25, "hard", 0.5, 0.01, True, False, 7)
    assert parse_settings(OnnxSettings, {"name": "codetr_detector"}) == OnnxSettings()


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        pytest.param(
            PostprocessSettings, "score_treshold", "0.1", "unknown parameter 'score_treshold'; expected some", id="typo"
        ),
        pytest.param(
            PostprocessSettings, "iou_threshold", "0,8", "iou_threshold: expected a number, got '0,8'", id="comma"
        ),
        pytest.param(
            PostprocessSettings, "iou_threshold", "8", r"iou_threshold: expected a number in 0..1, got 8", id="range"
        ),
        pytest.param(
            PostprocessSettings, "class_agnostic", "yes", "class_agnostic: expected true or false, got 'yes'", id="bool"
        ),
        pytest.param(
            PostprocessSettings, "nms", "fast", "nms: expected one of soft, hard, none, got 'fast'", id="word"
        ),
        pytest.param(
            PreprocessSettings, "max_pixels", "1e6", "max_pixels: expected a whole number, got '1e6'", id="integer"
        ),
        pytest.param(
            PreprocessSettings,
            "unknown_parameters",
            "warn",
            "unknown_parameters: expected one of refuse, ignore, got 'warn'",
            id="a way with unknown parameters",
        ),
        pytest.param(
            PostprocessSettings,
            "unknown_parameters",
            "",
            "unknown_parameters: expected one of refuse, ignore, got ''",
            id="no way with unknown parameters",
        ),
        pytest.param(PreprocessSettings, "formats", "JPEG,GIF", "formats: expected some of JPEG", id="list"),
        pytest.param(OnnxSettings, "threads", "-1", r"threads: expected 0 \(all cores\) or more, got -1", id="threads"),
    ],
)
def test_impossible_settings_name_model_key_value_and_expectation(
    kind: type, key: str, value: str, message: str
) -> None:
    with pytest.raises(CodetrError, match=f"a_model: {message}"):
        parse_settings(kind, config("a_model", {}, **{key: value}))


def test_output_dims_names_a_missing_output() -> None:
    model_config = json.loads(json.dumps(config("a_model", {"boxes": [7, 4]})))
    assert output_dims(model_config, "boxes") == (7, 4)
    with pytest.raises(CodetrError, match=r"a_model: expected an output 'images' in config.pbtxt"):
        output_dims(model_config, "images")


def test_images_are_resized_by_the_rule_of_the_config() -> None:
    rule = Pixels("stretch", antialias=True)
    step = Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}, **pixel_parameters(rule)))
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    encoded = BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    outputs = step({"image": np.array([[encoded.getvalue()]], object)}, {})
    np.testing.assert_array_equal(outputs["images"][0], resize_and_pad(pixels, 32, 48, rule)[0])
    assert outputs["image_sizes"].tolist() == [[32, 48]]
    assert outputs["original_sizes"].tolist() == [[90, 70]]


@pytest.mark.parametrize("count", [1, 2])
def test_images_of_the_engines_size_are_what_was_decoded(count: int) -> None:
    step = Preprocess(config("codetr_preprocess", {"images": [32, 48, 3]}))
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)
    files = [BytesIO() for _ in pixels]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file, "PNG")
    outputs = step({"image": np.array([[file.getvalue()] for file in files], object)}, {})
    np.testing.assert_array_equal(outputs["images"], pixels)
    assert outputs["image_sizes"].tolist() == outputs["original_sizes"].tolist() == [[32, 48]] * count


def test_boxes_are_clipped_or_not_by_the_config() -> None:
    inputs = {
        "boxes": np.array([[[-0.5, 0.25, 0.5, 1.5]]], np.float32),
        "scores": np.array([[0.5]], np.float32),
        "labels": np.array([[0]], np.int32),
        "original_sizes": np.array([[10, 20]], np.int32),
    }
    for clip, expected in (("true", [0, 2.5, 10, 10]), ("false", [-10, 2.5, 10, 15])):
        name = "codetr_postprocess"
        step = Postprocess(config(name, {"boxes": [1, 4]}, max_detections="1", clip=clip), lambda line: None)
        assert step(inputs, {})["boxes"][0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("counts", "threads", "expected"),
    [
        pytest.param([], 0, 0, id="one has all"),
        pytest.param([1], 0, 0, id="one has all, said"),
        pytest.param([2], 0, 4, id="two share eight"),
        pytest.param([2, 1], 0, 2, id="groups add up"),
        pytest.param([16], 0, 1, id="more than cores"),
        pytest.param([2], 3, 3, id="a number of the user's own"),
    ],
)
def test_instances_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], threads: int, expected: int
) -> None:
    monkeypatch.setattr("serving.triton.os.sched_getaffinity", lambda pid: set(range(8)))
    config = {"instance_group": [{"kind": "KIND_CPU", "count": count} for count in counts]}
    assert threads_of_instance(config, threads) == expected
