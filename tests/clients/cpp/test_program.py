"""The C++ client against servers that answer wrong, and on what lies in its folders."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from codetr_client.files import IMAGE_SUFFIXES, SYSTEM_FOLDERS, find_images
from codetr_client.outputs import is_own_picture, plan_pictures, save_picture
from serving.launch import free_ports
from tests.clients.cpp.program import compiled, run

NAMES = ["person", "bi\x1b[31mke\n"]
GOOD: dict[str, tuple[str, list[Any], np.ndarray[Any, Any]]] = {
    "boxes": ("FP32", [1, 2, 4], np.array([[1.5, 2, 30, 40], [0, 0, 0, 0]], np.float32)),
    "scores": ("FP32", [1, 2], np.array([0.75, 0], np.float32)),
    "labels": ("INT32", [1, 2], np.array([1, -1], np.int32)),
    "num_detections": ("INT32", [1, 1], np.array([1], np.int32)),
}


@pytest.fixture(scope="session")
def program(built_once: Callable[..., Path]) -> Path:
    return compiled(built_once)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (80, 60), "white").save(path)
    return path


def answer(version: str = "1", **changes: Any) -> tuple[int, dict[str, str], bytes]:
    """Return a whole answer, with other tensors by name; None leaves one out."""
    outputs, binary = [], b""
    for name, tensor in {**GOOD, **changes}.items():
        if tensor is not None:
            datatype, shape, array = tensor
            size = {"binary_data_size": array.nbytes}
            outputs.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
            binary += array.tobytes()
    header = json.dumps({"model_version": version, "outputs": outputs}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + binary


def counted(detections: int) -> tuple[str, list[Any], np.ndarray[Any, Any]]:
    return "INT32", [1, 1], np.array([detections], np.int32)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as Triton does, or as a test says; keeps what it was sent."""

    infer: ClassVar[Any] = answer()
    config: ClassVar[Any] = (
        200,
        {},
        json.dumps({"parameters": {"class_names": {"string_value": json.dumps(NAMES)}}}).encode(),
    )
    ready: ClassVar[Any] = (200, {}, b"")
    metadata: ClassVar[Any] = (200, {}, b"{}")
    received: ClassVar[list[Any]] = []

    def do_GET(self) -> None:
        kind = self.path.rsplit("/", 1)[1]
        self._send({"config": self.config, "ready": self.ready}.get(kind, self.metadata))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, int(self.headers["Inference-Header-Content-Length"]), body))
        self._send(self.infer)

    def _send(self, answer: tuple[int, dict[str, str], bytes]) -> None:
        status, headers, body = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@contextmanager
