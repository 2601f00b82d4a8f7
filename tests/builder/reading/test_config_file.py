"""Config files: what mmengine makes of them, what is refused and how, and that nothing is executed or hangs."""

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from builder.reading.config_file import NOTES, ConfigFileError, read_config
from builder.reading.config_values import MAX_VALUES

DATA = Path(__file__).parents[2] / "data"
RECORDED = json.loads((DATA / "config_merging.json").read_text(encoding="utf-8"))
PUBLIC = sorted((DATA / "configs").glob("*.json"))
WHOLE = "model = dict(type='CoDETR', backbone=dict(type='ResNet'), neck=dict(type='ChannelMapper'))\n"


@pytest.fixture
def write(tmp_path):
    """Writes files by their names; returns the path of the first."""

    def write(**files):
        for stem, text in files.items():
            (tmp_path / f"{stem}.py").write_text(text, encoding="utf-8")
        return tmp_path / f"{next(iter(files))}.py"

    return write


def as_json(config):
    return json.loads(json.dumps(config))


@pytest.mark.parametrize("case", RECORDED)
def test_it_reads_what_mmengine_reads(tmp_path, case):
    recorded = RECORDED[case]
    for name, text in recorded["files"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    main = tmp_path / next(name for name in recorded["files"] if name.startswith("main"))
    if "error" in recorded:
        with pytest.raises(ConfigFileError):
            read_config(main)
    else:
        assert as_json(read_config(main)) == recorded["result"]


def test_a_tuple_stays_one(write):
    assert read_config(write(a="x = (1, 2)"))["x"] == (1, 2)


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: path.stem)
def test_a_dump_of_a_public_config(tmp_path, path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record["source"]) == {"repository", "path", "commit"}
    (tmp_path / "dump.json").write_text(json.dumps(record["config"]), encoding="utf-8")
    assert read_config(tmp_path / "dump.json") == record["config"]


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: path.stem)
def test_a_python_dump_of_a_public_config(write, path):
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    text = "".join(f"{name} = {value!r}\n" for name, value in config.items())
    assert read_config(write(dump=text)) == config


def test_a_byte_order_mark_and_an_odd_escape(tmp_path):
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbfx = '\\d'\r\n")
    assert read_config(tmp_path / "a.py") == {"x": "\\d"}


