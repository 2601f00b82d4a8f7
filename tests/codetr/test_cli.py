import errno
from importlib import metadata

import pytest
from typer.testing import CliRunner

from codetr import cli
from codetr.cli import app
from serving import runtime
from serving.errors import CodetrError
from serving.runtime import ServerRecord


def test_the_version_is_that_of_the_distribution():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.split()) == (0, ["codetr-triton", metadata.version("codetr-triton")])


@pytest.mark.parametrize(
    ("message", "added"),
    [
        ("no server answers HTTP at a:1: refused; `codetr serve` starts one", True),
        ("no server answers HTTP at a:1: refused; start it", False),
    ],
)
@pytest.mark.parametrize("hosts", [[], ["127.0.0.1"], ["::1", "127.0.0.1", "127.0.0.2", "127.0.0.3"]])
def test_who_finds_no_server_is_told_where_one_runs(message, added, hosts, monkeypatch, capsys):
    records = [ServerRecord(1, host, 80 + k, 90 + k, 3, "secret", f"/r/{k}", False) for k, host in enumerate(hosts)]
    monkeypatch.setattr(runtime, "running_servers", lambda: records)
    places = [
        "HTTP [::1]:80 and gRPC [::1]:90 (/r/0)" if ":" in host else f"HTTP {host}:8{k} and gRPC {host}:9{k} (/r/{k})"
        for k, host in enumerate(hosts)
    ][:3]

    def fail():
        raise CodetrError(message)

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    expected = f", and here runs {', '.join(places)}" if added and hosts else ""
    assert capsys.readouterr().err == f"error: {message}{expected}\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "repository/manifest.json"),
            "repository/manifest.json: Per",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; look at the disk"),
    ],
)
def test_what_the_machine_refuses_is_a_line(error, expected, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fail():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "forgotten.txt")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(FileNotFoundError):
        cli.main()
