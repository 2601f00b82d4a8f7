"""Reads mmdetection's config files, Python or JSON, and merges their bases as mmengine does; executes nothing."""

from __future__ import annotations

import ast
import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.reading.config_syntax import Evaluator
from builder.reading.config_values import Budget, ConfigFileError, Unknown, Unreadable
from codetr_client.text import decode_text

__all__ = ["NOTES", "ConfigFileError", "read_config"]

# Where the result says which bases were skipped and which values of theirs are missing.
NOTES = "_notes_"

MAX_BYTES = 16 * 2**20  # of one file
MAX_FILES = 100  # of a config and its bases
_DELETE = "_delete_"
# Values that decide nothing about a network: missing with a base that was skipped, they are left out.
_TOP_KEYS_THAT_DECIDE = ("model", "data", "test_", "val_", "metainfo", "classes", "CLASSES")
_PARTS = ("data_preprocessor", "neck")
_KEYS_OF_FILES = ("backend_args", "file_client_args", "data_root", "ann_file", "data_prefix", "img_prefix")


def read_config(path: str | Path, execute: bool = False) -> dict[str, Any]:
    """Return the settings of an mmdetection config, with those of its bases, as `from_mmdet_config` takes them.

    Args:
        path: a Python config, which is evaluated without being executed (assignments of literals, `dict(...)`, names,
            arithmetic, `_base_`), or a JSON dump of one.
        execute: have mmengine read a Python config instead, which executes it; for files that you trust.

    Returns:
        The config; `_notes_` in it lists the bases that were skipped, which happens to those of a package that is not
        installed where the file itself describes the whole model.

    Raises:
        ConfigFileError: the file or a base cannot be read, or holds a construct that is not evaluated; the message
            names file and line.
    """
    path = Path(path)
    if execute and path.suffix == ".py":
        return _executed(path)
    reader = _Reader()
    try:
        return reader.complete(reader.read(path), path)
    except RecursionError as error:
        raise ConfigFileError(f"{path} nests too deep to be read; {_advice(path)}") from error