def test_a_deprecation_is_no_setting(write):
    assert read_config(write(a="_deprecation_ = dict(expected='b.py')\nx = 1")) == {"x": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("import os", "is an import", id="import"),
        pytest.param("from mmdet.models import CoDETR", "is an import", id="lazy type"),
        pytest.param("with read_base():\n    from .x import *", "is a with block, as mmengine's pure", id="read_base"),
        pytest.param("x = open('/etc/passwd')", "is a call other than dict, list, tuple and range", id="call"),
        pytest.param("x = base.copy()", "is a call other than", id="method"),
        pytest.param("base.update(x=1)", "is a construct (Expr)", id="a call alone"),
        pytest.param("x = base.__class__", "is an attribute of anything but _base_", id="attribute"),
        pytest.param("x = [i for i in base]", "is a comprehension", id="list comprehension"),
        pytest.param("x = {i: i for i in base}", "is a comprehension", id="dict comprehension"),
        pytest.param("x = lambda: 1", "is a function", id="lambda"),
        pytest.param("def f():\n    pass", "is a function", id="def"),
        pytest.param("class A:\n    pass", "is a class", id="class"),
        pytest.param("for i in base:\n    pass", "is a loop", id="for"),
        pytest.param("while True:\n    pass", "is a loop", id="while"),
        pytest.param("if base:\n    x = 1", "is a condition", id="if"),
        pytest.param("x = 1 if base else 2", "is a condition", id="conditional expression"),
        pytest.param("x = base and 1", "is a condition", id="and"),
        pytest.param("number += 1", "is a change of an earlier value", id="augmented assignment"),
        pytest.param("del base", "is a change of an earlier value", id="del"),
        pytest.param("base['x'] = 1", "is a construct (Assign)", id="assignment to an item"),
        pytest.param("x, y = 1, 2", "is a construct (Assign)", id="assignment to two"),
        pytest.param("x: int = 1", "is a construct (AnnAssign)", id="annotation"),
        pytest.param("x = (y := 1)", "is a construct (NamedExpr)", id="walrus"),
        pytest.param("x = items[0:1]", "is a construct (Slice)", id="slice"),
        pytest.param("x = unbound", "uses 'unbound', which no line before it binds", id="unbound"),
        pytest.param("x = print", "uses 'print', which no line before it binds", id="builtin"),
        pytest.param("x = base['none']", "has no 'none' in base", id="no such key"),
        pytest.param("x = items[3]", "has no 3 in items", id="no such item"),
        pytest.param("x = number[0]", "has no 0 in number", id="item of a number"),
        pytest.param("x = _base_.none", "uses _base_.none, which the bases do not have", id="not in the base"),
        pytest.param("x = b'bytes'", "holds b'bytes', which no config has", id="bytes"),
        pytest.param("x = 1j", "holds 1j, which no config has", id="complex"),
        pytest.param("x = '{{$HOME:x}}'", "asks for an environment variable", id="environment"),
        pytest.param("x = 1 / 0", "cannot be calculated: division by zero", id="division by zero"),
        pytest.param("x = (-1) ** 0.5", "is no real number", id="root of a negative"),
        pytest.param("x = 1 << 3", "is an operation (LShift) that no config needs", id="shift"),
        pytest.param("x = items + number", "is Add of list and int, which no config needs", id="list plus number"),
        pytest.param("x = items * items", "is a product of list and list", id="list times list"),
        pytest.param("x = -items", "is an operation on list that no config needs", id="negative list"),
        pytest.param("x = ~1", "is an operation on int that no config needs", id="bitwise not"),
        pytest.param("x = 1 < 'a'", "cannot be compared", id="number and text"),
        pytest.param("x = 1 is 1", "is a construct (Compare)", id="is"),
        pytest.param("x = '%s' % items", "formats with more than %s and %d", id="format of a list"),
        pytest.param("x = '%5d' % 1", "formats with more than %s and %d", id="format with a width"),
        pytest.param("x = '%d' % 'a'", "cannot be formatted", id="format of text as number"),
        pytest.param("x = f'{number:5}'", "formats with more than a plain {name}", id="f-string with a width"),
        pytest.param("x = f'{items}'", "formats a list; expected", id="f-string of a list"),
        pytest.param("x = dict(a=1, **base)", "has a twice", id="a key twice"),
        pytest.param("x = dict(**base, a=1)", "has a twice", id="a key twice, spread first"),
        pytest.param("x = dict(**items)", "spreads what is no dict", id="spread list"),
        pytest.param("x = [*number]", "spreads what is no list", id="spread number"),
        pytest.param("x = {(1, 2): 3}", "has the key (1, 2); expected a string", id="tuple as a key"),
        pytest.param("x = {items}", "is no set", id="list in a set"),
        pytest.param("x = list('ab')", "is a list(...) of what is no list", id="list of text"),
        pytest.param("x = range(1.5)", "is a range(...) of what is no list", id="range of a float"),
        pytest.param("dict = 3\nx = dict(a=1)", "is a call other than", id="dict bound to something else"),
    ],
)
def test_a_construct_that_is_refused(write, line, expected):
    path = write(main="base = dict(a=1)\nitems = [1, 2]\nnumber = 3\n" + line)
    with pytest.raises(ConfigFileError) as raised:
        read_config(path)
    message = str(raised.value)
    shown = line.split("\n")[1 if line.startswith("dict =") else 0]
    assert message.startswith(f"{path}, line {5 if line.startswith('dict =') else 4}: `{shown}` ")
    assert expected in message
    assert "Config.fromfile('main.py', import_custom_modules=False).dump('main.json')" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x = [0] * 10**9", id="repeated list"),
        pytest.param("x = [] * 10**30", id="repeated nothing"),
        pytest.param("x = 'a' * 10**10", id="repeated text"),
        pytest.param("x = 2 ** 10**9", id="power"),
        pytest.param("x = 10 ** 1000 * 10 ** 1000", id="powers of powers"),
        pytest.param("x = 9.0 ** 999", id="float power"),
        pytest.param("x = list(range(10**9))", id="range"),
        pytest.param("x = list(range(0, -10**9, -1))", id="range downwards"),
        pytest.param("x = [1]\n" + "x = x + x\n" * 40, id="doubled list"),
        pytest.param("x = 'a'\n" + "x = x + x\n" * 40, id="doubled text"),
        pytest.param("x = [1]\n" + "x = [x, x]\n" * 40, id="list of itself twice"),
        pytest.param("x = 'aaaaaaaaaa'\n" + "x = '%s%s' % (x, x)\n" * 40, id="doubled by a format"),
        pytest.param("x = 'aaaaaaaaaa'\n" + "x = f'{x}{x}'\n" * 40, id="doubled by an f-string"),
        pytest.param("x = [1]\n" + "x = [x]\n" * 2000, id="deep value"),
        pytest.param("x = " + "[" * 90 + "]" * 90 + "\ny = [[[[[[[[[[[[x]]]]]]]]]]]]", id="deep in two steps"),
        pytest.param("x = " + "-" * 20000 + "1", id="deep expression"),
        pytest.param("x = " + "1 + " * 20000 + "1", id="long sum"),
        pytest.param("x = " + "(" * 500 + ")" * 500, id="deep brackets"),
        pytest.param("x = " + "9" * 5000, id="long number"),
        pytest.param("x = '%d' % (9.0 * 10.0 ** 308)", id="number for a format"),
    ],
)
def test_a_bomb_is_refused_soon(write, text):
    started = time.process_time()
    with pytest.raises(ConfigFileError) as raised:
        read_config(write(main=text))
    assert time.process_time() - started < 20
    assert len(str(raised.value)) < 1000


