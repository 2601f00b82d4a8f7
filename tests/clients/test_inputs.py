from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codetr_client.inputs import read_file


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    for most in (len(content), None):
        assert read_file(tmp_path / "file", most) == content
    assert read_file(str(tmp_path / "link")) == content
    with pytest.raises(OSError, match=r"it has more than 3,145,727 bytes"):
        read_file(tmp_path / "file", len(content) - 1)


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=r"it has more than 2,147,483,647 bytes"):
        read_file(tmp_path / "file")


def test_what_would_never_begin_or_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(OSError, match="it is a named pipe, not a file"):
            read_file(path)
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        with pytest.raises(OSError, match=r"it is a device, not a file|No such"):
            read_file(device)


def test_what_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "socket", tmp_path / "none", tmp_path / "none" / "inner"):
            with pytest.raises(OSError, match=r"\[Errno \d+\] "):
                read_file(path)
    with pytest.raises(ValueError, match="null"):
        read_file("a\0b")


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_pipe_of_the_shell_is_read(path: str) -> None:
    code = f"from codetr_client.inputs import read_file; print(len(read_file({path!r})))"
    done = subprocess.run([sys.executable, "-c", code], input=bytes(3 << 20), capture_output=True, check=True)
    assert done.stdout == b"3145728\n"


def test_a_pipe_without_an_end_is_given_up() -> None:
    reading, writing = os.pipe()

    def pour() -> None:
        with open(writing, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass

    thread = threading.Thread(target=pour)
    thread.start()
    with pytest.raises(OSError, match="it has more than 4,194,304 bytes"):
        read_file(f"/dev/fd/{reading}", 4 << 20)
    os.close(reading)
    thread.join()
