"""The command `codetr web`: its options, and its life from the first word to Ctrl-C."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from codetr import cli, web
from codetr.page import server
from codetr.page.options import PageOptions


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[PageOptions]:
    """What the command would serve."""
    seen: list[PageOptions] = []
    monkeypatch.setattr(server, "run_page", lambda options, announce, report: seen.append(options))
    return seen


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["web", *words])


def test_without_options_it_is_for_this_machine_and_its_server(given: list[PageOptions]) -> None:
    assert run().exit_code == 0
    (options,) = given
    assert (options.host, options.port, options.urls, options.models) == ("127.0.0.1", 8080, [None], [])
    assert (options.score_threshold, options.lowest_score, options.max_bytes) == (0.3, 0.05, 64 << 20)


def test_servers_models_and_credentials_are_those_given(given: list[PageOptions], tmp_path: Path) -> None:
    words = ["--url", "a:1", "--url", "http://b:2", "--model", "x", "--model", "y", "--timeout", "7", "--retries", "3"]
    assert run(*words, "--header-file", str(tmp_path / "h"), "--max-megabytes", "2").exit_code == 0
    (options,) = given
    assert (options.urls, options.models, options.max_bytes) == (["a:1", "http://b:2"], ["x", "y"], 2 << 20)
    assert (options.reach.timeout, options.reach.access.retries) == (7.0, 3)
    assert options.reach.access.header_file == str(tmp_path / "h")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score-threshold", "0.1", "--lowest-score", "0.2"], "is below --lowest-score 0.2, which is all that is"),
        (["--port", "0", "--url", "ftp://a"], "url 'ftp://a': expected host:port"),
        (["--port", "0", "--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--port", "0", "--allow-host", "https://a"], "--allow-host 'https://a': expected a name without scheme"),
        (["--port", "0", "--ca-file", "/nowhere"], "tls ca_file /nowhere: cannot be read"),
    ],
)
def test_options_that_cannot_be_are_one_line(words: list[str], message: str) -> None:
    assert message in str(run(*words).exception)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = str(run("--port", str(port)).exception)
    assert f"the page's port {port} of 127.0.0.1 is taken by another program; name another with --port" in message


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiohttp" else find(name))
    for words in (["web"], ["demo", "--web"]):
        message = str(CliRunner().invoke(cli.app, words).exception)
        assert message == "the page needs aiohttp, which is not installed: pip install -e '.[web]'"


def test_whoever_opens_it_to_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "run_page", lambda options, announce, report: announce("http://a/"))
    assert "no login" not in run().stderr
    assert web.OPEN_WARNING.split(" ", 1)[0] in run("--host", "0.0.0.0").stderr
    assert "there is no login" in " ".join(run("--host", "0.0.0.0").stderr.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-c",
        "from codetr.cli import main; main()",
        "web",
        "--port",
        "0",
        "--url",
        "127.0.0.1:1",
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        said = running.stderr.readline()
        address = said.split("http://")[1].split("/")[0]
        host, port = address.split(":")
        for content in (b"no HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"):
            with socket.create_connection((host, int(port)), 60) as stranger:
                stranger.sendall(content)
                assert stranger.recv(12) == b"HTTP/1.0 400", "and not a word on the terminal"
        with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            connection.request("GET", "/")
            assert b"<title>codetr</title>" in connection.getresponse().read()
            running.send_signal(number)  # while a browser holds its connection
            _, rest = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, rest) == (0, "")
