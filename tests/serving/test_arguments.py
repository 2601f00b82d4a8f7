from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from serving.arguments import hide_argument


def test_a_secret_disappears_from_a_childs_arguments() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)", "--key=name=secret", "other"]
    with subprocess.Popen(command) as child:
        arguments = Path(f"/proc/{child.pid}/cmdline")
        deadline = time.monotonic() + 60
        while b"secret" not in arguments.read_bytes():
            assert time.monotonic() < deadline
        assert hide_argument(child.pid, "secret")
        assert arguments.read_bytes().endswith(b"\0--key=name=******\0other\0")
        child.kill()


def test_a_process_that_has_ended_is_no_error() -> None:
    assert not hide_argument(2**22 + 1, "secret")  # a process id that no process has
