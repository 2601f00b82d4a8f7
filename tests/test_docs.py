"""The pages for people: their code runs, their commands, files and links exist, their tables and lists are complete."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import codetr_client
from builder.engines.kinds import KINDS
from builder.families import FAMILIES
from builder.family import DetectorConfig, Family
from serving import metrics, telemetry
from serving.launch import running_server
from serving.manifest import FILES, read_manifest
from serving.postprocess import PostprocessSettings
from serving.preprocess import PreprocessSettings
from serving.triton import OnnxSettings, PlanSettings, TorchSettings
from serving.view import EnsembleSettings
from tests.docs import checks, command
from tests.docs.pages import OTHER_PAGES, PAGES, ROOT, Block, blocks, blocks_of, read
from tests.docs.room import Room, remember
from tests.markers import missing
from tests.tiny_engine import write_tiny_repository

# Why a block may be left out of the run; it is checked without running then.
REASONS = {
    "needs a GPU",
    "needs a Kubernetes cluster",
    "needs COCO val2017",
    "needs Docker",
    "needs published weights",
    "needs Prometheus",
    "needs TensorRT",
    "needs a server of its own",
    "needs a server with TLS",
    "needs two GPUs",
    "needs several servers and a name for them",
    "needs a config and a checkpoint of yours",
    "needs certificates of yours",
    "needs a video or a camera of yours",
    "serves until Ctrl-C",
    "installs packages of the system",
    "sets up an environment",
    "takes minutes",
}
CODE = ("sh", "python")


def is_run(block: Block) -> bool:
    """Whether a block is run."""
    return block.language in CODE and block.reason is None and block.file is None


ALL = [block for page in PAGES for block in blocks(page)]
OTHERS = [block for page in OTHER_PAGES for block in blocks(page)]


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what the pages build is kept for the next page."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def served(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A room with a server on what the README builds; other pages that build the same get a copy."""
    room = Room(tmp_path_factory.mktemp("served"), state)
    room.furnish()
    build = next(block for block in blocks("README.md") if is_run(block) and "codetr build" in block.text)
    (words,) = [words for words in checks.commands(build.text) if words[:2] == ["codetr", "build"]]
    room.run(Block(build.page, build.line, "sh", " ".join(words) + "\n", ""))
    with running_server(room.folder / words[words.index("--repository") + 1]) as server:
        remember(state, server)
        yield Room(room.folder, state, server)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks(page)))])
def test_the_blocks_of_a_page_run_one_after_the_other(page: str, served: Room, tmp_path: Path) -> None:
    room = Room(tmp_path, served.state, served.server)
    room.furnish()
    for block in filter(is_run, blocks(page)):
        room.run(block)


@pytest.mark.parametrize("block", [block for block in ALL + OTHERS if not is_run(block)], ids=lambda block: block.place)
def test_a_block_that_is_not_run_is_right_as_far_as_can_be_seen(block: Block) -> None:
    checks.check(block)


@pytest.mark.parametrize("block", [block for block in ALL + OTHERS if is_run(block)], ids=lambda block: block.place)
def test_commands_imports_and_files_of_a_block_exist(block: Block) -> None:
    checks.check(block)


def test_every_mark_has_a_known_reason(capsys: pytest.CaptureFixture[str]) -> None:
    marks = [(block.place, block.reason) for block in ALL if block.reason is not None]
    for place, reason in marks:
        print(f"{place} is not run: {reason}")
    assert marks
    assert sorted({reason for _, reason in marks} - REASONS) == []
    assert sorted(REASONS - {reason for _, reason in marks}) == []


def test_every_note_before_a_block_means_something() -> None:
    assert [block.place for block in ALL if block.note and block.reason is None and block.file is None] == []
    assert [block.place for block in ALL if block.reason is not None and block.language not in CODE] == []


