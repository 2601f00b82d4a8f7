"""What READMEs and docs show exists: commands with their options, make targets, the simplest client, linked files."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from codetr.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS_README = (ROOT / "perf/results/README.md").read_text(encoding="utf-8")
CHECKPOINTS = (ROOT / "docs/your-checkpoint.md").read_text(encoding="utf-8")
CLIENT_README = (ROOT / "clients/README.md").read_text(encoding="utf-8")
SHELL_BLOCKS = re.findall(r"```sh\n(.*?)```", README + RESULTS_README + CHECKPOINTS, re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for block in SHELL_BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def commands(program):
    return [line for line in LINES if line.startswith(program + " ")]


@pytest.mark.parametrize("line", commands("codetr"))
def test_command_and_options_exist(line):
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {"--help"} | {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
    for word in words[: words.index("--")] if "--" in words else words:
        if word.startswith("-"):
            assert word.split("=")[0] in known


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert commands("make")
    for line in commands("make"):
        assert shlex.split(line)[1] in targets


def test_simplest_client_is_the_tested_one():
    shown = README.split("<!-- examples/simplest.py -->\n```python\n")[1].split("```")[0]
    source = (ROOT / "examples/simplest.py").read_text(encoding="utf-8")
    assert source.split('"""\n', 1)[1].strip() == shown.strip()


def imports(text):
    """(module, name) of every `from module import name` in the Python that `text` shows."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    return sorted({(node.module, alias.name) for node in nodes for alias in node.names})


@pytest.mark.parametrize(("module", "name"), imports(README + CLIENT_README))
def test_names_that_the_python_imports_are_there(module, name):
    assert getattr(importlib.import_module(module), name)


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