def test_bases_that_include_each_other_are_refused(write, tmp_path):
    write(main="_base_ = 'other.py'", other="_base_ = ['main.py']")
    with pytest.raises(ConfigFileError, match=r"main\.py is among its own bases"):
        read_config(tmp_path / "main.py")


def test_bases_without_end_are_refused(write, tmp_path):
    write(**{f"f{level}": f"_base_ = ['f{level + 1}.py', 'f{level + 1}.py']" for level in range(30)}, f30="")
    with pytest.raises(ConfigFileError, match="more than 100 files are included"):
        read_config(tmp_path / "f0.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("_base_ = 'absent.py'", "absent.py, which is in _base_ of main.py", id="no file"),
        pytest.param("_base_ = 5", "_base_ holds 5; expected the path of a file", id="number"),
        pytest.param("_base_ = ['a\\0.py']", "_base_ holds 'a\\x00.py'; expected", id="no path"),
        pytest.param("_base_ = name", "uses 'name', which no line before it binds", id="name"),
        pytest.param("_base_ = 'a.yaml'", "a.yaml is neither a .py nor a .json file", id="yaml"),
        pytest.param("_base_ = ['one.py', 'two.py']", "x in more than one file of _base_; keep one", id="key twice"),
        pytest.param("_base_ = 'one.py'\nx = dict(y=1)", "x is a dict here and int in its base; add", id="dict"),
        pytest.param("_base_ = 'deep.py'\nx = dict(y=dict())", "x.y is a dict here and list in its", id="deep dict"),
        pytest.param("_base_ = 'bad.py'", "bad.py, line 1: `y = f()` is a call", id="fault in a base"),
    ],
)
def test_a_base_that_cannot_be(write, text, expected):
    path = write(main=text, one="x = 1", two="x = 2", deep="x = dict(y=[1])", bad="y = f()")
    with pytest.raises(ConfigFileError) as raised:
        read_config(path)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param("a.py", None, "no config file at", id="no file"),
        pytest.param("a.yaml", b"x: 1", "is neither a .py nor a .json file; where mmengine is", id="yaml"),
        pytest.param("a.py", b"x = '\xff'", "is not UTF-8 text (byte 5); save it as UTF-8", id="other encoding"),
        pytest.param("a.py", b"x = 1\ny = (", "line 2 is not Python: '(' was never closed", id="syntax"),
        pytest.param("a.py", b"x = 1\0", "is not UTF-8 text (a null character at 5)", id="null byte"),
        pytest.param("a.json", b"{'x': 1}", "is no JSON dump of a config: Expecting property name", id="not JSON"),
        pytest.param("a.json", b"[1]", "holds a list; expected a dict of settings", id="JSON list"),
        pytest.param("a.json", b"[" * 100000, "nests too deep to be read", id="deep JSON"),
        pytest.param("a.json", b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}", "nests deeper than 100", id="deeper JSON"),
    ],
)
def test_a_file_that_is_none(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigFileError) as raised:
        read_config(tmp_path / name)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_and_a_large_file_are_refused(tmp_path):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigFileError, match="no config file at"):
        read_config(tmp_path / "folder.py")
    with (tmp_path / "large.py").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(ConfigFileError, match="is larger than the 16777216 bytes"):
        read_config(tmp_path / "large.py")


