"""`codetr bench fuzz`: hostile images, in this machine's processes and through a real server, counted."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated

import typer

from serving.errors import CodetrError


def bench_fuzz(
    output: Annotated[Path, typer.Option(help="Folder for the records and for the files that were faults.")] = Path(
        "runs/bench/fuzz"
    ),
    files: Annotated[int, typer.Option(min=0, help="Mutated files of each format, in processes.")] = 26_000,
    requests: Annotated[int, typer.Option(min=0, help="Mutated files sent to a server, in all.")] = 5_400,
    seed: Annotated[int | None, typer.Option(help="Decides the files; without it one is drawn and printed.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
    keep: Annotated[Path | None, typer.Option(help="Folder for the smallest file of each distinct outcome.")] = None,
) -> None:
    """Mutate real files of every format, and count what decoding and the server make of them."""
    from codetr_client.outputs import make_folder
    from perf.fuzz import run as in_process
    from perf.fuzz import server
    from perf.records import check_output

    for record, wanted in ((in_process.RECORD, files), (server.RECORD, requests)):
        if wanted:
            check_output(output, record, ())
    make_folder(output)
    if keep is not None:
        make_folder(keep)

    chosen = random.SystemRandom().randrange(10**6) if seed is None else seed
    typer.echo(f"seed {chosen}")
    faults = 0
    if files:
        counted = in_process.run(files, chosen, output, workers=workers, keep=keep, on_progress=print_progress)
        faults += counted["faults"]
    if requests:
        counted = server.run_through_server(requests, chosen, output, on_progress=print_progress)
        faults += counted["faults"]
    typer.echo(f"wrote {output}")
    if faults:
        raise CodetrError(f"{faults} faults: {output} has the records and the files")


def print_progress(done: int, faults: int) -> None:
    """Rewrite one line, now and then."""
    if done % 1000 == 0:
        print(f"\r{done} files, {faults} faults ", end="", file=sys.stderr, flush=True)
