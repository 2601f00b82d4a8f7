"""The fuzzer itself: files of every kind, spoilt in every way, and a process for them that may end."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from codetr_client.detections import Detections
from perf.fuzz.bombs import bomb, zeros
from perf.fuzz.cases import case
from perf.fuzz.outcomes import Outcome, contract_fault, digest, input_digest, judge, message_fault
from perf.fuzz.pieces import FORMATS, Format, join, split
from perf.fuzz.run import RECORD, Tally, keep_smallest, run
from perf.fuzz.sandbox import Kept, Limits, Made, Result, judged
from perf.fuzz.server import spelled
from perf.fuzz.sources import HEIGHT, WIDTH, sources
from serving.decode import ImageLimits, decode_image
from serving.preprocess import Preprocessed, preprocess
from serving.rules import Pixels
from tests.perf.fuzz.misbehave import misbehave

LIMITS = Limits()
KINDS = [(form, kind) for form, files in sources().items() for kind in files]


@pytest.mark.parametrize(("form", "kind"), KINDS)
def test_every_source_is_a_whole_picture_which_its_pieces_make_again(form: Format, kind: str) -> None:
    data = sources()[form][kind]
    assert sorted(decode_image(data).shape[:2]) == [HEIGHT, WIDTH]
    assert decode_image(data).std() > 1, "a picture of something"
    assert join(form, split(form, data)) == data
    assert len(split(form, data)) >= 2


def test_a_case_is_decided_by_its_format_seed_and_number() -> None:
    for form in FORMATS:
        made = [case(form, 1, number) for number in range(200)]
        assert made == [case(form, 1, number) for number in range(200)]
        assert made != [case(form, 2, number) for number in range(200)]
        assert len(set(made)) > 190
        assert not set(made) <= set(sources()[form].values())


@pytest.mark.parametrize("form", FORMATS)
def test_some_mutated_files_are_still_pictures_and_some_are_not(form: Format) -> None:
    kinds = Counter(judge(case(form, 3, number), (8, 8), Pixels(), ImageLimits()).kind for number in range(150))
    assert kinds["accepted"] >= 10
    assert kinds["refused"] >= 50


@pytest.mark.parametrize("form", FORMATS)
def test_bombs_are_small_and_ask_for_much(form: Format) -> None:
    bombs = [bomb(form, Random(seed)) for seed in range(12)]
    assert max(map(len, bombs)) < 5 * 2**20
    outcomes = [judge(each, (8, 8), Pixels(), ImageLimits(max_pixels=10**6)) for each in bombs]
    assert any("more than the limit of 1000000" in each.message for each in outcomes)


def test_bombs_inflate_to_zeros() -> None:
    for size in (0, 1, 2**20, 3 * 2**20 + 5):
        assert zlib.decompress(zeros(size)) == bytes(size)


def test_a_file_that_ends_its_process_is_counted_and_the_next_one_is_judged() -> None:
    good = next(iter(sources()["png"].values()))
    files = [Kept(text, text.encode()) for text in ("crash", "text", "spin", "memory")] + [Kept("good", good)]
    limits = replace(LIMITS, seconds=1.0, patience=300, memory=3 * 2**30)
    results = list(judged(files, limits, misbehave))
    assert [result.file for result in results] == files
    assert [result.outcome.kind for result in results] == ["crash", "refused", "hang", "memory", "accepted"]
    assert results[0].outcome.message == "the process ended with status -6"
    assert results[-1].outcome.digest == digest(preprocess(good, *LIMITS.size))
    assert results[-1].size == len(good)


def test_a_file_that_never_ends_is_given_up_and_so_is_the_next_one() -> None:
    files = [Kept("hang", b"hang")] * 2
    results = list(judged(files, replace(LIMITS, patience=1), misbehave))
    assert [result.outcome.message for result in results] == ["no end within 1 s"] * 2


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        pytest.param("", "it names no reason", id="nothing"),
        pytest.param("damaged PNG image: ", "it names no reason", id="no reason"),
        pytest.param("two\nlines", "line breaks", id="lines"),
        pytest.param("x" * 400, "400 characters", id="long"),
        pytest.param("ValueError in File \"x\"", "File", id="traceback"),
        pytest.param("OpenCV(4.11) modules/imgcodecs/src/loadsave.cpp:783", r"\.cpp", id="source"),
        pytest.param("cannot open '/opt/codetr/model'", "/opt", id="path"),
        pytest.param("<_io.BytesIO object at 0x7f0012345678>", "at 0x", id="address"),
    ],
)  # fmt: skip
def test_messages_that_no_stranger_should_get_are_found(message: str, fault: str) -> None:
    assert fault.replace("\\", "") in str(message_fault(message))


def test_messages_of_the_decoder_are_let_through() -> None:
    assert message_fault("the image has 0x123456 pixels, more than the limit of 64000000 in all") is None
    assert message_fault("expected a JPEG image, got bytes that begin with b'/usr/bin'") is None


def test_an_input_that_breaks_the_contract_is_found() -> None:
    images = np.zeros((4, 6, 3), np.uint8)
    limits = ImageLimits(max_pixels=100)
    assert contract_fault(Preprocessed(images, (4, 3), (8, 6)), (4, 6), limits) is None
    assert "images are" in str(contract_fault(Preprocessed(images, (4, 3), (8, 6)), (6, 4), limits))
    assert "valid size" in str(contract_fault(Preprocessed(images, (4, 7), (8, 6)), (4, 6), limits))
    assert "original size" in str(contract_fault(Preprocessed(images, (4, 3), (80, 6)), (4, 6), limits))
    images[0, 3] = 1
    assert "beyond" in str(contract_fault(Preprocessed(images, (4, 3), (8, 6)), (4, 6), limits))


def test_outcomes_are_grouped_by_what_they_say() -> None:
    first = Outcome("refused", "damaged PNG header: broken PNG file (chunk b'ab\\'d')")
    assert first.words == "refused: damaged PNG header: broken PNG file (chunk …)"
    assert first.group == "refused: damaged PNG header"
    assert Outcome("refused", "the image has 12x7 pixels").group == "refused: the image has NxN pixels"
    assert Outcome("accepted", "").group == "accepted"


def test_the_record_counts_every_file_and_keeps_what_failed(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(
        30,
        5,
        tmp_path,
        ("jpeg", "bmp"),
        on_progress=lambda done, faults: seen.append((done, faults)),
        keep=tmp_path / "kept",
    )
    record = json.loads((tmp_path / RECORD).read_text())
    assert (record["files"], record["faults"], record["seed"]) == (60, 0, 5)
    assert seen[-1] == (60, 0)
    for form in ("jpeg", "bmp"):
        counts = record["formats"][form]
        assert counts["files"] == counts["accepted"] + counts["refused"] == 30
        assert sum(counts["refused_by_message"].values()) == counts["refused"]
        assert 0 < counts["seconds"]["p99"] <= counts["seconds"]["max"] <= counts["seconds"]["total"] + 0.01
        assert 10 < counts["peak_memory_mb"] < 5000
    kept = list((tmp_path / "kept").iterdir())
    assert {path.name.split("-")[0] for path in kept} == {"jpeg", "bmp"}
    tally = Tally()
    tally.add(Result(Made("bmp", 5, 1), Outcome("crash", "the process ended with status -11", 1.5), 9, 10**8))
    assert tally.to_json()["faults"] == {"crash": 1}
    assert tally.to_json()["what_failed"][0]["number"] == 1


def test_of_every_outcome_the_smallest_file_is_kept(tmp_path: Path) -> None:
    tally = Tally()
    for number in range(40):
        data = case("bmp", 1, number)
        tally.add(Result(Made("bmp", 1, number), Outcome("refused", "the same"), len(data), 0))
    keep_smallest({"bmp": tally}, tmp_path)
    (path,) = tmp_path.iterdir()
    assert len(path.read_bytes()) == min(len(case("bmp", 1, number)) for number in range(40))


def test_an_answer_spells_what_was_asked() -> None:
    prepared = preprocess(sources()["jpeg"]["rotated"], *LIMITS.size)
    content = input_digest(prepared.images, np.array(prepared.image_size))
    order = np.argsort(list(content))  # whatever order the rows come in
    scores = (np.array(list(content), np.float32) + 1) / 512
    h, w = prepared.original_size
    boxes = np.tile(np.array([0, 0, w, h], np.float32), (32, 1))
    found = Detections.named(boxes, scores[order], np.arange(32, dtype=np.int32)[order], ())
    assert spelled(found) == digest(prepared)
