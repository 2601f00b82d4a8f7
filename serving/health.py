"""Whether every step of a service is alive and answers, asked from outside.

Triton 2.51 calls a server ready whose Python steps have died, and later releases one whose steps hang. So the question
is an inference: the smallest image, through all steps of an engine.
"""

from __future__ import annotations

import http.client
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from serving.contract import ENSEMBLE
from serving.server_log import cause

_UNAVAILABLE = 503  # a full queue: alive, and busy


def check_service(
    url: str, models: Sequence[str] = (ENSEMBLE,), timeout: float = 5.0, headers: Mapping[str, str] | None = None
) -> list[str]:
    """Return what is wrong with a running service, one line a fault; an empty list if every step answers.

    An engine that is busy is not at fault: its queue may refuse the question, or others' requests may be answered
    instead of it.

    Args:
        url: `host:port` of the server's HTTP endpoint.
        models: the names of the ensembles.
        timeout: seconds to wait for each answer; longer than one inference takes.
        headers: sent with each question; the key of the statistics where the server shuts them.
    """
    try:
        status, _ = ask(url, "/v2/health/ready", timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return [f"no server answers HTTP at {url}: {error}"]
    if status != http.client.OK:
        return [f"the server at {url} is not ready: a model is loading or failed to load"]
    faults = (_fault(url, model, timeout, headers or {}) for model in models)
    return [fault for fault in faults if fault]


def why_no_answer(url: str, model: str, timeout: float) -> str | None:
    """Return why an engine has not answered one small image, in one line; None if it has."""
    try:
        status, answer = ask(url, f"/v2/models/{model}/infer", timeout, *_question({}))
    except TimeoutError:
        return f"{model} gave no answer within {timeout:g} s"
    except (OSError, http.client.HTTPException) as error:
        return f"{model} gave no answer: {error}"
    return None if status == http.client.OK else f"{model} cannot answer: {_message(answer)}"


def _fault(url: str, model: str, timeout: float, headers: Mapping[str, str]) -> str | None:
    before = _answered(url, model, timeout, headers)
    try:
        status, answer = ask(url, f"/v2/models/{model}/infer", timeout, *_question(headers))
    except TimeoutError:
        after = _answered(url, model, timeout, headers)
        return None if before is not None and after != before else f"{model} gave no answer within {timeout:g} s"
    except (OSError, http.client.HTTPException) as error:
        return f"{model} gave no answer: {error}"
    if status in (http.client.OK, _UNAVAILABLE):
        return None
    return f"{model} cannot answer: {_message(answer)}"


def _question(headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an inference on one small image."""
    image = _png(8, 8)
    entry = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(image) + 4}}
    head = json.dumps({"inputs": [entry], "outputs": [{"name": "num_detections"}]}).encode()
    body = head + len(image).to_bytes(4, "little") + image
    return body, {**headers, "Inference-Header-Content-Length": str(len(head))}


def _answered(url: str, model: str, timeout: float, headers: Mapping[str, str]) -> int | None:
    """Return how many requests the model has answered, or None where the server does not say."""
    try:
        status, answer = ask(url, f"/v2/models/{model}/stats", timeout, None, headers)
        statistics = json.loads(answer)["model_stats"][0]["inference_stats"]
        return int(statistics["success"]["count"]) if status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None


def ask(
    url: str, path: str, timeout: float, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Return the status and the body of a server's answer; a question with a body is a POST.

    Raises:
        OSError, http.client.HTTPException: there is none.
    """
    connection = http.client.HTTPConnection(url, timeout=timeout)  # no proxy of the environment comes between
    try:
        connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _message(answer: bytes) -> str:
    try:
        content: Any = json.loads(answer)
        return cause(str(content["error"]))
    except (ValueError, LookupError, TypeError):
        return answer[:200].decode(errors="replace") or "(nothing)"


def _png(width: int, height: int) -> bytes:
    """Return a black image; pixels are of no interest."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])  # 8 bits, gray
    rows = zlib.compress(bytes(height * (width + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
