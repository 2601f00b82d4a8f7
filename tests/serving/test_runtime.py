from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving import runtime
from serving.errors import CodetrError
from serving.runtime import (
    PrivateFolder,
    ServerRecord,
    admin_headers,
    admin_key,
    find_server,
    running_servers,
    statistics_headers,
)

RECORD = ServerRecord(1, "127.0.0.1", 18000, 18001, 18002, "the key", "/a repository", tls=False)


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared memory of the test's own."""
    monkeypatch.setattr(runtime, "SHARED_MEMORY", tmp_path)
    monkeypatch.delenv(runtime.KEY_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def disk(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of the test's own."""
    folder = tmp_path_factory.mktemp("disk")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))  # of programs that it starts
    return folder


@pytest.fixture
def folder() -> Iterator[PrivateFolder]:
    folder = PrivateFolder()
    yield folder
    folder.close()


def modes(*paths: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


def test_the_record_is_its_users_alone_and_goes_with_the_server(folder: PrivateFolder, shared_memory: Path) -> None:
    old = os.umask(0)
    try:
        folder.write_record(RECORD)
    finally:
        os.umask(old)
    assert modes(folder.path, folder.path / "server.json") == [0o700, 0o600]
    assert running_servers() == [RECORD]
    folder.close()
    assert list(shared_memory.iterdir()) == []
    assert running_servers() == []
    folder.close()  # once is enough, twice does no harm


def test_temporary_files_of_the_server_go_with_it(folder: PrivateFolder, disk: Path) -> None:
    """What a step unpacked stays when it is ended, for years of restarts."""
    assert folder.temporary is not None
    assert folder.temporary.parent == disk
    assert folder.environment == {"TMPDIR": str(folder.temporary)}
    assert modes(folder.temporary) == [0o700]
    package = folder.temporary / "aotinductor_x" / "model.so"
    package.parent.mkdir()
    package.touch()
    assert runtime.remove_leftovers() == 0
    assert package.exists()
    folder.close()
    assert list(disk.iterdir()) == []


def test_a_server_starts_without_a_disk_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    folder = PrivateFolder()
    assert folder.environment == {}
    folder.close()


@pytest.mark.parametrize(
    ("address", "host", "found"),
    [
        pytest.param("127.0.0.1:18000", "127.0.0.1", True, id="HTTP"),
        pytest.param("127.0.0.1:18001", "127.0.0.1", True, id="gRPC"),
        pytest.param("localhost:18001", "127.0.0.1", True, id="a name"),
        pytest.param("127.0.0.1:18001", "0.0.0.0", True, id="of every network"),
        pytest.param("127.0.0.1:18001", "::", True, id="of every network, IPv6"),
        pytest.param("127.0.0.1:18003", "127.0.0.1", False, id="another port"),
        pytest.param("192.0.2.1:18001", "0.0.0.0", False, id="another machine"),
        pytest.param("no such host:18001", "0.0.0.0", False, id="no address"),
        pytest.param("18001", "0.0.0.0", False, id="no host"),
        pytest.param("", "0.0.0.0", False, id="nothing"),
    ],
)
def test_servers_are_found_by_address(folder: PrivateFolder, address: str, host: str, found: bool) -> None:
    record = ServerRecord(1, host, 18000, 18001, 18002, "the key", "/r", tls=False)
    folder.write_record(record)
    assert find_server(address) == (record if found else None)


def test_a_key_goes_to_its_own_server_only(folder: PrivateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_record(RECORD)
    assert admin_headers("localhost:18000", "http") == {"codetr-admin": "the key"}
    assert admin_headers("localhost:18001", "grpc") == {"triton-grpc-protocol-codetr-admin": "the key"}
    assert admin_headers("192.0.2.1:18001", "grpc") == {}
    monkeypatch.setenv("CODETR_ADMIN_KEY", "of the other")
    assert admin_key("192.0.2.1:18001") == "of the other"
    assert admin_key("127.0.0.1:18001") == "the key"


@pytest.mark.parametrize(("host", "shut"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)])
def test_statistics_need_the_key_where_others_reach_the_server(folder: PrivateFolder, host: str, shut: bool) -> None:
    folder.write_record(replace(RECORD, host=host))
    expected = {"codetr-admin": "the key"} if shut else {}
    assert statistics_headers("127.0.0.1:18000", "http") == expected


def test_what_a_killed_server_left_is_removed_and_nothing_else(
    folder: PrivateFolder, shared_memory: Path, disk: Path
) -> None:
    folder.write_record(RECORD)
    kept = [
        folder.path,
        shared_memory / f"{folder.region_prefix}1",
        shared_memory / "triton_python_backend_shm_region_1",
    ]
    code = (
        "import os, sys; from pathlib import Path; from serving import runtime; "
        "runtime.SHARED_MEMORY = Path(sys.argv[1]); folder = runtime.PrivateFolder(); "
        "(folder.path / 'models').symlink_to('/'); (folder.temporary / 'x').touch(); "
        "Path(sys.argv[1], folder.region_prefix + '1').touch(); "
        "print(folder.path, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(shared_memory)], capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    assert left.is_dir(), killed.stderr
    for region in kept[1:]:
        region.touch()
    assert running_servers() == [RECORD]
    (disk / "codetr-somebody's").mkdir()
    assert len(list(disk.glob("codetr-serve-*"))) == 2
    assert runtime.remove_leftovers() == 1
    assert set(disk.iterdir()) == {folder.temporary, disk / "codetr-somebody's"}
    assert sorted(shared_memory.iterdir()) == sorted(kept)
    assert Path("/usr").is_dir()
    kept[1].unlink()


def test_a_lock_lasts_as_long_as_a_process_that_inherited_it(folder: PrivateFolder) -> None:
    """The server may outlive `codetr serve` for the seconds in which it finishes what it does."""
    folder.write_record(RECORD)
    with subprocess.Popen(["sleep", "60"], pass_fds=folder.locks) as child:
        while folder.locks:
            os.close(folder.locks.pop())
        assert runtime.remove_leftovers() == 0
        child.kill()
        child.wait()
        assert runtime.remove_leftovers() == 1


def test_shared_memory_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SHARED_MEMORY", Path("/dev/null"))
    with pytest.raises(CodetrError, match=r"/dev/null cannot be written \(Not a directory\); .*--shm-size 1g"):
        PrivateFolder()
