from __future__ import annotations

import pytest

from serving.server_log import complaint, how_it_ended, instances, is_warning, what_it_waits_for, why_it_ended


def test_warnings_are_told_from_notes() -> None:
    assert is_warning('W1121 03:51:04.799670 15780 pinned_memory_manager.cc:170] "failed"')
    assert is_warning('E1121 03:51:04.823490 15780 main.cc:245] "failed"')
    assert not is_warning('I1121 03:51:04.820804 15780 server.cc:604] ""')
    assert not is_warning("| codetr | 1 | READY |")


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
