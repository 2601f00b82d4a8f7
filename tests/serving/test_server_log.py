from __future__ import annotations

import pytest

from serving.server_log import (
    News,
    cause,
    complaint,
    failed_models,
    how_it_ended,
    instances,
    what_it_waits_for,
    why_it_ended,
)

STACK = (
    r"\n\nAt:\n  /srv/codetr/serving/triton.py(60): parse_settings\n  /srv/models/codetr/1/model.py(23): initialize\n"
)
FAILED = f"E1121 03:51:04.82 9 a.cc:6] \"failed to load 'm' version 1: Internal: CodetrError: m: got 'x'{STACK}\""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('W1121 03:51:04.799670 15780 pinned_memory_manager.cc:170] "failed"', "03:51:04 failed"),
        ('E1121 03:51:04.823490 15780 main.cc:245] "said \\"no\\" twice"', '03:51:04 said "no" twice'),
        (FAILED, "03:51:04 failed to load 'm' version 1: Internal: m: got 'x'"),
        ("W1121 of a format that is not known", "of a format that is not known"),
        ('I1121 03:51:04.820804 15780 server.cc:604] ""', None),
        ("| codetr | 1 | READY |", None),
        (FAILED.replace("failed to load 'm' version 1: Internal", "ERROR: Failed to create instance"), None),
        (
            "W1126 07:35:24.6 9 b.cc:1] \"ignore version directory 'verification' which fails to convert to integral "
            'number"',
            None,
        ),
        (
            'E1126 07:35:24.6 9 e.cc:1] "unable to create stream for m: CUDA driver version is insufficient for it"',
            None,
        ),
    ],
)
def test_warnings_and_errors_are_news_in_one_sentence(line: str, expected: str | None) -> None:
    shown = News().of(line, 0.0)
    assert (shown and shown.strip()) == expected


def test_the_same_is_news_once_a_minute() -> None:
    news = News()
    other = FAILED.replace("'m'", "'n'")
    shown = [
        bool(news.of(line, at)) for at, line in [(0, FAILED), (59, FAILED), (59, other), (61, FAILED), (62, other)]
    ]
    assert shown == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CodetrError: a: b\n\nAt:\n  /x/model.py(1): initialize\n", "a: b"),
        (f"ValueError: a{STACK}", "ValueError: a"),
        ("in ensemble 'm', a\n\nAt:\n  /x.py(1): f", "in ensemble 'm', a"),
        ("two\nlines \\\\ and \\n a third At: the end", "two lines \\ and   a third At: the end"),
        ("", ""),
    ],
)
def test_a_cause_is_one_sentence_without_a_stack(text: str, expected: str) -> None:
    assert cause(text) == expected


@pytest.mark.parametrize(
    ("log", "status", "message"),
    [
        pytest.param(
            ["I1126 x", "E1126 04:49:55.1 1 model_lifecycle.cc:642] \"failed to load 'm' version 1: Invalid argument: "
             "unable to find backend library for backend 'tensorrt', try specifying runtime\""],
            1,
            "model m failed to load: unable to find backend library for backend 'tensorrt', try specifying runtime "
            "(use the image, or build the plan for the Python backend)",
            id="no backend",
        ),
        pytest.param([FAILED], 1, "model m failed to load: m: got 'x'", id="a step's exception"),
        pytest.param(["x", FAILED.replace("failed to load", "else")], 1, "tritonserver ended with status 1; its last "
                     "line: " + FAILED.partition("failed")[0] + "else 'm' version 1: Internal: m: got 'x'", id="else"),
        pytest.param(
            ["E1126 x manager.cc:1460] \"Poll failed for model directory 'm': failed to read text proto from "
             "/r/m/config.pbtxt\"", "error: creating server: Internal - failed to load all models"],
            1,
            "model m failed to load: failed to read text proto from /r/m/config.pbtxt",
            id="configuration that cannot be read",
        ),
        pytest.param(
            ["x/tritonserver: unrecognized option '--nope=3'", "Usage: tritonserver [options]", "  --help"],
            1,
            "tritonserver refuses an option: unrecognized option '--nope=3'",
            id="unknown option",
        ),
        pytest.param(
            ["x/tritonserver: option '--id' requires an argument", "Usage"],
            1,
            "tritonserver refuses an option: option '--id' requires an argument",
            id="option without value",
        ),
        pytest.param(
            ["Usage: tritonserver [options]", "", "Bad option: \"--grpc-use-ssl\".", "invalid value: maybe"],
            1,
            "tritonserver refuses the option --grpc-use-ssl: invalid value: maybe",
            id="bad value",
        ),
        pytest.param(
            ["failed to start HTTP service: Unavailable - Socket '127.0.0.1:8000' already in use "],
            1,
            "the port of 127.0.0.1:8000 is taken by another program; name another port",
            id="port",
        ),
        pytest.param(["", "the end", ""], 7, "tritonserver ended with status 7; its last line: the end", id="unknown"),
        pytest.param([], -11, "tritonserver was ended by SIGSEGV, a fault in a library that it loaded; its last line: "
                     "(nothing)", id="signal"),
    ],
)  # fmt: skip
def test_the_log_says_why_a_server_ended(log: list[str], status: int, message: str) -> None:
    assert why_it_ended(log, status) == message


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("RuntimeError: CUDA out of memory. Tried to allocate 2 GiB", "the GPU's memory is full"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "there is no GPU or no driver here"),
        ("Unable to initialize shared memory key 'x' to requested size", "/dev/shm is full"),
    ],
)
def test_a_models_failure_says_what_to_do(reason: str, advice: str) -> None:
    line = f"E1126 1 a.cc:1] \"failed to load 'm' version 1: Internal: {reason}\""
    assert f"{reason} ({advice}" in why_it_ended([line], 1)


