"""Versions of an engine switched under a real server, while clients ask: each answer is one version's, whole."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from typer.testing import CliRunner

from builder.pipeline.repository import check_destination
from codetr.cli import app
from codetr_client.client import CoDetrClient
from codetr_client.deadline import Deadline
from codetr_client.errors import ModelNotFoundError, ModelNotReadyError
from serving.errors import CodetrError
from serving.health import check_service
from serving.launch import TritonServer
from serving.switch import switch
from serving.versions import Choice, read_choice, write_choice
from tests.e2e.conftest import killed_server
from tests.tiny_engine import MAX_DETECTIONS, tiny_candidates, write_tiny_repository

pytestmark = pytest.mark.server

# Of each version: input size, how scores fall, class names.
VERSIONS = {
    1: ((64, 96), 0.9, tuple(f"first {k}" for k in range(MAX_DETECTIONS))),
    2: ((40, 48), 0.8, tuple(f"second {k}" for k in range(MAX_DETECTIONS))),
}
GRAY = 204
BROKEN, DYING, SILENT = 3, 4, 5


def write_versions(folder: Path) -> Path:
    """Write versions that work, and three that do not: one raises as it is loaded, one dies, one never answers well."""
    for version, ((height, width), decay, class_names) in VERSIONS.items():
        name = "codetr" if version == 1 else f"codetr.{version}"
        repository = write_tiny_repository(
            folder, height=height, width=width, decay=decay, class_names=class_names, name=name
        )
    for version, fault in {
        BROKEN: ("self.telemetry = ", "raise RuntimeError('no such weights')\n        self.telemetry = "),
        DYING: ("self.telemetry = ", "__import__('os')._exit(3)\n        self.telemetry = "),
        SILENT: ("boxes, scores, labels = ", "raise RuntimeError\n        boxes, scores, labels = "),
    }.items():
        write_tiny_repository(folder, name=f"codetr.{version}")
        detector = folder / f"codetr.{version}_detector"
        code = (detector / "1" / "model.py").read_text()
        assert fault[0] in code
        (detector / "1" / "model.py").unlink()
        (detector / "1" / "model.py").write_text(code.replace(*fault, 1))
        if version == SILENT:  # without a warm-up it is ready
            config = (detector / "config.pbtxt").read_text()
            without = re.sub(r"^model_warmup \{.*?^\}\n", "", config, flags=re.DOTALL | re.MULTILINE)
            assert without != config
            (detector / "config.pbtxt").write_text(without)
    return repository


def png(value: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (50, 30), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


class Load:
    """Clients on both protocols that ask until the block ends; `failures` says what was no answer of one version."""

    def __init__(self, server: TritonServer, clients: int = 1, pause: float = 0.05) -> None:
        self.server = server
        self.pause = pause
        self.failures: list[str] = []
        self.answered: list[str] = []  # versions, in the order of the answers
        self._ends = threading.Event()
        asks = (self._raw_grpc, self._raw_http, self._named)
        self._threads = [threading.Thread(target=self._run, args=(ask,)) for ask in asks for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def answers_of(self, version: int) -> int:
        return self.answered.count(str(version))

    def _run(self, ask: object) -> None:
        try:
            ask()  # type: ignore[operator]
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")

    def _check(self, version: str, scores: np.ndarray) -> None:
        _, expected, _ = tiny_candidates(GRAY / 255, VERSIONS[int(version)][1])
        if not np.allclose(scores, expected, rtol=1e-5):
            self.failures.append(f"version {version} answered {scores}")
        self.answered.append(version)
        time.sleep(self.pause)

    def _raw_grpc(self) -> None:
        image = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[png(GRAY)]], dtype=object))
        with tritonclient.grpc.InferenceServerClient(self.server.grpc_url) as client:
            while not self._ends.is_set():
                answer = client.infer("codetr", [image])
                self._check(answer.get_response().model_version, answer.as_numpy("scores")[0])

    def _raw_http(self) -> None:
        image = tritonclient.http.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[png(GRAY)]], dtype=object))
        with tritonclient.http.InferenceServerClient(self.server.http_url) as client:
            while not self._ends.is_set():
                answer = client.infer("codetr", [image])
                self._check(answer.get_response()["model_version"], answer.as_numpy("scores")[0])

    def _named(self) -> None:
        """Ask as our client does, whose names must be those of the version that answered."""
        with CoDetrClient(self.server.grpc_url) as client:
            while not self._ends.is_set():
                found = client.detect(png(GRAY))
                version = {"first": "1", "second": "2"}[found.names[0].split()[0]]
                self._check(version, found.scores)


class Followed:
    """A server that follows its repository, and what it said."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.said: list[str] = []
        server.watch(self.said.append)
        server.follow(lambda said, is_wrong: self.said.append(said), 300)

    @property
    def steps(self) -> set[str]:
        """The models whose processes run."""
        found = set()
        for child in psutil.Process(self.server.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it ends at this moment
                words = child.cmdline() if child.status() != psutil.STATUS_ZOMBIE else []
                found |= {Path(word).parent.parent.name for word in words if word.endswith("/model.py")}
        return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_versions(tmp_path_factory.mktemp("versions") / "repository")


@pytest.fixture(scope="module")
def followed(repository: Path) -> Iterator[Followed]:
    with killed_server(repository) as server:
        yield Followed(server)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, [*words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def steps(engine: str) -> set[str]:
    return {f"{engine}_{step}" for step in ("preprocess", "detector", "postprocess")}


def eventually(is_so: object, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("clients", "rounds"),
    [pytest.param(1, 1, id="once"), pytest.param(2, 4, id="often", marks=pytest.mark.slow)],
)
def test_no_request_fails_and_none_is_wrong_while_versions_change(
    followed: Followed, repository: Path, clients: int, rounds: int
) -> None:
    server = followed.server
    with Load(server, clients, pause=0.05 if rounds == 1 else 0.01) as load:
        eventually(lambda: load.answers_of(1) > 5)
        for _ in range(rounds):
            assert "version 2 is served; 1 running server took it over" in run("switch", str(repository), "--to", "2")
            before = load.answers_of(2)
            eventually(lambda before=before: load.answers_of(2) > before + 20)
            assert check_service(server.http_url) == []
            assert "version 1 is served" in run("rollback", str(repository))
            before = load.answers_of(1)
            eventually(lambda before=before: load.answers_of(1) > before + 20)
    assert load.failures == []
    with CoDetrClient(server.grpc_url) as client:
        assert client.detect(png(GRAY)).names[0].startswith("first")
    assert read_choice(repository, "codetr") == Choice(1, former=2)
    eventually(lambda: followed.steps == steps("codetr"))
    for url in (server.grpc_url, server.http_url):
        with CoDetrClient(url, "grpc" if url == server.grpc_url else "http") as client:
            gone = client._calls._names_of("2", {}, Deadline(10))
            with pytest.raises((ModelNotFoundError, ModelNotReadyError)):  # or it would not ask again
                client._connection.run(gone)
    assert "failed to load" not in server.log()
    assert [said for said in followed.said if "anew" in said] == []


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        pytest.param(BROKEN, "model codetr.3_detector failed to load: .*no such weights", id="fails to load"),
        pytest.param(DYING, ".*codetr.4_detector", id="dies", marks=pytest.mark.slow),
        pytest.param(SILENT, "codetr.5 cannot answer: .*RuntimeError; the server's log says", id="fails at an image"),
    ],
)
def test_a_version_that_does_not_work_leaves_the_other_one_serving(
    followed: Followed, repository: Path, version: int, reason: str
) -> None:
    """Ordered from elsewhere, where nothing tried it before."""
    before = read_choice(repository, "codetr")
    with Load(followed.server, clients=1) as load:
        followed.said.clear()
        write_choice(repository, "codetr", Choice(version))
        eventually(lambda: any("goes on" in said for said in followed.said))
    write_choice(repository, "codetr", before)
    assert load.failures == []
    assert re.search(f"version {version} of codetr is not taken over: {reason}", followed.said[-1], re.DOTALL)
    eventually(lambda: followed.steps == steps("codetr"))


def test_the_command_tries_a_version_before_the_server_does(followed: Followed, repository: Path) -> None:
    before = read_choice(repository, "codetr")
    followed.said.clear()
    with pytest.raises(CodetrError, match=r"version 4 does not start: .*codetr\.4_detector"):  # told by Triton or by us
        switch(repository, "codetr", DYING, 300)
    assert read_choice(repository, "codetr") == before
    assert followed.said == []


def test_what_a_server_runs_on_cannot_be_overwritten(followed: Followed, repository: Path) -> None:
    with pytest.raises(CodetrError, match=r"a server runs on the engine codetr of .*; build version 6 beside it"):
        check_destination(repository, "codetr", overwrite=True)
    check_destination(repository, "codetr.2", overwrite=True)
