"""`codetr web`: a page on which pictures are dropped and boxes are seen, from running servers."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codetr.access import URL_HELP, CaFile, CertificateFile, HeaderFile, KeyFile, Retries, ServerName, access
from codetr.shown import line, new_console, shown
from serving.addresses import LOOPBACK, resolve_host
from serving.errors import CodetrError

if TYPE_CHECKING:
    from codetr.page.options import PageOptions

PORT = 8080
SCORE_THRESHOLD = 0.3
LOWEST_SCORE = 0.05
MAX_MEGABYTES = 64  # what a server takes unless it is set
RETRIES = 2  # the page repeats what failed by itself, and shows meanwhile what it waits for

OPEN_WARNING = (
    "warning: everybody who reaches this port can use the servers with this command's credentials, for there is no "
    "login; browsers open a camera on localhost and https:// alone"
)


def web(
    url: Annotated[list[str] | None, typer.Option(help=f"A server; may be given several times. {URL_HELP}")] = None,
    protocol: Annotated[
        Literal["grpc", "http"] | None, typer.Option(help="How to talk to the servers; the url's, else grpc.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Name of an ensemble; may be given several times; those of the servers if not given."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address on which the page listens; 0.0.0.0 for every network.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 for a free one.")] = PORT,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name by which browsers call the page, such as a proxy's.")
    ] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score shown at first.")] = (
        SCORE_THRESHOLD
    ),
    lowest_score: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest score asked for, down to which the page can show.")
    ] = LOWEST_SCORE,
    max_megabytes: Annotated[int, typer.Option(min=1, max=1024, help="Largest picture taken, in MiB.")] = MAX_MEGABYTES,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 60.0,
    retries: Retries = RETRIES,
    header_file: HeaderFile = None,
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
) -> None:
    """Serve a page on which pictures are dropped and boxes are seen, until interrupted."""
    if score_threshold < lowest_score:
        raise CodetrError(
            f"--score-threshold {score_threshold:g} is below --lowest-score {lowest_score:g}, which is all that is "
            "asked for; give a lower --lowest-score"
        )
    from codetr.page.options import PageOptions, Reach

    reach = access(header_file, ca_file, certificate_file, key_file, server_name, retries)
    show_page(
        PageOptions(
            urls=url or [None],
            models=model or [],
            reach=Reach(protocol, timeout, reach),
            host=host,
            port=port,
            allowed_hosts=allow_host or [],
            score_threshold=score_threshold,
            lowest_score=lowest_score,
            max_bytes=max_megabytes * 2**20,
        )
    )


def page_of(url: str) -> PageOptions:
    """Return a page on a free port of this machine for one server of this machine."""
    from codetr.page.options import PageOptions, Reach
    from perf.access import Access

    reach = Reach(None, 60.0, Access(retries=RETRIES))
    return PageOptions([url], [], reach, LOOPBACK, 0, [], SCORE_THRESHOLD, LOWEST_SCORE, MAX_MEGABYTES * 2**20)


def check_installed() -> None:
    """Raise CodetrError if the page's library is not installed."""
    if importlib.util.find_spec("aiohttp") is None:
        raise CodetrError("the page needs aiohttp, which is not installed: pip install -e '.[web]'")


def show_page(options: PageOptions) -> None:
    """Serve a page until interrupted, and print where it is."""
    check_installed()
    from codetr.page.server import run_page

    console = new_console(stderr=True)

    def announce(address: str) -> None:
        console.print(line("the page is at ", shown(address, "bold"), "; Ctrl-C ends it"), soft_wrap=True)
        if not resolve_host(options.host).is_loopback:
            console.print(shown(OPEN_WARNING, "yellow"), soft_wrap=True)

    def report(said: str) -> None:
        for row in said.rstrip().split("\n"):
            console.print(shown(row), soft_wrap=True)

    run_page(options, announce, report)
