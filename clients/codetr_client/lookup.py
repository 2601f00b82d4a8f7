"""Names to addresses, with a time limit: the system's own lookup has none that a caller could set."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from codetr_client.deadline import Deadline

# family, and what `socket.connect` takes
Address: TypeAlias = tuple[int, Any]


def _look_up(host: str, port: int, done: Callable[[list[Address] | OSError], object]) -> None:
    # A daemon, because it may outlast the call, which must not keep the program from ending.
    def work() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            done(error)
        except UnicodeError:
            done(socket.gaierror(socket.EAI_NONAME, "no name that DNS could know"))
        else:
            done([(family, address) for family, _, _, _, address in found])

    threading.Thread(target=work, name=f"lookup of {host}", daemon=True).start()


def _is_number(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def addresses(host: str, port: int, deadline: Deadline) -> list[Address]:
    """Return the addresses of a host.

    Raises:
        TimeoutError: the deadline came first.
        OSError: there are none.
    """
    if _is_number(host):  # needs no thread: nobody is asked
        return [(info[0], info[4]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    found: queue.SimpleQueue[list[Address] | OSError] = queue.SimpleQueue()
    _look_up(host, port, found.put)
    try:
        result = found.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, OSError):
        raise result
    return result


async def addresses_awaited(host: str, port: int) -> list[Address]:
    """Return the addresses of a host; raises OSError if there are none."""
    if _is_number(host):
        return [(info[0], info[4]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Address] | OSError] = loop.create_future()

    def deliver(result: list[Address] | OSError) -> None:
        if not found.done():  # nobody waits any more
            found.set_result(result)

    def done(result: list[Address] | OSError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver, result)

    _look_up(host, port, done)
    result = await found
    if isinstance(result, OSError):
        raise result
    return result