class _Reader:
    """Reads one config and its bases."""

    def __init__(self) -> None:
        self.budget = Budget()
        self.open: list[Path] = []  # each a base of the one before
        self.files = 0
        self.skipped: list[str] = []

    def read(self, path: Path) -> dict[str, Any]:
        """Return a file's settings merged into those of its bases."""
        text = self._text(path)
        self.open.append(path.resolve())
        config = self._json(path, text) if path.suffix == ".json" else self._python(path, text)
        self.open.pop()
        return {key: value for key, value in config.items() if not str(key).startswith("__") and key != "_deprecation_"}

    def _text(self, path: Path) -> str:
        if path.suffix not in (".py", ".json"):
            raise ConfigFileError(f"{path} is neither a .py nor a .json file; {_advice(path)}")
        self.files += 1
        if self.files > MAX_FILES:
            raise ConfigFileError(f"{path}: more than {MAX_FILES} files are included; {_advice(path)}")
        try:
            if not path.is_file():
                raise ConfigFileError(f"no config file at {path}{self._asked_by()}")
            if path.resolve() in self.open:
                raise ConfigFileError(f"{path} is among its own bases; take it out of _base_")
            if path.stat().st_size > MAX_BYTES:
                raise ConfigFileError(f"{path} is larger than the {MAX_BYTES} bytes that a config may have")
            return decode_text(path.read_bytes())
        except OSError as error:
            raise ConfigFileError(f"{path} cannot be read: {error.strerror}; look at its permissions") from error
        except ValueError as error:
            raise ConfigFileError(f"{path} is {error}") from error

    def _asked_by(self) -> str:
        return f", which is in _base_ of {self.open[-1].name}" if self.open else ""

    def _json(self, path: Path, text: str) -> dict[str, Any]:
        try:
            config = self.budget.copy(json.loads(text))
        except (ValueError, Unreadable) as error:
            raise ConfigFileError(f"{path} is no JSON dump of a config: {error}; {_advice(path)}") from error
        if not isinstance(config, dict):
            raise ConfigFileError(f"{path} holds a {type(config).__name__}; expected a dict of settings")
        bases, _ = self._bases(path, config.pop("_base_", []))
        return _merged(config, bases, path)

    def _python(self, path: Path, text: str) -> dict[str, Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in strings
                statements = ast.parse(text).body
        except (SyntaxError, ValueError, MemoryError) as error:  # MemoryError: nested too deep for the parser
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise ConfigFileError(f"{path}{line} is not Python: {error.args[0] if error.args else error}") from error
        try:
            named = [each for each in statements if _assigns_base(each)]
            literal = Evaluator(path, {}, True, self.budget)
            files = [literal.value(each.value) for each in named if isinstance(each, ast.Assign)]
            bases, is_complete = self._bases(path, files[0] if files else [])
            evaluator = Evaluator(path, bases, is_complete, self.budget)
            own = evaluator.run([each for each in statements if each not in named])
        except Unreadable as error:
            number = error.line or 1
            source = text.split("\n")[number - 1].strip()[:80]
            raise ConfigFileError(f"{path}, line {number}: `{source}` {error}; {_advice(path)}") from error
        return _merged(own, bases, path)

    def _bases(self, path: Path, named: Any) -> tuple[dict[str, Any], bool]:
        """Return the settings of the bases, and whether none of them was skipped."""
        files = named if isinstance(named, list) else [named]
        skipped_before = len(self.skipped)
        bases: dict[str, Any] = {}
        for file in files:
            if not isinstance(file, str) or "\0" in file:
                raise ConfigFileError(f"{path}: _base_ holds {file!r}; expected the path of a file")
            found = _of_package(file) if "::" in file else path.parent / file
            if found is None:
                self.skipped.append(file)
                continue
            settings = self.read(found)
            twice = sorted(bases.keys() & settings.keys())
            if twice:
                raise ConfigFileError(f"{path}: {', '.join(twice)} in more than one file of _base_; keep one of them")
            bases |= settings
        return bases, len(self.skipped) == skipped_before

    def complete(self, config: dict[str, Any], path: Path) -> dict[str, Any]:
        """Return a config with notes about what is missing, unless that could decide the network."""
        dropped: list[str] = []
        for key in [key for key, value in config.items() if isinstance(value, Unknown)]:
            dropped.append(key)
            if key.startswith(_TOP_KEYS_THAT_DECIDE) and key not in _KEYS_OF_FILES:
                self._refuse_unknown(key, path)
            del config[key]
        for key, value in config.items():
            self._settle(value, key, key.startswith(_TOP_KEYS_THAT_DECIDE), dropped, path)
        if not self.skipped:
            return config
        _require_model(config, self.skipped, path)
        notes = [f"{base} was skipped: it is not installed here" for base in dict.fromkeys(self.skipped)]
        return config | {NOTES: notes + ([f"left out with it: {', '.join(dropped)}"] if dropped else [])}

    def _settle(self, value: Any, where: str, decides: bool, dropped: list[str], path: Path) -> None:
        """Take unknown values out of `value`, or refuse those that could decide the network."""
        if isinstance(value, dict):
            for key in [key for key, item in value.items() if isinstance(item, Unknown)]:
                if decides and key not in _KEYS_OF_FILES:
                    self._refuse_unknown(f"{where}.{key}", path)
                dropped.append(f"{where}.{key}")
                del value[key]
            for key, item in value.items():
                self._settle(item, f"{where}.{key}", decides, dropped, path)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                if isinstance(item, Unknown):
                    self._refuse_unknown(f"{where}[{index}]", path)
                self._settle(item, f"{where}[{index}]", decides, dropped, path)

    def _refuse_unknown(self, where: str, path: Path) -> None:
        raise ConfigFileError(
            f"{path}: {where} comes from {', '.join(self.skipped)}, which is not installed here; {_advice(path)}"
        )


def _require_model(config: Mapping[str, Any], skipped: list[str], path: Path) -> None:
    """Refuse a config of which a part of the model may be in a base that was skipped."""
    model = config.get("model")
    parts = {"model": model}
    if isinstance(model, Mapping):
        parts |= {"model.backbone": model.get("backbone")}
        parts |= {f"model.{key}": part for key, part in model.items() if key in _PARTS or key.endswith("head")}
    for where, part in parts.items():
        first = part[0] if isinstance(part, (list, tuple)) and part else part
        if first is not None and isinstance(first, Mapping) and "type" in first:
            continue
        if part is None and where not in ("model", "model.backbone"):
            continue
        raise ConfigFileError(
            f"{path} has no whole {where} without {', '.join(skipped)}, which is not installed here; {_advice(path)}"
        )


def _merged(own: Mapping[str, Any], base: Mapping[str, Any], path: Path, where: str = "") -> dict[str, Any]:
    """Return `base` with `own` merged into it: dicts by key, everything else replaced.

    Source: mmengine 0.10.7 `Config._merge_a_into_b`.
    """
    merged = dict(base)
    for key, value in own.items():
        if not isinstance(value, dict):
            merged[key] = value
            continue
        settings = {name: item for name, item in value.items() if name != _DELETE}
        if key not in base or value.get(_DELETE):
            merged[key] = settings
        elif isinstance(base[key], dict):
            merged[key] = _merged(settings, base[key], path, f"{where}{key}.")
        else:
            raise ConfigFileError(
                f"{path}: {where}{key} is a dict here and {type(base[key]).__name__} in its base; add {_DELETE}=True "
                "to replace it"
            )
    return merged


def _of_package(name: str) -> Path | None:
    """Return the file of a base like "mmdet::_base_/default_runtime.py", or None if it is not installed."""
    package, _, file = name.partition("::")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / ".mim" / "configs" / file
    return found if found.is_file() else None


def _assigns_base(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "_base_" for target in statement.targets
    )


def _executed(path: Path) -> dict[str, Any]:
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise ConfigFileError(
            f"mmengine cannot be imported to execute {path} ({error}); install it with pip install mmengine, or "
            f"{_advice(path)}"
        ) from error
    if not path.is_file():
        raise ConfigFileError(f"no config file at {path}")
    try:
        config = Config.fromfile(str(path), import_custom_modules=False).to_dict()
    except (Exception, SystemExit) as error:  # the config's own code can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigFileError(f"{path} cannot be executed: {reason}") from error
    return dict(config)


def _advice(path: Path) -> str:
    """Return how to make what can always be read."""
    return (
        'where mmengine is installed, dump it as JSON and give that: python -c "from mmengine.config import Config; '
        f"Config.fromfile('{path.name}', import_custom_modules=False).dump('{path.stem}.json')\""
    )
