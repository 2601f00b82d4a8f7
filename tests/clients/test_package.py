"""What the package is to those who import it: lazy, typed, and still there under its old name."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import codetr_client
import serving.errors
from codetr_client import contract
from serving import contract as internal

FOLDER = Path(codetr_client.__file__).parent
# Of after the package had its name.
NEW_MODULES = (
    "containers", "contract", "deadline", "exif", "faults", "forks", "grpc_channels", "grpc_wire",
    "http_sockets", "http_streams", "http_wire", "inputs", "jpeg", "lookup", "options", "outputs", "probe", "steps",
    "text", "threshold",
)  # fmt: skip  # a set of words
OLD_MODULES = {
    name: name for name in ("aio", "client", "detections", "errors", "files", "images", "wire")
} | {"draw": "drawing"}  # fmt: skip


def imported_by(statement: str) -> set[str]:
    """Top-level modules outside the standard library that `statement` brings into a fresh interpreter."""
    code = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.split()} - sys.stdlib_module_names


def test_the_contract_and_the_errors_bring_nothing_along() -> None:
    assert imported_by("import codetr_client.contract, codetr_client.errors") <= {"codetr_client", "numpy"}


def test_a_client_is_there_before_tritonclient_is() -> None:
    found = imported_by("from codetr_client import AsyncCoDetrClient, CoDetrClient, Detections, draw")
    assert {"numpy", "PIL"} <= found
    assert not found & {"tritonclient", "grpc", "cv2", "torch", "serving", "builder", "perf"}


@pytest.mark.parametrize("name", codetr_client.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(codetr_client, name)
    assert value.__name__ == name
    assert value.__module__.startswith("codetr_client.")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'detekt'"):
        codetr_client.detekt  # noqa: B018  # asking is the test


def test_draw_stays_a_function_once_its_module_is_imported() -> None:
    importlib.import_module("codetr_client.drawing")
    assert callable(codetr_client.draw)


def test_the_server_shares_the_errors_and_the_contract() -> None:
    assert serving.errors.CodetrError is codetr_client.CodetrError
    assert serving.errors.InvalidImageError is codetr_client.InvalidImageError
    assert internal.contract(96, 136, 7)[internal.ENSEMBLE] == contract.ensemble(7)


def test_coco_has_its_eighty_names() -> None:
    names = codetr_client.coco_class_names()
    assert (len(names), len(set(names)), names[0], names[-1]) == (80, 80, "person", "toothbrush")


@pytest.fixture
def old_name() -> Iterator[None]:
    """The old name as in a fresh interpreter."""
    forget()
    yield
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "clients"]:
        del sys.modules[name]


def test_the_old_names_are_those_of_all_older_modules() -> None:
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", *NEW_MODULES}
    assert modules == set(OLD_MODULES.values())


@pytest.mark.usefixtures("old_name")
@pytest.mark.parametrize("old", OLD_MODULES)
def test_an_old_module_is_the_new_one_and_says_so(old: str) -> None:
    with pytest.warns(DeprecationWarning, match="`clients` is now `codetr_client`") as warned:
        module = importlib.import_module(f"clients.{old}")
    assert len(warned) == 1
    assert module is importlib.import_module(f"codetr_client.{OLD_MODULES[old]}")
    assert getattr(sys.modules["clients"], old) is module


@pytest.mark.usefixtures("old_name")
def test_the_old_package_offers_what_the_new_one_does() -> None:
    with pytest.warns(DeprecationWarning, match="codetr_client"):
        from clients import CoDetrClient
    assert CoDetrClient is codetr_client.CoDetrClient
