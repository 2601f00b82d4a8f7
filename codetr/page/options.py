"""What a page is made of, and how it reaches servers; nothing here needs the web library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from codetr_client.aio import AsyncCoDetrClient
from codetr_client.wire import Protocol
from perf.access import Access

CHECK_TIMEOUT = 3.0  # seconds; of a question about state


@dataclass(frozen=True)
class Reach:
    """How servers are reached: what holds for every question."""

    protocol: Protocol | None
    timeout: float
    access: Access

    def client(self, url: str | None, model: str) -> AsyncCoDetrClient:
        """Return what detects."""
        return self.access.async_client(url, self.protocol, self.timeout, None, model)

    def checker(self, url: str | None, model: str) -> AsyncCoDetrClient:
        """Return what asks for the state, once and not for long."""
        return replace(self.access, retries=0).async_client(url, self.protocol, CHECK_TIMEOUT, None, model)


@dataclass(frozen=True)
class PageOptions:
    """What the page is, and for whom.

    urls: of model servers, as the client takes them; None is Triton's port on this machine.
    models: names of ensembles; () for those that the servers have.
    reach: how the servers are reached.
    host, port: where the page listens; port 0 for a free one.
    allowed_hosts: names by which browsers may call the page, beside this machine's.
    score_threshold: what the page shows at first.
    lowest_score: what is asked of the servers, so that the page can show less or more without asking again.
    max_bytes: of one picture.
    """

    urls: Sequence[str | None]
    models: Sequence[str]
    reach: Reach
    host: str
    port: int
    allowed_hosts: Sequence[str]
    score_threshold: float
    lowest_score: float
    max_bytes: int
