from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.checks import check_inputs
from serving.contract import DETECTOR, POSTPROCESS, PREPROCESS
from serving.errors import CodetrError
from serving.triton import Postprocess

K = 5


def candidates(**changes: Any) -> dict[str, np.ndarray]:
    """The inputs of post-processing for one image; `name=(place, value)` changes one of their numbers."""
    inputs = {
        "boxes": np.tile(np.array([0.1, 0.2, 0.3, 0.4], np.float32), (1, K, 1)),
        "scores": np.linspace(1, 0.1, K, dtype=np.float32)[None],
        "labels": np.arange(K, dtype=np.int32)[None],
        "original_sizes": np.array([[30, 40]], np.int32),
    }
    for name, (place, value) in changes.items():
        inputs[name][place] = value
    return inputs


def sizes(height: int, width: int) -> dict[str, np.ndarray]:
    return {"images": np.zeros((1, 64, 96, 3), np.uint8), "image_sizes": np.array([[height, width]], np.int32)}


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        pytest.param(DETECTOR, sizes(0, 5), "in 1..64 and 1..96, got 0 and 5", id="no height"),
        pytest.param(DETECTOR, sizes(5, -3), "got 5 and -3", id="a negative width"),
        pytest.param(DETECTOR, sizes(65, 96), "got 65 and 96", id="higher than the engine"),
        pytest.param(DETECTOR, sizes(64, 2**31 - 1), "got 64 and 2147483647", id="the largest number"),
        pytest.param(POSTPROCESS, candidates(original_sizes=((0, 0), 0)), "got 0 and 40", id="an image of no pixel"),
        pytest.param(POSTPROCESS, candidates(original_sizes=((0, 1), -9)), "got 30 and -9", id="a negative image"),
        pytest.param(POSTPROCESS, candidates(labels=((0, 2), -1)), "labels: expected 0 or more, got -1", id="label"),
        pytest.param(POSTPROCESS, candidates(scores=((0, 2), -0.5)), r"in 0..1, got -0.5", id="a negative score"),
        pytest.param(POSTPROCESS, candidates(scores=((0, 2), 7)), r"scores: expected .* got 7", id="a score above 1"),
        pytest.param(POSTPROCESS, candidates(boxes=((0, 1, 3), 1e38)), r"boxes: .* got 1e\+38", id="a box at the end"),
        pytest.param(POSTPROCESS, candidates(boxes=((0, 1, 0), -640)), r"boxes: .* got 640", id="a box of pixels"),
    ],
)
def test_what_no_step_could_have_given_is_named(model: str, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        check_inputs(model, inputs)


def test_what_steps_give_is_let_through() -> None:
    check_inputs(DETECTOR, sizes(1, 1))
    check_inputs(DETECTOR, sizes(64, 96))
    check_inputs(DETECTOR, {"images": sizes(1, 1)["images"]})  # a graph that reads no sizes
    check_inputs(POSTPROCESS, candidates())
    # Half precision rounds up; half of a box may lie beyond its image; 2147483647 classes and pixels are a number.
    check_inputs(POSTPROCESS, candidates(scores=((0, 0), 1.0009), boxes=((0, 0), -0.5), labels=((0, 0), 2**31 - 1)))
    check_inputs(POSTPROCESS, candidates(original_sizes=((0, 0), 2**31 - 1)))
    # These are dropped later, with a warning, whatever else they say.
    check_inputs(POSTPROCESS, candidates(scores=((0, 0), np.nan), labels=((0, 0), -7)))
    check_inputs(POSTPROCESS, candidates(boxes=((0, 0), np.inf)))


@pytest.mark.parametrize("model", [PREPROCESS, DETECTOR, POSTPROCESS])
def test_no_image_is_an_error(model: str) -> None:
    inputs = {"image": np.zeros((0, 1), np.object_)} if model == PREPROCESS else sizes(1, 1) | candidates()
    with pytest.raises(CodetrError, match="the request holds no image"):
        check_inputs(model, {name: array[:0] for name, array in inputs.items()})


EXTREMES = [float(np.float32(x)) for x in (0, -0.0, 1, -1, 0.5, 1e38, -3e38, np.inf, -np.inf, np.nan, 100, 100.5)]
FLOATS = st.one_of(st.sampled_from(EXTREMES), st.floats(width=32, allow_subnormal=False))
PARTS = st.one_of(st.sampled_from(EXTREMES), st.floats(0, 1, width=32, allow_subnormal=False))


@settings(database=None, deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    boxes=arrays.arrays(np.float32, (1, K, 4), elements=st.one_of(FLOATS, PARTS, PARTS)),
    scores=arrays.arrays(np.float32, (1, K), elements=PARTS),
    labels=arrays.arrays(np.int32, (1, K), elements=st.one_of(st.integers(0, 3), st.integers(-1, 2**31 - 1))),
    size=arrays.arrays(np.int32, (1, 2), elements=st.sampled_from([1, 7, 640, 2**31 - 1, 0, -1])),
    nms=st.sampled_from(["soft", "hard", "none"]),
    clip=st.booleans(),
)
@example(
    boxes=np.full((1, K, 4), 100, np.float32), scores=np.ones((1, K), np.float32), labels=np.zeros((1, K), np.int32),
    size=np.full((1, 2), 2**31 - 1, np.int32), nms="soft", clip=False,
)  # fmt: skip
def test_any_numbers_are_an_error_or_an_answer_that_keeps_the_contract(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, size: np.ndarray, nms: str, clip: bool
) -> None:
    parameters = {"max_detections": str(K), "nms": nms, "clip": str(clip).lower()}
    config = {
        "name": "codetr_postprocess",
        "output": [{"name": "boxes", "dims": [str(K), "4"]}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    inputs = {"boxes": boxes, "scores": scores, "labels": labels, "original_sizes": size}
    try:
        check_inputs(POSTPROCESS, inputs)
    except CodetrError:
        return
    outputs = Postprocess(config, lambda warning: None)(inputs, {})
    count = int(outputs["num_detections"][0, 0])
    assert 0 <= count <= K
    assert all(np.isfinite(array).all() for array in outputs.values())
    assert (outputs["labels"][0, :count] >= 0).all()
    assert (outputs["labels"][0, count:] == -1).all()
    kept = outputs["scores"][0, :count]
    assert (kept[:-1] >= kept[1:]).all()
    assert not outputs["boxes"][0, count:].any()
