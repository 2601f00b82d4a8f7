"""`codetr verify`: compare a repository's engine with its detector again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def verify(
    repository: Annotated[Path, typer.Argument(help="A folder written by `codetr build`.")],
    weights: Annotated[Path | None, typer.Option(help="The checkpoint it was built from.")] = None,
    verify_images: Annotated[Path | None, typer.Option(help="Images to verify on; generated shapes else.")] = None,
) -> None:
    """Check a repository's files and compare its engine with the float32 detector again."""
    from builder.recheck import verify_repository

    result = verify_repository(repository, weights, verify_images)
    Console().print(f"[green]✓[/] engine and detector agree: {result}", highlight=False)
