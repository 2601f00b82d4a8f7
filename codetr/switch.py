"""`codetr switch` and `codetr rollback`: another version of an engine, also under a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.contract import ENSEMBLE

Repository = Annotated[Path, typer.Argument(help="A folder written by `codetr build`.")]
Name = Annotated[str, typer.Option(help="Of the ensemble.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds for a trial of the version, and again for the servers.")]


def switch(
    repository: Repository,
    to: Annotated[
        int | None, typer.Option(min=1, help="The version to serve; without it the versions are listed.")
    ] = None,
    name: Name = ENSEMBLE,
    timeout: Timeout = 1800.0,
) -> None:
    """Have another version of an engine served, without a pause where a server runs."""
    if to is None:
        _list(repository)
    else:
        _switch(repository, name, to, timeout)


def rollback(repository: Repository, name: Name = ENSEMBLE, timeout: Timeout = 1800.0) -> None:
    """Have the version served again that was served before the present one."""
    _switch(repository, name, None, timeout)


def _switch(repository: Path, name: str, version: int | None, timeout: float) -> None:
    from codetr.shown import DONE, line, new_console
    from serving.switch import switch as run

    choice, servers = run(repository, name, version, timeout, new_console(stderr=True).status)
    advice = f"{servers} running server{'s' if servers > 1 else ''} took it over"
    if not servers:
        advice = "the next start serves it, and servers of other users or machines take it over within seconds"
    new_console().print(line(DONE, f" {name}: version {choice.version} is served; {advice}"), soft_wrap=True)


def _list(repository: Path) -> None:
    from codetr.shown import line, new_console
    from serving.manifest import no_repository
    from serving.versions import read_choice, versions

    found = versions(repository)
    if not found:
        raise no_repository(repository)
    for name, there in found.items():
        served = read_choice(repository, name).version
        text = ", ".join(f"{version} (served)" if version == served else str(version) for version in there)
        new_console().print(line(f"{name}: version {text}"), soft_wrap=True)
