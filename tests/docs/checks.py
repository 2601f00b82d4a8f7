"""What can be said of a block without running it; each check raises AssertionError with what is wrong."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from codetr.cli import app
from tests.docs.pages import ROOT, Block

# Programs that are not of this project or are built from it, and of which only the files they are given are checked.
FOREIGN = {
    "build/cpp/codetr_detect",
    "build/runner/codetr_run",
    "cat", "cd", "cmake", "ctest", "curl", "docker", "echo", "export", "git", "jq", "kill", "kubectl", "mkdir", "nsys",
    "perl", "pip", "pre-commit", "printf", "prometheus", "promtool", "source", "stat", "sudo", "tritonserver",
    "trtexec",
}  # fmt: skip  # a set of words
# Options of ours whose value is written, and so need not exist.
_WRITTEN = {"--output", "--repository", "-r", "--report", "--timing-cache", "--builds", "--baseline"}
_SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")", "{", "}"}


def check(block: Block) -> None:
    """Check a block by its language."""
    assert block.language in CHECKS, f"{block.place}: language {block.language!r}; expected {', '.join(CHECKS)}"
    CHECKS[block.language](block)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every simple command of a shell block, without redirections and assignments."""
    text = re.sub(r"<<(\w+)\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)  # documents within the script
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _SEPARATORS:
                words.append(word)
                continue
            while words and re.match(r"[A-Za-z_]+=|[<>]", words[0]):
                words = words[2 if words[0][0] in "<>" else 1 :]
            if words:
                yield words
            words = []


def _shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}: {done.stderr}"
    for words in commands(block.text):
        _command(words)


def _command(words: list[str]) -> None:
    """Check one command: of ours its options, of others that they are known to these tests; and the files named."""
    program = words[0]
    if program == "codetr":
        check_codetr(words[1:])
    elif program == "make":
        check_make(words[1:])
    elif program == "docker":
        check_docker(words[1:])
    elif program in ("python", "python3"):
        check_python(words[1:])
    else:
        known = program in FOREIGN or (ROOT / program).is_file()
        assert known, f"no program {program!r} known to these tests"
    check_files(words)


def check_codetr(words: list[str]) -> None:
    """Check that a `codetr` command and its options exist."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}; expected {', '.join(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    known = {"--help"} | {name for each in command.params for name in each.opts + each.secondary_opts}
    ours = words[: words.index("--")] if "--" in words else words
    unknown = [word for word in ours if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]
    assert not unknown, f"no option {', '.join(unknown)}; expected some of {', '.join(sorted(known))}"


def check_make(words: list[str]) -> None:
    """Check that targets exist, and that make itself would start on them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    variables = re.findall(r"^([A-Z_]+) \??:?=", makefile, re.MULTILINE)
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert name in (variables if is_variable else targets), f"make {word}: the Makefile has no {name}"


def check_docker(words: list[str]) -> None:
    """Check the file of `docker build`, and what `docker run` gives to the image's entry point."""
    if words[0] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file()
    elif words[0] == "run" and "codetr" in words:
        given = words[words.index("codetr") + 1 :]
        check_codetr(given or ["serve"])


def check_python(words: list[str]) -> None:
    """Check that a module or a script exists."""
    if words[:1] == ["-m"]:
        package, *_ = words[1].split(".")
        # setuptools has a hook for pip, which importlib.util.find_spec would ask: it warns of an imported distutils
        find_spec = importlib.machinery.PathFinder.find_spec if package == "pip" else importlib.util.find_spec
        assert find_spec(words[1]) is not None, f"no module {words[1]}"
    elif words and words[0] == "-c":
        ast.parse(words[1])


def check_files(words: list[str]) -> None:
    """Check that words which begin like a path of this project name something that is there, unless it is written.

    Folders that git ignores, such as `runs`, are not of this project even where an earlier command has made them.
    """
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    ours = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - ignored
    for before, word in itertools.pairwise(words):
        path = Path(word.split("::")[0])
        if before in _WRITTEN or "/" not in word or path.parts[0] not in ours:
            continue
        assert list(ROOT.glob(str(path))), f"{' '.join(words[:2])}: no {word}"


def _python(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), f"{block.place}: {ast.unparse(node)}"


def _pbtxt(block: Block) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text_format.Parse(block.text, model_config_pb2.ModelConfig())


def _nothing(block: Block) -> None:
    """Diagrams and output."""


def _cpp(block: Block) -> None:
    """Compile against the client's header; nothing is linked."""
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Werror", f"-I{ROOT / 'clients/cpp/include'}"]
    done = subprocess.run(["c++", *options, "-xc++", "-"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}: {done.stderr}"


CHECKS: dict[str, Callable[[Block], None]] = {
    "sh": _shell,
    "python": _python,
    "cpp": _cpp,
    "pbtxt": _pbtxt,
    "json": lambda block: json.loads(block.text),
    "text": _nothing,
}
