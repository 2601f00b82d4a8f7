"""`codetr detect`: pictures in, annotated pictures and boxes out, from a running server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codetr.access import RETRIES, URL_HELP, CaFile, CertificateFile, HeaderFile, KeyFile, Retries, ServerName, access
from codetr.labels import read_class_names
from codetr.shown import line, new_console, progress_bar, shown
from serving.errors import CodetrError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from codetr_client.files import Detected, Failed
    from codetr_client.wire import ClassNames

# More images than this are summarised, one line an image.
MAX_IMAGES_IN_FULL = 5


def detect(
    images: Annotated[list[str], typer.Argument(help="Files, folders or globs.", metavar="IMAGE...")],
    output: Annotated[Path, typer.Option(help="Folder for the annotated pictures and detections.json.")],
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
    protocol: Annotated[
        Literal["grpc", "http"] | None, typer.Option(help="How to talk to the server; the url's, else grpc.")
    ] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score shown.")] = 0.3,
    labels: Annotated[
        str | None,
        typer.Option(help="Class names: a file with one a line, or 'coco'; the server's own if not given."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 60.0,
    model: Annotated[str, typer.Option(help="Name of the ensemble on the server.")] = "codetr",
    retries: Retries = RETRIES,
    header_file: HeaderFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
) -> None:
    """Detect objects in pictures with a running server."""
    from codetr_client.files import RESULTS_NAME, detect_files, find_images
    from codetr_client.outputs import check_folder

    check_folder(output)
    paths = find_images(images)
    console = new_console()
    reach = access(header_file, ca_file, certificate_file, key_file, server_name, retries)
    with replace(reach, retries=0).client(url, protocol, timeout, (), model) as first:
        first.check()  # a server that is away is said to be so at once
    with (
        reach.client(url, protocol, timeout, read_labels(labels), model) as client,
        progress_bar(console) as progress,
    ):
        task = progress.add_task("detecting", total=len(paths))
        results = detect_files(client, paths, output, score_threshold, lambda result: progress.advance(task))
    console.print(results_table(results))
    console.print(line(f"pictures and {RESULTS_NAME} are in {output}"), soft_wrap=True)
    raise_failures(results)


def read_labels(labels: str | None) -> ClassNames:
    """Return the class names that `--labels` asks for: 'coco', the lines of a file, or None for the server's own."""
    if labels is None:
        return None
    if labels == "coco":
        return "coco"
    return read_class_names(Path(labels), "--labels", "expected a file with one name a line, or 'coco'")


def results_table(results: Sequence[Detected | Failed]) -> Table:
    """Return the table to print: a row a detection for a few images, a row an image for many."""
    from rich.table import Table

    from codetr_client.files import Failed

    table = Table("image", "class", "score", "box (x1 y1 x2 y2)")
    full = len(results) <= MAX_IMAGES_IN_FULL
    if not full:
        table = Table("image", "detections", "classes")
    for result in results:
        name = shown(result.path.name)
        if isinstance(result, Failed):
            table.add_row(name, "failed")
        elif full:
            _add_detections(table, result)
        else:
            classes = Counter(result.detections.names)
            table.add_row(
                name, str(len(result.detections)), shown(", ".join(f"{n} {c}" for c, n in classes.most_common()))
            )
    return table


def _add_detections(table: Table, result: Detected) -> None:
    found = sorted(result.detections.to_json(), key=lambda detection: -detection["score"])
    for detection in found:
        box = " ".join(f"{side:.1f}" for side in detection["box"])
        table.add_row(shown(result.path.name), shown(detection["name"]), f"{detection['score']:.3f}", box)
    if not found:
        table.add_row(shown(result.path.name), "nothing found")


def raise_failures(results: Sequence[Detected | Failed]) -> None:
    """Raise CodetrError that names every image that failed and why, if one did."""
    from codetr_client.files import Failed

    failures = [result for result in results if isinstance(result, Failed)]
    if failures:
        reasons = "; ".join(f"{failure.path.name}: {failure.error}" for failure in failures)
        raise CodetrError(f"{len(failures)} of {len(results)} images failed: {reasons}")
