"""The `codetr` command: each module beside this one parses one command and calls one library function."""

from __future__ import annotations

import errno
import sys
from importlib import metadata
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from codetr.bench_canvas import bench_canvas
from codetr.bench_cluster import bench_cluster
from codetr.bench_cost import bench_cost
from codetr.bench_engine import bench_engine
from codetr.bench_faults import bench_faults, bench_surroundings
from codetr.bench_fuzz import bench_fuzz
from codetr.bench_gpus import bench_gpus
from codetr.bench_load import bench_load
from codetr.bench_op import bench_op
from codetr.bench_precision import precision
from codetr.bench_preprocess import bench_preprocess
from codetr.bench_quantized import bench_quantized
from codetr.bench_server import bench_server, install_perf_analyzer
from codetr.build import build
from codetr.capacity import capacity
from codetr.compare import compare
from codetr.demo import demo
from codetr.detect import detect
from codetr.evaluate import evaluate
from codetr.inspect_engine import inspect_engine
from codetr.serve import serve
from codetr.shown import escape_what_cannot_be_encoded, line, new_console, open_what_is_closed, say
from codetr.status import status
from codetr.switch import rollback, switch
from codetr.train_demo import demo_data, train_demo
from codetr.variants import variants
from codetr.verify import verify
from codetr.web import web
from serving.errors import CodetrError

app = typer.Typer(
    name="codetr",
    help="Co-DETR from checkpoint to a measured NVIDIA Triton detection service.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
bench = typer.Typer(help="Measure engines, operators, the server and its steps.", no_args_is_help=True)
app.add_typer(bench, name="bench")

# What the system says of a file that may not be used, of a disk that is full or fails, and of too many open files.
_MACHINE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}

# Each is called as its function is, but for what says where it stands; in the order of the help.
for command in (
    build, compare, capacity, demo, detect, demo_data, evaluate, inspect_engine, rollback, serve, status, switch,
    train_demo, variants, verify, web,
):  # fmt: skip
    app.command(command.__name__.removesuffix("_engine").replace("_", "-"))(command)
for benchmark in (
    bench_engine, bench_canvas, bench_cluster, bench_cost, bench_faults, bench_surroundings, bench_op, bench_fuzz,
    bench_gpus, bench_load, bench_preprocess, bench_quantized, bench_server, install_perf_analyzer, precision,
):  # fmt: skip
    bench.command(benchmark.__name__.removeprefix("bench_").replace("_", "-"))(benchmark)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"codetr-triton {metadata.version('codetr-triton')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Co-DETR from checkpoint to a measured NVIDIA Triton detection service."""


def _where_servers_run(message: str) -> str:
    """Return what to add to the message that no server answers at an address: those of this user on this machine."""
    if not message.endswith("`codetr serve` starts one"):
        return ""
    from serving.addresses import bracketed
    from serving.runtime import running_servers

    found = [
        f"HTTP {bracketed(record.host)}:{record.http_port} and gRPC {bracketed(record.host)}:{record.grpc_port} "
        f"({record.repository})"
        for record in running_servers()[:3]
    ]
    return f", and here runs {', '.join(found)}" if found else ""


def _end(message: str) -> NoReturn:
    lines = [line(text) for text in message.split("\n")]  # of a few the second says where to read on
    new_console(stderr=True).print(line(Text("error:", "bold red"), " ", Text("\n").join(lines)), soft_wrap=True)
    sys.exit(1)


def main() -> None:
    """Run the command; a `CodetrError` becomes one line on standard error and exit status 1.

    So does a file that may not be read or written, or a full disk, where the command itself does not speak of it.
    """
    open_what_is_closed()
    escape_what_cannot_be_encoded()
    try:
        app()
    except CodetrError as error:
        _end(str(error) + _where_servers_run(str(error)))
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        path = "" if error.filename is None else f"{error.filename}: "
        _end(f"{path}{error.strerror}; look at the disk and the permissions of what the command reads and writes")