@pytest.mark.parametrize("block", [block for block in ALL if block.file], ids=lambda block: block.place)
def test_a_file_that_is_shown_is_the_file(block: Block) -> None:
    source = (ROOT / str(block.file)).read_text(encoding="utf-8")
    assert source.split('"""\n', 1)[-1].strip() == block.text.strip()


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES, "CHANGELOG.md"])
def test_linked_files_and_headings_exist(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL))
    for link in links:
        if ":" in link:
            continue  # of the web
        path, _, heading = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            assert heading in headings(target.read_text(encoding="utf-8")), link


def headings(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", read("README.md")))
    assert sorted({page for page in PAGES if page.startswith("docs/")} - linked) == []


def test_the_readme_names_every_family() -> None:
    letters = re.sub(r"[^a-z0-9]", "", read("README.md").lower())
    assert [name for name in FAMILIES if name.replace("_", "") not in letters] == []


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 120


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        pytest.param("sh", "codetr bild x", "no command 'bild'", id="command"),
        pytest.param("sh", "codetr build x --wights y", "no option --wights", id="option"),
        pytest.param("sh", "source a && codetr serve --prot 1", "no option --prot", id="second command of a line"),
        pytest.param("sh", "docker run --rm codetr detct a.jpg", "no command 'detct'", id="command in the image"),
        pytest.param("sh", "docker run codetr serve -v --hots x", "no option --hots", id="option in the image"),
        pytest.param("sh", "make tset", "the Makefile has no tset", id="target"),
        pytest.param("sh", "python -m pytst", "no module pytst", id="module"),
        pytest.param("sh", "codetr build x --weights demo/weight/y", "no demo/weight/y", id="file"),
        pytest.param("sh", "kodetr build", "no program 'kodetr'", id="program"),
        pytest.param("sh", "if true; then", "unexpected end of file", id="shell"),
        pytest.param("python", "from codetr_client import Nothing", "import Nothing", id="import"),
        pytest.param("cpp", "#include <codetr/clients.hpp>", "clients.hpp", id="C++"),
        pytest.param("bash", "true", "language 'bash'", id="language"),
    ],
)
def test_what_does_not_exist_is_found(language: str, text: str, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        checks.check(Block("page", 1, language, text + "\n", ""))


def test_what_a_command_writes_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runs", "demo"):
        (tmp_path / name).mkdir()
    (tmp_path / ".gitignore").write_text("runs/\n", encoding="utf-8")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    checks.check_files(["codetr", "detect", "runs/shapes"])
    with pytest.raises(AssertionError, match="no demo/shapes"):
        checks.check_files(["codetr", "detect", "demo/shapes"])


def test_wrong_data_are_found() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        checks.check(Block("page", 1, "json", "{", ""))
    with pytest.raises(Exception, match="no field named"):
        checks.check(Block("page", 1, "pbtxt", "nam: 'x'", ""))


def test_a_block_knows_its_place_and_mark() -> None:
    text = "# A\n\n<!-- not run: needs Docker -->\n```sh\na\n```\n\n"
    text += "```text\nb\n```\n<!-- file: x.py -->\n```python\nc\n```\n"
    assert [(b.line, b.language, b.text, b.reason, b.file) for b in blocks_of(text, "p")] == [
        (4, "sh", "a\n", "needs Docker", None),
        (8, "text", "b\n", None, None),
        (12, "python", "c\n", None, "x.py"),
    ]


def test_a_block_that_fails_is_a_failure_with_its_place(tmp_path: Path) -> None:
    room = Room(tmp_path, tmp_path)
    with pytest.raises(AssertionError, match=r"page:7 ended with 1:\n(.|\n)*no such thing"):
        room.run(Block("page", 7, "sh", "echo no such thing\nfalse\ntrue\n", ""))
    with pytest.raises(AssertionError, match="NameError"):
        room.run(Block("page", 7, "python", "undefined\n", ""))


def test_serving_another_repository_than_the_readmes_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(command.STATE, str(tmp_path))
    words = ["serve", "--repository", str(write_tiny_repository(tmp_path / "tiny"))]
    files = read_manifest(tmp_path / "tiny")[FILES]
    (tmp_path / command.SERVED).write_text(json.dumps({"files": files}))
    command.main(words)
    (tmp_path / command.SERVED).write_text(json.dumps({"files": dict.fromkeys(files, "other")}))
    with pytest.raises(SystemExit, match="is not what the README builds"):
        command.main(words)


def test_a_second_build_is_a_copy_unless_its_arguments_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[str]] = []

    def write(words: list[str]) -> None:
        built.append(words)
        folder = Path(words[words.index("--repository") + 1])
        folder.mkdir()
        (folder / "engine").write_text(words[1])

    monkeypatch.setenv(command.STATE, str(tmp_path))
    monkeypatch.setattr(command, "run", write)
    for repository, variant in (("a", "x"), ("b", "x"), ("c", "y")):
        command.main(["build", variant, "--repository", str(tmp_path / repository)])
    assert [words[1] for words in built] == ["x", "y"]
    assert [(tmp_path / name / "engine").read_text() for name in "abc"] == ["x", "x", "y"]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table's rows, without the headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [
        row for row, below in zip(cells, [*cells[1:], [""]], strict=True) if not is_rule(row) and not is_rule(below)
    ]


