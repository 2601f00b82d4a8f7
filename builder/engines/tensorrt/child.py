"""The interpreter that has TensorRT, which may be another than this one, and how it is asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.engines import EngineError

CHILD = Path(__file__).with_name("plan_child.py")
_LAST_LINES = 3  # of a log, in the error of a child that ended without an answer


@dataclass(frozen=True)
class TensorRTPython:
    """The interpreter that has TensorRT, with what its libraries need in the environment."""

    executable: Path = Path(sys.executable)
    environment: Mapping[str, str] | None = None  # None: this process's

    def ask(self, request: Mapping[str, Any], log: Path) -> dict[str, Any]:
        """Let a child answer; its output, TensorRT's log among it, goes to the file `log`.

        Raises:
            EngineError: it refused, failed or ended without an answer; one line, which names the log.
        """
        with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as output:
            answer = Path(folder, "answer.json")
            question = Path(folder, "request.json")
            question.write_text(json.dumps({**request, "answer": str(answer)}), encoding="utf-8")
            command = [str(self.executable), str(CHILD), str(question)]
            try:
                code = subprocess.run(
                    command, stdout=output, stderr=output, env=self.environment, check=False
                ).returncode
            except OSError as error:
                raise EngineError(
                    f"cannot run {self.executable}: {error.strerror}; name a Python with tensorrt"
                ) from error
            if not answer.is_file():
                raise EngineError(f"{_ending(code)}, having said: {_last_lines(log)}; log: {log}")
            result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in result:
            raise EngineError(f"{result['error']}; log: {log}")
        return result


def _ending(code: int) -> str:
    if code < 0:
        return f"TensorRT ended its process with {signal.Signals(-code).name}"
    return f"TensorRT's process ended with status {code}"


def _last_lines(log: Path) -> str:
    """Return the last lines of a log that are no warnings, for TensorRT warns a lot and then aborts without a word."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("WARNING:")]
    return " / ".join(said[-_LAST_LINES:]) or ("nothing but warnings" if lines else "nothing")