def test_ends_are_put_in_words() -> None:
    assert how_it_ended(0) == "ended with status 0"
    assert how_it_ended(-15) == "was ended by SIGTERM"
    assert how_it_ended(-100) == "was ended by signal 100"


def test_what_steps_and_the_linker_say_is_told_from_tritons_lines() -> None:
    log = ["I1126 1", "| a table |", "+----+", "terminate called", "  what():  stol", "W1126 1"]
    assert complaint(log) == "terminate called / what():  stol"
    assert complaint(["I1126 1"]) == ""


def test_instances_are_those_that_were_begun() -> None:
    log = [
        'I1126 1 python_be.cc:2249] "TRITONBACKEND_ModelInstanceInitialize: codetr_detector_0_0 (CPU device 0)"',
        "x",
    ]
    assert instances(log) == ["codetr_detector_0_0"]


def test_what_a_server_waits_for_are_the_models_that_it_has_begun_to_load() -> None:
    begun = [f'I1126 06:22:51.18 27253 model_lifecycle.cc:472] "loading: {name}:1"' for name in ("a", "b:c", "d")]
    done = ["I1126 06:22:52.1 27253 model_lifecycle.cc:839] \"successfully loaded 'a'\""]
    assert what_it_waits_for([*begun, *done]) == "b:c, d still being loaded"
    assert what_it_waits_for(["x", ""]) == "x"


def test_a_server_that_gave_up_a_lock_says_what_is_too_busy() -> None:
    log = [
        'I1126 08:49:42.268175 30649 model_lifecycle.cc:472] "loading: codetr_preprocess:1"',
        "terminate called after throwing an instance of 'boost::interprocess::lock_exception'",
        "  what():  boost::interprocess::lock_exception",
        "I1126 08:49:57.369491 30680 pb_stub.cc:2145]  Non-graceful termination detected. ",
    ]
    assert why_it_ended(log, -6).endswith(
        "it said: terminate called after throwing an instance of 'boost::interprocess::lock_exception' / what():  "
        "boost::interprocess::lock_exception (the machine was too busy to load a step; free cores and repeat it)"
    )


UNHEALTHY = "E1126 1 a.cc:1] \"failed to load 'm' version 1: Internal: Stub process 'm_0_1' is not healthy.\""


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        pytest.param({"m": -9}, ": it was ended by SIGKILL, most likely because the machine's or the", id="seen"),
        pytest.param(
            {"other": 3}, ". (its process ended; where no line before says why, most likely because", id="not"
        ),
    ],
)
def test_a_process_that_triton_found_dead(ended: dict[str, int], reason: str) -> None:
    assert f"Stub process 'm_0_1' is not healthy{reason}" in why_it_ended([UNHEALTHY], 1, ended)
    assert failed_models([FAILED], {"m": 3}) == {"m": "m: got 'x'"}, "what a step says itself is reason enough"