def test_nothing_is_executed(write, tmp_path):
    path = write(main=f"x = __import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()")
    with pytest.raises(ConfigFileError, match="is a call"):
        read_config(path)
    assert not (tmp_path / "made").exists()


def test_values_made_are_counted_over_all_bases(write):
    half = f"[0] * {MAX_VALUES // 6}"
    with pytest.raises(ConfigFileError, match="makes more than 2000000 values"):
        read_config(write(main=f"_base_ = 'base.py'\ny = {half}", base=f"x = {half}"))


class TestBasesOfPackages:
    """Bases like mmdet::_base_/default_runtime.py, which lie in an installed package."""

    BASE = "_base_ = 'mmdet::_base_/runtime.py'\n"

    @pytest.fixture
    def installed(self, tmp_path, monkeypatch):
        """Installs a package named mmdet, which must not be imported."""
        configs = tmp_path / "site/mmdet/.mim/configs/_base_"
        configs.mkdir(parents=True)
        (tmp_path / "site/mmdet/__init__.py").write_text("raise AssertionError('imported')")
        (configs / "runtime.py").write_text("backend_args = None\nmodel = dict(neck=dict(n=1))")
        monkeypatch.syspath_prepend(tmp_path / "site")

    def test_one_that_is_installed_is_read_and_not_imported(self, installed, write):
        config = read_config(write(main=self.BASE + "model = dict(neck=dict(m=2))\nx = _base_.backend_args"))
        assert config == {"backend_args": None, "model": {"neck": {"n": 1, "m": 2}}, "x": None}

    def test_one_that_is_not_is_skipped_with_a_note(self, write):
        config = read_config(write(main=self.BASE + WHOLE))
        assert config["model"]["type"] == "CoDETR"
        assert config[NOTES] == ["mmdet::_base_/runtime.py was skipped: it is not installed here"]

    @pytest.mark.parametrize("name", ["mmdet::absent.py", "os::x.py", "no package::x.py", "::x.py"])
    def test_one_that_cannot_be_found_is_skipped(self, write, name):
        assert NOTES in read_config(write(main=f"_base_ = {name!r}\n" + WHOLE))

    def test_what_decides_nothing_is_left_out(self, write):
        text = (
            "train_pipeline = [dict(type=_base_.a.b)]\nroot = _base_.data_root\n"
            "test_pipeline = [dict(type='Load', backend_args=_base_.backend_args), dict(type='Resize')]\n"
        )
        config = read_config(write(main=self.BASE + WHOLE + text))
        assert config["test_pipeline"] == [{"type": "Load"}, {"type": "Resize"}]
        assert config[NOTES][1] == "left out with it: root, train_pipeline[0].type, test_pipeline[0].backend_args"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            pytest.param("", "has no whole model without mmdet::_base_", id="no model"),
            pytest.param("model = dict(backbone=dict(type='x'))", "no whole model without", id="model of a base"),
            pytest.param("model = dict(type='x')", "no whole model.backbone without", id="backbone of a base"),
            pytest.param("model = dict(type='x', backbone=dict(depth=1))", "no whole model.backbone", id="its type"),
            pytest.param(
                "model = dict(type='x', backbone=dict(type='y'), bbox_head=[dict(n=1)])",
                "no whole model.bbox_head without",
                id="type of a head",
            ),
            pytest.param(WHOLE + "model = _base_.model", "model comes from mmdet::", id="unknown model"),
            pytest.param(
                WHOLE + "test_pipeline = [dict(type='Resize', scale=_base_.size)]",
                "test_pipeline[0].scale comes from mmdet::",
                id="unknown size",
            ),
            pytest.param(
                WHOLE + "test_pipeline = [_base_.step]", "test_pipeline[0] comes from mmdet::", id="unknown step"
            ),
            pytest.param(WHOLE + "x = _base_.n + 1", "needs _base_.n, which is not known without", id="calculation"),
            pytest.param(WHOLE + "x = _base_['n']", "has no 'n' in _base_", id="subscript"),
        ],
    )
    def test_what_could_decide_the_network_is_refused(self, write, text, expected):
        with pytest.raises(ConfigFileError) as raised:
            read_config(write(main=self.BASE + text))
        assert expected in str(raised.value)
        assert ".dump('main.json')" in str(raised.value)


