"""What both clients do on both protocols, asked of a fake Triton."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from codetr_client import contract, errors, steps, wire
from codetr_client.aio import AsyncCoDetrClient
from codetr_client.client import CoDetrClient
from codetr_client.errors import ClientStateError, CodetrError, InvalidImageError, ModelNotFoundError
from serving.addresses import free_ports
from tests.clients import fakes
from tests.clients.conftest import HANGS, Call, Server, within
from tests.clients.fakes import Refusal


def test_one_image_becomes_one_request_and_padding_rows_are_dropped(call: Call, server: Server) -> None:
    found = call("detect", b"jpeg", url=server.url)
    assert found.boxes.tolist() == [[1, 2, 30, 40]]
    assert found.names == ("dog",)
    assert server.seen[0].images == (b"jpeg",)


def test_a_batch_is_one_request_with_one_answer_an_image(call: Call, server: Server) -> None:
    found = call("detect_batch", [b"a", b"bc"], url=server.url)
    assert [len(detections) for detections in found] == [1, 2]
    assert found[1].names == ("dog", "class 7"), "the server names two classes only"
    assert [seen.images for seen in server.seen] == [(b"a", b"bc")]
    assert call("detect_batch", [], url=server.url) == []
    assert call("detect_batch", iter(()), url=server.url) == []
    assert len(server.seen) == 1


def test_one_image_in_the_place_of_several_is_not_sent(call: Call, server: Server) -> None:
    with pytest.raises(InvalidImageError, match=r"such as \[image\], not one str; detect takes one"):
        call("detect_batch", "street.jpg", url=server.url)
    assert not server.seen


def test_large_images_travel_whole(call: Call, server: Server) -> None:
    image = bytes(range(256)) * (3 << 12)  # 3 MiB, more than a socket takes at once
    call("detect_batch", [image, b"", image], url=server.url)
    assert server.seen[0].images == (image, b"", image)


def test_the_threshold_travels_as_a_request_parameter_and_only_if_given(call: Call, server: Server) -> None:
    call("detect", b"a", 1, url=server.url)
    call("detect", b"a", url=server.url)
    assert server.seen[0].parameters["score_threshold"] == 1.0
    assert isinstance(server.seen[0].parameters["score_threshold"], float)
    assert "score_threshold" not in server.seen[1].parameters


def test_the_deadline_travels_in_tritons_own_field_and_as_a_time(call: Call, server: Server) -> None:
    before = time.time()
    call("detect", b"a", url=server.url, timeout=100.0)
    after = time.time()
    parameters = server.seen[0].parameters
    assert 1 < parameters["timeout"] <= 100_000_000, "microseconds that are left"
    deadline = parameters[contract.DEADLINE_PARAMETER]
    assert isinstance(deadline, int)
    assert (before + 99) * 1000 - 1 <= deadline + (after - before) * 1000
    assert deadline <= (after + 100) * 1000 + 1


def test_a_server_whose_clock_is_ahead_gets_no_more_deadlines(server: Server) -> None:
    server.script = [Refusal("UNAVAILABLE", f"the {contract.DEADLINE_PASSED} 3000 ms ago")]
    with CoDetrClient(server.url) as client:
        assert len(client.detect(b"a")) == 1, "asked again at once, though nothing is to be retried"
        client.detect(b"a")
    assert [contract.DEADLINE_PARAMETER in seen.parameters for seen in server.seen] == [True, False, False]
    assert all("timeout" in seen.parameters for seen in server.seen), "which is relative, and needs no common clock"


def test_a_deadline_that_passes_again_is_a_timeout(call: Call, server: Server) -> None:
    server.script = [Refusal("UNAVAILABLE", contract.DEADLINE_PASSED)] * 3
    with pytest.raises(errors.ServerTimeoutError, match="turned the request away: deadline passed"):
        call("detect", b"a", url=server.url, retries=5)
    assert len(server.seen) == 2


def test_given_names_are_not_asked_for(call: Call, server: Server) -> None:
    assert call("detect", b"a", url=server.url, class_names=["x", "y"]).names == ("y",)
    assert call("detect", b"a", url=server.url, class_names="coco").names == (contract.coco_class_names()[1],)
    assert server.config_calls == 0


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(
            Refusal("UNAVAILABLE", "This protocol is restricted, expecting header 'x'"), id="as Triton says it on gRPC"
        ),
        pytest.param(Refusal("PERMISSION_DENIED", "This API is restricted, expecting header 'x'"), id="and on HTTP"),
        pytest.param(Refusal("PERMISSION_DENIED", "not for you"), id="as a proxy may"),
    ],
)
def test_a_restricted_configuration_leaves_numbers_for_names(call: Call, server: Server, refusal: Refusal) -> None:
    server.config = refusal
    assert call("detect", b"a", url=server.url).names == ("class 1",)


def test_another_fault_of_the_configuration_is_not_swallowed(call: Call, server: Server) -> None:
    server.config = Refusal("INTERNAL", "broken")
    with pytest.raises(errors.ServerFaultError, match="broken"):
        call("detect", b"a", url=server.url)


@pytest.mark.parametrize("names", ["cat, dog", "7"])
def test_a_configuration_whose_names_are_no_list_is_an_error(call: Call, server: Server, names: str) -> None:
    server.config = names
    with pytest.raises(CodetrError, match=f"class_names of model 'codetr'.*'?{names}'?$"):
        call("detect", b"a", url=server.url)


NOT_READY = "Request for unknown model: 'codetr' has no available versions"


@pytest.mark.parametrize(
    ("refusal", "expected", "message"),
    [
        pytest.param(
            Refusal("INVALID_ARGUMENT", "[request id: <id_unknown>] no image"),
            errors.RequestRefusedError,
            "^no image$",
            id="bad image, without Triton's request id",
        ),
        pytest.param(
            Refusal("NOT_FOUND", "unknown model"),
            errors.ModelNotFoundError,
            "no model 'codetr' at 127.0.0.1:[0-9]+: unknown model",
            id="wrong model name",
        ),
        pytest.param(Refusal("NOT_FOUND", NOT_READY), errors.ModelNotReadyError, "is not ready", id="unready model"),
        pytest.param(Refusal("UNAVAILABLE", NOT_READY), errors.ModelNotReadyError, "not ready", id="and in 2.51's way"),
        pytest.param(
            Refusal("UNAVAILABLE", "Exceeds maximum queue size"),
            errors.ServerBusyError,
            "turned the request away: Exceeds maximum queue size",
            id="full queue, whose status gRPC shares with a dead server",
        ),
        pytest.param(
            Refusal("UNAVAILABLE", "the detector has 16 requests waiting"),
            errors.ServerBusyError,
            "16 requests waiting",
            id="full queue in other words",
        ),
        pytest.param(Refusal("UNAVAILABLE", "Request timeout expired"), errors.ServerBusyError, "expired", id="queue"),
        pytest.param(
            Refusal("UNAUTHENTICATED", "no token"), errors.RequestDeniedError, "no token; give cred", id="no token"
        ),
        pytest.param(
            Refusal("PERMISSION_DENIED", "This API is restricted, expecting header 'triton-grpc-protocol-x'"),
            errors.RequestDeniedError,
            "expecting header 'triton-grpc-protocol-x'; give that header",
            id="restricted endpoint",
        ),
        pytest.param(
            Refusal("UNAVAILABLE", "in ensemble 'codetr', 'codetr_detector' version 1 is not at ready state"),
            errors.ModelNotReadyError,
            "is loading or failed to load",
            id="a step that is loaded anew",
        ),
        pytest.param(
            Refusal("INTERNAL", "in ensemble 'codetr', Stub process 'codetr_detector_0_0' is not healthy."),
            errors.ModelNotReadyError,
            r"is not ready: a step of it died: .*'codetr_detector_0_0' is not healthy\.$",
            id="a step that died",
        ),
        pytest.param(
            Refusal("INTERNAL", "the engine failed"),
            errors.ServerFaultError,
            "^the engine failed$",
            id="a fault of the server",
        ),
    ],
)
def test_the_servers_refusals_are_typed_one_line_errors(
    call: Call, server: Server, refusal: Refusal, expected: type[Exception], message: str
) -> None:
    server.script = [refusal]
    with pytest.raises(expected, match=message) as caught:
        call("detect", b"a", url=server.url)
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)
    assert len(server.seen) == 1, "nothing is retried unless it was asked for"


def wrong(**changed: Any) -> dict[str, np.ndarray]:
    return {name: value for name, value in {**fakes.tensors(1), **changed}.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param(
            wrong(scores=None), "no output scores in the answer, which has boxes, labels, num_det", id="fewer"
        ),
        pytest.param(
            wrong(labels=np.zeros((1, 4), np.float32)), r"labels: expected INT32 \[1, 4\], got float32", id="wrong type"
        ),
        pytest.param(wrong(scores=np.zeros((1, 3), np.float32)), r"scores: expected FP32 \[1, 4\]", id="other rows"),
        pytest.param(fakes.tensors(2), r"boxes: expected FP32 \[1, 4, 4\]", id="answers for another batch"),
        pytest.param(wrong(boxes=np.zeros(4, np.float32)), r"boxes: expected FP32 \[1, 300, 4\]", id="no boxes"),
        pytest.param(
            wrong(num_detections=np.array([[5]], np.int32)), r"num_detections: expected 0 to 4, got \[5\]", id="count"
        ),
        pytest.param(wrong(num_detections=np.array([[-1]], np.int32)), r"got \[-1\]", id="negative count"),
    ],
)
def test_an_answer_that_is_not_the_contracts_is_an_error(
    call: Call, server: Server, tensors: dict[str, np.ndarray], message: str
) -> None:
    server.script = [lambda: tensors]
    with pytest.raises(errors.ServerAnswerError, match=message):
        call("detect", b"a", url=server.url)


def test_check_tells_an_unready_model(call: Call, server: Server) -> None:
    call("check", url=server.url)
    server.ready = False
    with pytest.raises(errors.ModelNotReadyError, match="not ready"):
        call("check", url=server.url)


def test_an_unreadable_image_fails_before_the_request(call: Call, server: Server, tmp_path) -> None:
    with pytest.raises(InvalidImageError, match="cannot read"):
        call("detect", tmp_path / "missing.jpg", url=server.url)
    with pytest.raises(InvalidImageError, match=r"RGB uint8 \[H, W, 3\], not float32 \[4, 4, 3\]"):
        call("detect", np.zeros((4, 4, 3), np.float32), url=server.url)
    assert not server.seen


def test_headers_of_the_client_and_of_a_call_arrive(server: Server) -> None:
    headers = {"Authorization": "Bearer s3cret", "x-tenant": "a"}
    with CoDetrClient(server.url, headers=headers) as client:
        client.detect(b"a", headers={"X-Tenant": "b", "x-trace": "1"})
        client.detect(b"a")
    first, second = (seen.headers for seen in server.seen)
    assert (first["authorization"], first["x-tenant"], first["x-trace"]) == ("Bearer s3cret", "b", "1")
    assert (second["authorization"], second["x-tenant"]) == ("Bearer s3cret", "a")
    assert "x-trace" not in second


def test_headers_of_an_asyncio_client_arrive(server: Server) -> None:
    async def run() -> None:
        async with AsyncCoDetrClient(server.url, headers={"Authorization": "Bearer s3cret"}) as client:
            await client.detect(b"a", headers={"x-trace": "1"})

    asyncio.run(run())
    assert server.seen[0].headers["authorization"] == "Bearer s3cret"
    assert server.seen[0].headers["x-trace"] == "1"


def test_tokens_are_shown_nowhere(call: Call, server: Server) -> None:
    headers = {"authorization": "Bearer s3cret"}
    client = CoDetrClient(server.url, headers=headers)
    shown = [repr(client), repr(client._endpoint), repr(client._endpoint.options), repr(vars(client._calls))]
    shown.append(repr(steps.Send(None, headers, None)))
    client.close()
    server.script = [Refusal("INTERNAL", "fault")]
    with pytest.raises(CodetrError) as caught:
        call("detect", b"a", url=server.url, headers=headers)
    shown.append(repr(caught.value))
    with pytest.raises(CodetrError) as caught:
        call("detect", b"a", url=server.url, headers={"authorization": "Bearer\ns3cret"})
    shown.append(repr(caught.value))
    assert [text for text in shown if "s3cret" in text] == []


# ---- where a client may be used


def test_any_thread_may_use_a_client(server: Server) -> None:
    barrier = threading.Barrier(4)

    def answer() -> dict[str, np.ndarray]:
        barrier.wait(HANGS)  # four requests are under way at the same time
        return fakes.tensors(1)

    server.script = [answer] * 4
    with CoDetrClient(server.url) as client, ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert [len(found) for found in pool.map(client.detect, [b"a"] * 4)] == [1] * 4


def test_a_closed_client_says_so(server: Server) -> None:
    client = CoDetrClient(server.url)
    client.detect(b"a")
    client.close()
    client.close()
    for use in (lambda: client.detect(b"a"), client.check, lambda: client.detect_batch([b"a"])):
        with pytest.raises(ClientStateError, match="is closed; make another"):
            use()


def test_a_closed_asyncio_client_says_so(server: Server) -> None:
    async def run() -> None:
        client = AsyncCoDetrClient(server.url)
        await client.detect(b"a")
        await client.close()
        await client.close()
        with pytest.raises(ClientStateError, match="is closed; make another"):
            await client.detect(b"a")

    asyncio.run(run())


def test_closing_under_a_call_is_not_taken_for_a_fault_of_the_server(server: Server) -> None:
    started, go_on = threading.Event(), threading.Event()

    def answer() -> dict[str, np.ndarray]:
        started.set()
        go_on.wait(HANGS)
        return fakes.tensors(1)

    server.script = [answer]
    client = CoDetrClient(server.url, class_names=())
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.detect, b"a")
        started.wait(HANGS)
        client.close()
        go_on.set()
        if server.protocol == "http":
            assert len(call.result(HANGS)) == 1, "the answer under way is still received"
        else:
            with pytest.raises(ClientStateError, match="closed while a call was under way"):
                call.result(HANGS)


def test_an_asyncio_client_belongs_to_one_event_loop(server: Server) -> None:
    client = AsyncCoDetrClient(server.url)  # made where no loop runs

    async def detect() -> int:
        return len(await client.detect(b"a"))

    async def twice() -> None:
        assert await detect() == 1

    with asyncio.Runner() if hasattr(asyncio, "Runner") else pytest.skip("Python 3.11") as runner:
        runner.run(twice())

        async def elsewhere() -> None:
            with pytest.raises(ClientStateError, match="belongs to another event loop"):
                await client.detect(b"a")
            with pytest.raises(ClientStateError, match="belongs to another event loop"):
                await client.close()

        within(HANGS, lambda: asyncio.run(elsewhere()))
        runner.run(client.close())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_asyncio_client_whose_loop_is_over_can_be_closed(server: Server) -> None:
    client = AsyncCoDetrClient(server.url)
    asyncio.run(client.detect(b"a"))
    asyncio.run(client.close())
    with pytest.raises(ClientStateError, match="closed"):
        asyncio.run(client.detect(b"a"))
    del client
    gc.collect()  # asyncio complains about what its loop left open, which is right


def test_a_cancelled_call_leaves_the_client_usable(server: Server) -> None:
    started, go_on = threading.Event(), threading.Event()

    def late() -> dict[str, np.ndarray]:
        started.set()
        go_on.wait(HANGS)
        return fakes.tensors(2)  # would be noticed as the answer to the next question

    async def run() -> None:
        async with AsyncCoDetrClient(server.url, class_names=()) as client:
            await client.detect(b"a")
            server.script = [late]
            call = asyncio.create_task(client.detect_batch([b"a", b"b"]))
            await asyncio.to_thread(started.wait, HANGS)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            go_on.set()
            answers = await asyncio.gather(*(client.detect(b"a") for _ in range(3)))
            assert [len(found) for found in answers] == [1, 1, 1]

    within(HANGS, lambda: asyncio.run(run()))


def test_asyncio_timeouts_of_the_caller_work_too(server: Server) -> None:
    go_on = threading.Event()
    server.script = [lambda: go_on.wait(HANGS) and fakes.tensors(1)]

    async def run() -> None:
        async with AsyncCoDetrClient(server.url, class_names=()) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.detect(b"a"), 0.2)
            go_on.set()
            assert len(await client.detect(b"a")) == 1

    within(HANGS, lambda: asyncio.run(run()))


def test_a_client_cannot_travel_to_another_process(server: Server) -> None:
    for client in (CoDetrClient(server.url), AsyncCoDetrClient(server.url)):
        with pytest.raises(ClientStateError, match=f"a {type(client).__name__} cannot travel to another process"):
            pickle.dumps(client)


def test_an_answer_has_the_names_of_the_version_that_computed_it(server: Server) -> None:
    server.configs = {"1": '["cat", "dog"]', "2": '["car", "bus"]'}
    with CoDetrClient(server.url) as client:
        for version, name in (("1", "dog"), ("2", "bus"), ("2", "bus"), ("1", "dog")):
            server.version = version
            assert client.detect(b"a").names == (name,)
            assert client.class_names()[1] == name
    assert server.config_calls == 2


def test_an_image_is_sent_again_whose_version_has_gone_with_its_names(server: Server) -> None:
    server.version, server.configs = "1", {"1": Refusal("NOT_FOUND", "unknown model: 'codetr' version 1 is not found")}

    def changes_over() -> dict[str, np.ndarray]:
        server.version = "2"
        return fakes.tensors(1)

    server.configs["2"] = '["car", "bus"]'
    server.script = [lambda: fakes.tensors(1), changes_over]
    with CoDetrClient(server.url) as client:
        assert client.detect(b"a").names == ("bus",)
    assert len(server.seen) == 2


def test_names_that_never_come_are_an_error_in_the_end(server: Server) -> None:
    server.version, server.configs = "1", {"1": Refusal("NOT_FOUND", "unknown model: 'codetr' version 1 is not found")}
    with CoDetrClient(server.url) as client, pytest.raises(ModelNotFoundError):
        client.detect(b"a")
    assert len(server.seen) == 4


def test_one_client_asks_for_the_names_once(server: Server) -> None:
    with CoDetrClient(server.url) as client:
        client.detect(b"a")
        client.detect(b"a")
    assert server.config_calls == 1


def test_parallel_calls_of_the_asyncio_client_ask_for_the_names_once(server: Server) -> None:
    async def run() -> None:
        async with AsyncCoDetrClient(server.url) as client:
            await asyncio.gather(*(client.detect(b"a") for _ in range(5)))

    asyncio.run(run())
    assert server.config_calls == 1


# ---- proxies of the environment


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_of_the_environment_is_used(
    call: Call, server: Server, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, nobody)
        monkeypatch.setenv(name.upper(), nobody)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("no_grpc_proxy", "")
    assert len(call("detect", b"a", url=f"{server.protocol}://{host}:{server.port}")) == 1


def test_models_are_those_that_keep_the_contract_each_once(call: Call, server: Server) -> None:
    server.ensembles = {"codetr", "cars"}
    server.names = ["codetr_detector", "codetr", "codetr", "cars", "cars_preprocess"]
    assert call("models", url=server.url) == ("cars", "codetr")


def test_a_server_that_shuts_its_statistics_says_so(call: Call, server: Server) -> None:
    server.names = Refusal("UNAVAILABLE", "This protocol is restricted, expecting header 'codetr-admin'")
    with pytest.raises(errors.RequestDeniedError, match="expecting header 'codetr-admin'; give that header"):
        call("models", url=server.url)


def test_headers_of_the_question_for_models_are_sent_with_it(server: Server) -> None:
    with CoDetrClient(server.url, headers={"x-all": "1"}) as client:
        client.models(headers={"codetr-admin": "key"})
    (seen,) = server.seen_statistics
    assert (seen["codetr-admin"], seen["x-all"]) == ("key", "1")


@pytest.mark.parametrize("answer", [[], {"model_stats": ["a"]}, {"model_stats": [{}]}, {"model_stats": 1}])
def test_statistics_of_something_else_are_refused(answer: Any) -> None:
    with pytest.raises(errors.ServerAnswerError, match="none of Triton's"):
        wire.names_in_statistics(answer)


@pytest.mark.parametrize("answer", [[], {}, {"inputs": [1], "outputs": []}, {"inputs": [{"name": "image"}]}])
def test_metadata_of_something_else_are_no_ensemble(answer: Any) -> None:
    assert not wire.is_ensemble(answer)