def is_rule(cells: list[str]) -> bool:
    """Whether this is the line between a table's heading and its rows."""
    return bool(cells[0]) and set("".join(cells)) <= set("-: |")


def section(page: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of any level."""
    return re.split(r"^#+ ", read(page).split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def shown(value: object) -> str:
    """Return a default as config.pbtxt and the page have it."""
    return (
        ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )


@pytest.mark.parametrize(
    ("heading", "settings"),
    [
        ("NAME", EnsembleSettings),
        ("NAME_preprocess", PreprocessSettings),
        ("NAME_detector, `onnx` engine", OnnxSettings),
        ("NAME_detector, `torch` engine", TorchSettings),
        ("NAME_detector, `tensorrt` engine run by the Python backend", PlanSettings),
        ("NAME_postprocess", PostprocessSettings),
    ],
)
def test_settings_and_defaults_are_those_of_the_code(heading: str, settings: Any) -> None:
    table = {row[0].strip("`"): row[1] for row in rows(section("docs/settings.md", heading))}
    assert table == {field.name: shown(getattr(settings(), field.name)) for field in fields(settings)}


def test_metrics_are_those_of_the_code() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows(section("docs/observability.md", "Metrics"))}
    families = {value.name: value for value in vars(metrics).values() if isinstance(value, metrics.Family)}
    assert set(table) == set(families)
    for name, family in families.items():
        kind, labels, meaning = table[name]
        assert kind == ("histogram" if family.buckets else "counter"), name
        assert re.findall(r"`(\w+)`", labels) == list(family.labels), name
        known = [all_of[family] for all_of in telemetry.OF_STEPS if family in all_of]
        values = {labels[-1] for of_step in known for labels in of_step if labels}
        assert values <= set(re.findall(r"`(\w+)`", meaning)), name


# Variables of ours wherever they stand, and foreign ones that our code reads by name.
_OWN_VARIABLE = re.compile(r"[\"'${(]+(CODETR_[A-Z_]+)\b")
_READ_VARIABLE = re.compile(r"(?:environ|environment)(?:\.get\(|\[)\"([A-Z_]+)\"")


def test_environment_variables_are_those_of_the_code() -> None:
    folders = ("builder", "serving", "clients", "codetr", "perf", "demo", "docker", "plugin_src")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".sh", ".cpp")
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in files if "test" not in path.parts)
    named = set(_OWN_VARIABLE.findall(text)) | set(_READ_VARIABLE.findall(text))
    table = {row[0].strip("`") for row in rows(section("docs/settings.md", "Environment variables"))}
    assert table == named


def templates() -> list[str]:
    """Return every string of our code, with … for what an f-string puts in."""
    found: list[str] = []
    for folder in ("builder", "serving", "clients", "codetr", "perf", "demo", "model_repository"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def messages() -> list[str]:
    """Return the messages that the page on trouble quotes as ours."""
    ours = read("docs/troubleshooting.md").split("## Of Triton itself")[0]
    quotes = [re.findall(r"`` (.+?) ``|`([^`]+)`", row[0]) for row in rows(ours)]
    return [double or single for each in quotes for double, single in each]


def test_quoted_messages_are_in_the_code() -> None:
    known = templates()
    assert len(messages()) > 30
    assert [message for message in messages() if not any(message in template for template in known)] == []


def test_exceptions_of_the_client_are_all_explained() -> None:
    explained = {row[1].strip("`") for row in rows(section("docs/troubleshooting.md", "From the client"))}
    assert all(issubclass(getattr(codetr_client, name), codetr_client.CodetrError) for name in explained)
    answers = {name for name in codetr_client.__all__ if name.startswith(("Server", "Model", "Request"))}
    assert answers - explained == {"ServerFaultError"}  # its message is whatever the server says


def tables() -> Any:
    """Return the module that writes the pages' tables."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- table: " in read(page)])
def test_tables_are_those_of_the_results(page: str) -> None:
    assert tables().filled(read(page)) == read(page), "run: python docs/tables.py"


def test_every_table_stands_in_a_page() -> None:
    named = {name for page in PAGES for name in re.findall(r"<!-- table: (.*?) -->", read(page))}
    assert named == set(tables().TABLES)


def test_a_changed_figure_is_found() -> None:
    page = read("docs/performance.md")
    figure = re.search(r"\| (\d+\.\d) ms \|", page)
    assert figure is not None
    assert tables().filled(page.replace(figure[1], "0.1", 1)) == page


def test_engines_of_the_pages_are_those_of_the_table() -> None:
    for page in ("docs/building.md", "docs/architecture.md"):
        assert {f"`{name}`" for name in KINDS} <= set(re.findall(r"`\w+`", read(page))), page


def test_names_that_a_family_gives_are_all_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", read("docs/adding-a-model.md")))
    assert {field.name for field in fields(Family)} - explained == set()
    assert "uses_operator" in explained
    assert hasattr(DetectorConfig, "uses_operator")


def read_yaml(path: Path) -> Any:
    """Return a YAML file's content, by the PyYAML that `make test` installs beside mmengine."""
    folder = ROOT / "build/mmengine"
    if not (folder / "yaml").is_dir():
        reason = f"no PyYAML in {folder}; `make test` installs it"
        missing(reason)
    code = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=path.read_text(encoding="utf-8"),
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return json.loads(done.stdout)


def test_the_workflow_runs_the_checks_on_every_python() -> None:
    jobs = read_yaml(ROOT / ".github/workflows/checks.yml")["jobs"]
    pythons = {name: job["strategy"]["matrix"]["python"] for name, job in jobs.items()}
    assert pythons == {"application": ["3.10", "3.11", "3.12"], "client": ["3.10", "3.11", "3.12", "3.13"]}
    steps = {name: [step for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert any(".ci/run" in step["run"] for step in steps["application"])
    for step in (step for each in steps.values() for step in each):
        checks.check(
            Block(".github/workflows/checks.yml", 1, "sh", step["run"].replace("${{ matrix.python }}", "3.11"), "")
        )


def test_hooks_are_what_lint_runs() -> None:
    (repository,) = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # the versions of .venv, not others
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlint:")[1].split("\n\n")[0]
    programs = re.findall(r"\$\(BIN\)/(.*)", lint)
    assert "lint-kernels" in lint.splitlines()[0]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    assert hooks == [*programs, "make lint-kernels"]


def test_what_is_planned_is_not_there_and_the_rest_of_the_architecture_is() -> None:
    page = read("docs/architecture.md")
    planned = set(re.findall(r"`([a-z_/]+)`", page.split("## Planned")[1]))
    assert [name for name in planned if (ROOT / name).exists()] == []
    drawn = re.findall(r"^(\w+)/? ", page.split("```text\ndetector.py")[1].split("```")[0], re.MULTILINE)
    named = re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE) + [f"builder/{name}" for name in drawn]
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists() and name not in planned] == []
