"""`codetr verify`: compare a repository's engines with their detectors again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codetr.config import ConfigOption, ExecuteOption, read_variant
from codetr.shown import DONE, line, new_console
from serving.errors import CodetrError
from serving.repository import check_repository


def verify(
    repository: Annotated[Path, typer.Argument(help="A folder written by `codetr build`.")],
    weights: Annotated[
        list[Path] | None, typer.Option(help="The checkpoint it was built from; once for each, if there are several.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the ensemble; all of them else.")] = None,
    verify_images: Annotated[Path | None, typer.Option(help="Images to verify on; generated shapes else.")] = None,
    verify_annotations: Annotated[Path | None, typer.Option(help="Their COCO annotations, to compare AP too.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a report with pictures, one in it for each.")] = None,
    config: ConfigOption = None,
    execute_config: ExecuteOption = False,
    files_only: Annotated[
        bool,
        typer.Option(
            "--files-only", help="Check files and manifests, and what they need of this machine; compute nothing."
        ),
    ] = False,
) -> None:
    """Check a repository's files and compare its engines with the float32 detectors again."""
    if files_only:
        _refuse_beside_files_only(weights, name, verify_images, verify_annotations, report, config)
        check_repository(repository)
        new_console().print(
            line(DONE, f" {repository} is complete, and its engines are those that were built"), soft_wrap=True
        )
        return
    from builder.pipeline.recheck import check_network, check_weights, chosen_names, verify_repository
    from codetr_client.outputs import check_folder, refuse_inside

    if report is not None:
        check_folder(report)  # before the engines' names are read
    variant = read_variant(config, execute_config)
    names = chosen_names(repository, name)
    check_weights(repository, names, weights or ())
    for each in names:
        if variant is not None:
            check_network(repository, each, variant)
        folder = None if report is None else report / each
        if folder is not None:
            refuse_inside([folder], (*(weights or ()), verify_images, verify_annotations))
            _check_report(folder)
        result = verify_repository(repository, each, weights or (), verify_images, verify_annotations, folder)
        new_console().print(line(DONE, f" {each}: engine and detector agree: {result}"), soft_wrap=True)


def _refuse_beside_files_only(*others: object) -> None:
    if any(other is not None and other != [] for other in others):
        raise CodetrError("--files-only computes nothing and looks at every engine; leave the other options out")


def _check_report(folder: Path) -> None:
    """Refuse a folder with anything else in it than an earlier report."""
    from builder.pipeline.report import is_free

    if not is_free(folder):
        raise CodetrError(f"{folder} holds something else than a report; move it away, or name another --report")