def serving(**answers: Any) -> Iterator[tuple[str, type[Handler]]]:
    """Run such a server for the length of a `with` block; gives its address and its handler."""
    handler = type("Handler", (Handler,), {**answers, "received": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", handler
        finally:
            server.shutdown()
            thread.join()


def detect(program: Path, picture: Path, url: str, *options: str | Path, **environment: str) -> Any:
    return run(program, [picture, "--output", picture.parent / "out", "--url", url, *options], **environment)


def test_what_is_sent_and_what_comes_of_the_answer(program: Path, picture: Path) -> None:
    with serving() as (url, handler):
        done = detect(program, picture, url, "--score-threshold", "0.25", "--model", "a b")
    assert (done.returncode, done.stderr) == (0, "")
    ((path, length, body),) = handler.received
    assert path == "/v2/models/a%20b/infer"
    header, content = json.loads(body[:length]), picture.read_bytes()
    assert header["parameters"] == {"binary_data_output": True, "score_threshold": 0.25}
    assert header["inputs"][0] == {
        "name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(content) + 4},
    }  # fmt: skip  # one comparison
    assert body[length:] == len(content).to_bytes(4, "little") + content
    assert [line.split() for line in done.stdout.splitlines()[:2]] == [
        ["image", "class", "score", "box", "(x1", "y1", "x2", "y2)"],
        ["a.png", "bi?[31mke?", "0.750", "1.5", "2.0", "30.0", "40.0"],
    ]
    results = json.loads((picture.parent / "out/detections.json").read_text())
    found = {"box": [1.5, 2.0, 30.0, 40.0], "score": 0.75, "label": 1, "name": NAMES[1]}
    assert results == {
        "score_threshold": 0.25,
        "images": [{"file": str(picture), "width": 80, "height": 60, "picture": "a.jpg", "detections": [found]}],
    }
    assert is_own_picture(picture.parent / "out/a.jpg")


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        pytest.param((400, {}, b'{"error": "image 0: no\\nimage"}'), "image 0: no image", id="refused"),
        pytest.param((503, {}, b'{"error": "Exceeds maximum queue size"}'), "turned the request away", id="queue full"),
        pytest.param((502, {}, b"<html>proxy</html>"), "HTTP status 502, which is not of Triton", id="a proxy's page"),
        pytest.param((500, {}, b'{"error": 7}'), "HTTP status 500", id="an error that is no text"),
        pytest.param((200, {}, b"hello"), "it has no binary tensors", id="text"),
        pytest.param((200, {"Inference-Header-Content-Length": "99"}, b"{}"), "no binary tensors", id="a long header"),
        pytest.param((200, {"Inference-Header-Content-Length": "2"}, b"{]"), "not of this service", id="no JSON"),
        pytest.param((200, {"Inference-Header-Content-Length": "2"}, b"{}"), "not of this service", id="no outputs"),
        pytest.param(answer(scores=None), "it has no scores", id="an output missing"),
        pytest.param(answer(labels=("INT64", [1, 2], np.zeros(2, np.int64))), "labels is INT64", id="another type"),
        pytest.param(answer(boxes=("FP32", [2, 2, 4], np.zeros(8, np.float32))), "boxes is FP32", id="another batch"),
        pytest.param(answer(boxes=("FP32", [1, 9, 4], np.zeros(8, np.float32))), "boxes is FP32", id="another size"),
        pytest.param(answer(scores=("FP32", [1, 3], np.zeros(3, np.float32))), "different numbers of rows", id="rows"),
        pytest.param(answer(num_detections=counted(3)), "num_detections is 3", id="more than rows"),
        pytest.param(answer(num_detections=counted(-1)), "num_detections is -1", id="less than none"),
        pytest.param((*answer()[:2], answer()[2][:-4]), "it ends inside of num_detections", id="cut short"),
    ],
)  # fmt: skip  # a table
def test_another_answer_is_that_images_error(program: Path, picture: Path, infer: Any, message: str) -> None:
    with serving(infer=infer) as (url, _):
        done = detect(program, picture, url)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 1 of 1 images failed: a.png: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    results = json.loads((picture.parent / "out/detections.json").read_text())
    assert message in results["images"][0]["error"]


def test_names_are_those_of_the_version_that_answered(program: Path, picture: Path) -> None:
    for name in ("b.png", "c.png"):
        Image.new("RGB", (80, 60), "white").save(picture.with_name(name))
    asked: list[str] = []
    order = iter(["1", "2", "2"])

    def config(handler: Handler) -> tuple[int, dict[str, str], bytes]:
        if handler.path.endswith("/config"):  # it is looked up at any question
            asked.append(handler.path)
        names = json.dumps(["?", f"of version {handler.path.split('/')[-2]}"])
        return 200, {}, json.dumps({"parameters": {"class_names": {"string_value": names}}}).encode()

    changing = property(lambda handler: answer(next(order)) if handler.command == "POST" else None)
    with serving(infer=changing, config=property(config)) as (url, _):
        done = run(program, [picture.parent, "--output", picture.parent / "out", "--url", url])
    assert done.returncode == 0, done.stderr
    results = json.loads((picture.parent / "out/detections.json").read_text())
    found = [image["detections"][0]["name"] for image in results["images"]]
    assert found == ["of version 1", "of version 2", "of version 2"]
    assert asked == [f"/v2/models/codetr/versions/{version}/config" for version in (1, 2)]


def test_names_that_the_server_keeps_to_itself_are_numbers(program: Path, picture: Path) -> None:
    with serving(config=(403, {}, b'{"error": "This API is restricted"}')) as (url, _):
        done = detect(program, picture, url)
    assert done.stdout.splitlines()[1].split()[1:3] == ["class", "1"]


@pytest.mark.parametrize(
    ("ready", "metadata", "message"),
    [
        ((400, {}, b""), (404, {}, b'{"error": "Request for unknown model"}'), "no model 'codetr' at"),
        ((400, {}, b""), (200, {}, b"{}"), "is not ready: it is loading or failed to load"),
    ],
    ids=["unknown", "not loaded"],
)
def test_a_model_that_cannot_answer_ends_it_at_once(
    program: Path, picture: Path, ready: Any, metadata: Any, message: str
) -> None:
    with serving(ready=ready, metadata=metadata) as (url, handler):
        done = detect(program, picture, url)
    assert (done.returncode, handler.received) == (1, [])
    assert message in done.stderr
    assert not (picture.parent / "out").exists()