class TestExecution:
    """`execute=True`, with a stand-in for mmengine, which is not installed here."""

    @pytest.fixture
    def mmengine(self, monkeypatch):
        """Puts a stand-in for mmengine in place; returns its class Config."""

        class Config:
            """What this project uses of mmengine's."""

            @classmethod
            def fromfile(cls, path, import_custom_modules):
                """Execute the file."""
                assert not import_custom_modules
                made: Any = cls()
                made.names = {}
                exec(Path(path).read_text(encoding="utf-8"), made.names)
                return made

            def to_dict(self: Any):
                """Return what it bound."""
                return {name: value for name, value in self.names.items() if not name.startswith("__")}

        module: Any = ModuleType("mmengine.config")
        module.Config = Config
        monkeypatch.setitem(sys.modules, "mmengine", ModuleType("mmengine"))
        monkeypatch.setitem(sys.modules, "mmengine.config", module)

    def test_a_call_is_executed(self, mmengine, write):
        assert read_config(write(a="x = max(1, 2)"), execute=True) == {"x": 2}

    @pytest.mark.parametrize("text", ["raise SystemExit('end')", "raise ValueError('end\\nof it')"])
    def test_what_it_raises_is_one_line(self, mmengine, write, text):
        with pytest.raises(ConfigFileError, match=r"a\.py cannot be executed: end") as raised:
            read_config(write(a=text), execute=True)
        assert "\n" not in str(raised.value)

    def test_no_file(self, mmengine, tmp_path):
        with pytest.raises(ConfigFileError, match="no config file at"):
            read_config(tmp_path / "a.py", execute=True)

    def test_without_mmengine(self, monkeypatch, write):
        monkeypatch.setitem(sys.modules, "mmengine", None)
        with pytest.raises(ConfigFileError, match="mmengine cannot be imported to execute"):
            read_config(write(a="x = 1"), execute=True)

    def test_a_dump_needs_no_execution(self, tmp_path):
        (tmp_path / "a.json").write_text('{"x": 1}')
        assert read_config(tmp_path / "a.json", execute=True) == {"x": 1}
