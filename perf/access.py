"""How commands reach a server beyond its address: credentials, certificates, repeats."""

from __future__ import annotations

from dataclasses import dataclass

from codetr_client.aio import AsyncCoDetrClient
from codetr_client.client import CoDetrClient
from codetr_client.inputs import read_file
from codetr_client.options import Tls
from codetr_client.text import decode_text
from codetr_client.wire import ClassNames, Endpoint, Protocol, endpoint
from serving.errors import CodetrError

_HEADER_BYTES = 1 << 20  # far more than a server takes


@dataclass(frozen=True)
class Access:
    """Files and numbers only: a token is in no command line, no report and no environment.

    header_file: lines `name: value`, sent with every request. ca_file, certificate_file, key_file, server_name: as
    `codetr_client.Tls` has them. retries: as `CoDetrClient` has them.
    """

    header_file: str | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    retries: int = 0

    @property
    def tls(self) -> Tls | None:
        """How the connection is encrypted; None: as the url says."""
        if not any((self.ca_file, self.certificate_file, self.key_file, self.server_name)):
            return None
        return Tls(self.ca_file, self.certificate_file, self.key_file, self.server_name)

    def headers(self) -> dict[str, str]:
        """Return the headers of the file; raises CodetrError if it cannot be read, without showing what it holds."""
        if self.header_file is None:
            return {}
        try:
            lines = decode_text(read_file(self.header_file, _HEADER_BYTES)).splitlines()
        except (OSError, ValueError) as error:
            raise CodetrError(f"header_file {self.header_file}: cannot be read: {error}") from error
        headers: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            name, found, value = line.partition(":")
            if not line.strip():
                continue
            if not found:
                raise CodetrError(f"header_file {self.header_file}, line {number}: expected `name: value`")
            headers[name.strip()] = value.strip()
        return headers

    def endpoint(self, url: str | None, protocol: Protocol | None, timeout: float, model: str) -> Endpoint:
        """Return the checked endpoint."""
        return endpoint(url, protocol, timeout, model, self.headers(), self.tls, self.retries)

    def client(
        self, url: str | None, protocol: Protocol | None, timeout: float, class_names: ClassNames, model: str
    ) -> CoDetrClient:
        """Return a client."""
        return CoDetrClient(
            url, protocol, timeout, class_names, model, headers=self.headers(), tls=self.tls, retries=self.retries
        )

    def async_client(
        self, url: str | None, protocol: Protocol | None, timeout: float, class_names: ClassNames, model: str
    ) -> AsyncCoDetrClient:
        """Return a client for asyncio."""
        return AsyncCoDetrClient(
            url, protocol, timeout, class_names, model, headers=self.headers(), tls=self.tls, retries=self.retries
        )