def test_no_server_and_other_protocols_are_told(program: Path, picture: Path) -> None:
    (port,) = free_ports(1)
    done = detect(program, picture, f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: no server answers HTTP at 127.0.0.1:{port}: ")
    for url in ("ftp://localhost", "", "http://", "localhost:99999"):
        done = detect(program, picture, url)
        assert done.returncode == 1, url
        assert len(done.stderr.splitlines()) == 1, url


def test_the_timeout_bounds_the_whole_answer(program: Path, picture: Path) -> None:
    """Of a server that sends a byte now and then; a client that waits for each would take a minute."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b" " * 1000:
                    if ended.is_set():
                        break
                    try:
                        connection.send(bytes([byte]))
                    except OSError:
                        break
                    time.sleep(0.1)

        thread = threading.Thread(target=drip)
        thread.start()
        done = detect(program, picture, f"127.0.0.1:{listener.getsockname()[1]}", "--timeout", "0.5")
        ended.set()
        thread.join()
    assert done.returncode == 1
    assert done.stderr.endswith("within 0.5 s\n")


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(program: Path, picture: Path) -> None:
    with serving() as (url, _):
        done = detect(program, picture, url, http_proxy="http://127.0.0.1:9", all_proxy="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_but_earlier_results_is_overwritten(program: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    Image.new("RGB", (80, 60), "white").save(source)
    before = source.read_bytes()
    (tmp_path / ".hidden.jpg").write_bytes(before)
    (tmp_path / "notes.txt").write_text("no picture")
    with serving() as (url, handler):
        for _ in range(2):
            done = run(program, [tmp_path, "--output", tmp_path, "--url", url])
            assert (done.returncode, done.stderr) == (0, "")
        assert len(handler.received) == 2, "its own picture and hidden files are no sources"
        (tmp_path / "inner").mkdir()
        save_picture(Image.new("RGB", (80, 60)), tmp_path / "inner" / "python.jpg")
        (tmp_path / "inner" / "changed.jpg").write_bytes((tmp_path / "a-2.jpg").read_bytes() + b"x")
        done = run(program, [tmp_path / "inner", "--output", tmp_path / "out", "--url", url])
        assert (done.returncode, done.stderr) == (0, "")
        assert len(handler.received) == 3, "the Python client's picture is no source, a changed one is"
        shutil.rmtree(tmp_path / "inner")
        (tmp_path / "detections.json").write_text("[]")
        done = run(program, [tmp_path, "--output", tmp_path, "--url", url])
    assert done.returncode == 1
    assert "no earlier run wrote it" in done.stderr
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == [".hidden.jpg", "a-2.jpg", "a.jpg"]


def sparse(path: Path, size: int) -> Path:
    """Make a file of so many bytes that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.jpg", "cannot read"),
        (lambda folder: os.mkfifo(folder / "pipe.jpg") or folder / "pipe.jpg", "it is a device or a named pipe"),
        (lambda folder: Path("/dev/zero"), "it is a device or a named pipe"),
        (lambda folder: sparse(folder / "large.jpg", 2**31), "it has more than 2147483647 bytes"),
        (lambda folder: folder.joinpath("empty").mkdir() or folder / "empty", "no images in"),
    ],
    ids=["missing", "named pipe", "device", "larger than can be sent", "empty folder"],
)
def test_files_that_are_not_there(program: Path, tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with serving() as (url, _):
        done = run(program, [make(tmp_path), "--output", tmp_path / "out", "--url", url])
    assert done.returncode == 1
    assert message in done.stderr


def test_folders_have_the_files_that_the_python_client_finds(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in (*(f"a{suffix}" for suffix in IMAGE_SUFFIXES), *(f"{name}/a.png" for name in SYSTEM_FOLDERS), "b.gif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(folder / name, "PNG")
    os.mkfifo(folder / "pipe.jpg")
    with serving() as (url, _):
        done = run(program, [folder, "--output", tmp_path / "out", "--url", url])
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [each["file"] for each in results["images"]] == list(map(str, find_images([str(folder)])))


def test_names_as_long_as_may_be_have_pictures_of_shorter_ones(program: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / f"{'n' * 250}{index}.png" for index in range(2)] + [tmp_path / f"n{'é' * 125}.png"]
    for path in pictures:
        Image.new("RGB", (80, 60)).save(path)
    with serving() as (url, _):
        done = run(program, [*pictures, "--output", tmp_path / "out", "--url", url])
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    planned = plan_pictures(tmp_path / "python", [path.stem for path in pictures], [])
    assert [each["picture"] for each in written] == [path.name for path in planned]


def test_the_first_picture_of_an_animated_webp_is_drawn_on(program: Path, tmp_path: Path) -> None:
    path, first = tmp_path / "moving.webp", Image.new("RGB", (80, 60), (200, 40, 90))
    first.save(path, save_all=True, append_images=[Image.new("RGB", (80, 60), "white")], lossless=True)
    with serving(infer=answer(num_detections=counted(0))) as (url, _):
        done = detect(program, path, url)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "out" / "moving.jpg") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(first).astype(int)).max() < 8


def test_a_picture_that_no_jpeg_can_hold_is_refused(program: Path, tmp_path: Path) -> None:
    Image.new("RGB", (70_000, 10)).save(tmp_path / "wide.png")
    with serving() as (url, _):
        done = detect(program, tmp_path / "wide.png", url)
    assert done.returncode == 1
    assert "it has 70000x10 pixels, and no side may be longer than 65535" in done.stderr
    assert not (tmp_path / "out" / "wide.jpg").exists()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_bmp_that_is_cut_short_is_refused(program: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.bmp"
    Image.new("RGB", (75, 60), "white").convert(mode).save(path)
    with serving() as (url, _):
        whole = detect(program, path, url)
        path.write_bytes(path.read_bytes()[:-9])  # less than a row of 75 pixels of a bit, padding included
        cut = detect(program, path, url)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert (cut.returncode, "cannot decode the picture: the BMP is cut short" in cut.stderr) == (1, True)


def test_ctrl_c_writes_what_was_found(program: Path, picture: Path) -> None:
    for name in "bc":
        picture.with_name(f"{name}.png").write_bytes(picture.read_bytes())
    started: list[subprocess.Popen[str]] = []

    def answer_after_ctrl_c(handler: Handler) -> None:
        if len(handler.received) == 1:  # during the second image
            started[0].send_signal(signal.SIGINT)
        Handler.do_POST(handler)

    with serving(do_POST=answer_after_ctrl_c) as (url, _):
        command = [program, picture.parent, "--output", picture.parent / "out", "--url", url]
        started.append(subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        _, errors = started[0].communicate(timeout=120)
    assert started[0].returncode == 130
    assert errors.startswith("interrupted: 2 of 3 images are in ")
    assert len(json.loads((picture.parent / "out" / "detections.json").read_text())["images"]) == 2


@pytest.mark.parametrize("threshold", ["nan", "1.5", "high"])
def test_a_threshold_that_is_none_is_refused_before_anything_is_asked(
    program: Path, picture: Path, threshold: str
) -> None:
    with serving() as (url, handler):
        done = detect(program, picture, url, "--score-threshold", threshold)
    assert (done.returncode, handler.received) == (105, [])  # CLI11's status of a value that is not valid
    assert f"expected a number of 0 to 1, got {threshold}" in done.stderr


def test_a_timeout_below_a_millisecond_is_one(program: Path, picture: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = detect(program, picture, f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.0001")
    assert "within 0.0001 s" in done.stderr


def test_an_output_that_is_a_file_is_told(program: Path, picture: Path) -> None:
    with serving() as (url, handler):
        done = run(program, [picture, "--output", picture, "--url", url])
    assert (done.returncode, handler.received) == (1, [])
    assert "expected a folder" in done.stderr


def test_six_images_are_a_line_each_and_one_failure_does_not_stop_the_rest(program: Path, picture: Path) -> None:
    for name in "bcdef":
        picture.with_name(f"{name}.png").write_bytes(picture.read_bytes())
    picture.with_name("c.png").write_bytes(b"text")  # the server would refuse it; this one cannot be drawn on
    with serving() as (url, _):
        done = run(program, [picture.parent, "--output", picture.parent / "out", "--url", url])
    assert done.returncode == 1
    assert "1 of 6 images failed: c.png: cannot decode the picture" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == [
        "image",
        *(f"{name}.png" for name in "abcdef"),
    ]
