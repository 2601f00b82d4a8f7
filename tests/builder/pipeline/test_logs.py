import logging
import subprocess
import sys

import pytest

from builder.engines import EngineError
from builder.pipeline.logs import compiler_logs, keep_text
from serving.errors import CodetrError


def speak():
    """What compilers do: print, log, and let a program write to the file descriptor."""
    print("printed")
    logging.getLogger("onnxscript").info("logged")
    subprocess.run([sys.executable, "-c", "import os; os.write(2, b'written')"], check=True)


def fail(verbose, log):
    with compiler_logs(verbose, log):
        speak()
        raise EngineError("no converter")


def test_what_compilers_write_is_kept_from_the_terminal(tmp_path, capfd):
    with compiler_logs(False, tmp_path / "build.log"):
        speak()
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("onnxscript").handlers == []


def test_a_failure_names_the_log(tmp_path, capfd):
    log = tmp_path / "build.log"
    with pytest.raises(EngineError, match=r"no converter; the compilers' log is .*build\.log, and `verbose` shows it"):
        fail(False, log)
    assert capfd.readouterr() == ("", "")
    text = log.read_text()
    for line in ("printed", "logged", "written", "EngineError: no converter"):
        assert line in text


def test_a_log_that_cannot_lie_there_is_kept_elsewhere(tmp_path):
    with pytest.raises(EngineError) as caught, compiler_logs(False, tmp_path / "nowhere" / "build.log"):
        raise EngineError("no converter")
    kept = str(caught.value).split("log is ")[1].split(",")[0]
    with open(kept) as file:
        assert "no converter" in file.read()


def test_verbose_shows_everything_and_keeps_nothing(tmp_path, capfd):
    with pytest.raises(EngineError, match=r"^no converter$"):
        fail(True, tmp_path / "build.log")
    shown = "".join(capfd.readouterr())
    for word in ("printed", "logged", "written"):
        assert word in shown
    assert list(tmp_path.iterdir()) == []


def test_the_log_is_kept_whatever_was_raised(tmp_path):
    log = tmp_path / "build.log"
    expected = pytest.raises(CodetrError, match=r"^KeyError: 'an operator'; the compilers' log is .*build\.log")
    with expected, compiler_logs(False, log):
        raise KeyError("an operator")
    assert "Traceback" in log.read_text()


def test_ctrl_c_gives_the_terminal_back(tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt), compiler_logs(False, tmp_path / "build.log"):
        raise KeyboardInterrupt
    print("after")
    assert capfd.readouterr().out == "after\n"
    assert list(tmp_path.iterdir()) == []


def test_a_log_of_an_earlier_build_is_replaced_and_nothing_else(tmp_path):
    log = tmp_path / "r-build.log"
    assert [keep_text(text, log) for text in ("first", "second")] == [log, log]
    assert log.read_text() == "log of codetr build\nsecond"
    log.write_text("notes of somebody else")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "r-build-2.log").symlink_to("precious")
    (tmp_path / "r-build-3.log").mkdir()
    for _ in range(2):
        assert keep_text("third", log) == tmp_path / "r-build-4.log"
    assert log.read_text() == "notes of somebody else"
    assert (tmp_path / "precious").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 5
