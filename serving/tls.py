"""TLS of the gRPC endpoint: the files are checked before a server starts with them. Triton's HTTP has no TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from codetr_client.inputs import read_file
from serving.errors import CodetrError

_MOST_BYTES = 16 << 20  # of a file in PEM; a system's whole list of authorities has less


@dataclass(frozen=True)
class TlsFiles:
    """What the gRPC endpoint shows and asks for, in PEM.

    Attributes:
        cert: its certificate, with those between it and the authority.
        key: the certificate's private key.
        authority: where given, clients must show a certificate of this authority (mutual TLS).
    """

    cert: Path
    key: Path
    authority: Path | None = None

    def check(self) -> None:
        """Check that the files can be read and belong together.

        Raises:
            CodetrError: names the file and what is wrong.
        """
        for path in filter(None, (self.cert, self.key, self.authority)):
            try:
                read_file(path, _MOST_BYTES)
            except OSError as error:
                raise CodetrError(f"{path} cannot be read ({error.strerror}); expected a file in PEM") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # without a password to give, OpenSSL would ask the terminal
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            raise CodetrError(
                f"{self.cert} and {self.key} are no certificate and its private key in PEM without a password "
                f"({_reason(error)})"
            ) from error
        try:
            if self.authority is not None:
                context.load_verify_locations(self.authority)
        except ssl.SSLError as error:
            raise CodetrError(f"{self.authority} holds no certificate in PEM ({_reason(error)})") from error

    def options(self) -> list[str]:
        """Return tritonserver's options for it."""
        files = [f"--grpc-server-cert={self.cert.absolute()}", f"--grpc-server-key={self.key.absolute()}"]
        if self.authority is None:
            return ["--grpc-use-ssl=true", *files]
        return ["--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={self.authority.absolute()}"]


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).replace("_", " ").lower()
