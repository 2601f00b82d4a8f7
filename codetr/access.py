"""The options of commands that talk to a server which wants credentials or TLS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from perf.access import Access

URL_HELP = "host:port, or a url of http://, https://, grpc:// or grpcs://; Triton's port on this machine if not given."
HeaderFile = Annotated[
    Path | None,
    typer.Option(help="File with lines `name: value`, sent with every request; tokens belong there, not here."),
]
CaFile = Annotated[Path | None, typer.Option(help="PEM file of the CAs to trust; the connection is encrypted then.")]
CertificateFile = Annotated[Path | None, typer.Option(help="PEM file of the client's own certificate.")]
KeyFile = Annotated[Path | None, typer.Option(help="PEM file of its key.")]
ServerName = Annotated[str | None, typer.Option(help="What the server's certificate is for, if not the url's host.")]
RETRIES = 8  # their waits are up to 16 s: longer than a step of the server takes to be started again
Retries = Annotated[
    int, typer.Option(min=0, help="How often a request is repeated where the server is busy, away or loading.")
]


def access(
    header_file: Path | None,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
    server_name: str | None,
    retries: int = 0,
) -> Access:
    """Return what the options say."""
    from perf.access import Access

    return Access(
        header_file=_text(header_file),
        ca_file=_text(ca_file),
        certificate_file=_text(certificate_file),
        key_file=_text(key_file),
        server_name=server_name,
        retries=retries,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
