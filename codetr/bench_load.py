"""`codetr bench load`: users against a running server, with limits that decide the exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from codetr.access import URL_HELP, CaFile, CertificateFile, HeaderFile, KeyFile, ServerName, access
from codetr.shown import say
from serving.contract import ENSEMBLE


def bench_load(
    output: Annotated[Path, typer.Option(help="Folder for report, results.json and CSV files.")] = Path(
        "runs/bench/load"
    ),
    url: Annotated[str | None, typer.Option(help=URL_HELP)] = None,
    protocol: Annotated[
        Literal["grpc", "http"] | None, typer.Option(help="How to talk to the server; the url's, else grpc.")
    ] = None,
    arrival: Annotated[
        Literal["closed", "constant-rate"],
        typer.Option(help="Users who wait for their answers, or requests that arrive at random regardless."),
    ] = "closed",
    shape: Annotated[
        Literal["constant", "steps", "spike", "soak"], typer.Option(help="How the load goes over time.")
    ] = "constant",
    peak: Annotated[float, typer.Option(min=0.1, help="Users (closed) or requests/s (constant-rate).")] = 4.0,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the run.")] = 60.0,
    requests: Annotated[int | None, typer.Option(min=1, help="End after so many instead of after --seconds.")] = None,
    think: Annotated[float, typer.Option(min=0, help="Mean seconds a user thinks between requests.")] = 0.5,
    bad_share: Annotated[float, typer.Option(min=0, max=1, help="Share of images that must be refused.")] = 0.01,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one answer.")] = 30.0,
    model: Annotated[str, typer.Option(help="Name of the ensemble on the server.")] = ENSEMBLE,
    max_p99_ms: Annotated[
        float | None, typer.Option(min=0, help="Fail if the p99 of good images is above this.")
    ] = None,
    max_failures: Annotated[int, typer.Option(help="Fail if more requests fail; -1: any number may.")] = 0,
    max_memory_growth_mb: Annotated[
        float | None,
        typer.Option(
            help="Fail if server and steps grow by more after warm-up, or /dev/shm grows; a soak: 100; -1: no."
        ),
    ] = None,
    server_pid: Annotated[
        int | None, typer.Option(help="Whose memory to sample; what listens at --url here if not given.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="results.json of an earlier run to compare with.")] = None,
    header_file: HeaderFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
    web: Annotated[bool, typer.Option("--web", help="Open locust's page on port 8089 instead of starting.")] = False,
    locust_options: Annotated[
        list[str] | None, typer.Argument(help="Options for locust behind `--`, such as --master or --worker.")
    ] = None,
) -> None:
    """Put a running server under load with locust; exit status 1 if a limit is broken."""
    from perf.load.config import LoadConfig
    from perf.load.limits import SOAK_MAX_GROWTH_MB
    from perf.load.run import run
    from perf.machine import command_line
    from perf.records import DRAWN, check_output

    if max_memory_growth_mb is None and shape == "soak":
        max_memory_growth_mb = SOAK_MAX_GROWTH_MB
    elif max_memory_growth_mb is not None and max_memory_growth_mb < 0:
        max_memory_growth_mb = None
    reach = access(header_file, ca_file, certificate_file, key_file, server_name)
    endpoint = reach.endpoint(url, protocol, timeout, model)
    config = LoadConfig(
        url=endpoint.url,
        protocol=endpoint.protocol,
        model=model,
        timeout=timeout,
        arrival=arrival,
        shape=shape,
        peak=peak,
        seconds=seconds,
        requests=requests,
        think=think,
        bad_share=bad_share,
        max_p99_ms=max_p99_ms,
        max_failures=None if max_failures < 0 else max_failures,
        max_memory_growth_mb=max_memory_growth_mb,
        server_pid=server_pid,
        baseline=str(baseline) if baseline else None,
        output=str(output),
        command=command_line(),
        access=reach,
    )
    options = locust_options or []
    check_output(output, sources=[baseline], others=DRAWN, kind="load")
    is_complete = run(config, web, options)
    if "--worker" not in options:  # the master judges and reports
        kept = "all limits kept" if is_complete else "ended before its time, limits kept until then"
        say(f"{kept}; report in {output / 'report.html'}")
