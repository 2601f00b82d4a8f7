"""gRPC for threads and for asyncio."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any

from codetr_client import grpc_wire
from codetr_client.deadline import Deadline
from codetr_client.errors import ClientStateError, CodetrError
from codetr_client.faults import Faults
from codetr_client.wire import Ask, Endpoint

# grpcio's own words for yes, in src/python/grpcio/grpc/_cython/_cygrpc/fork_posix.pyx.pxi
_YES = frozenset({"yes", "Yes", "YES", "true", "True", "TRUE", "1"})
FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"
# Seconds that gRPC itself gets to end a call whose time is over, before it is left alone.
GRACE = 0.5


class _Process:
    """What is known about gRPC in this process."""

    made_channels = False  # here, or in a process this one is a fork of
    is_fork_of_it = False  # of one in which this module had made channels
    is_fork_with_grpc = False  # of one that had at least imported grpc


def _in_child() -> None:
    _Process.is_fork_of_it = _Process.is_fork_of_it or _Process.made_channels
    _Process.is_fork_with_grpc = _Process.is_fork_with_grpc or "grpc" in sys.modules


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)


def _check_fork() -> None:
    """Raise ClientStateError in a fork of a process that used gRPC: a channel would hang, the parent's break."""
    if _Process.is_fork_of_it and os.environ.get(FORK_SUPPORT) not in _YES:
        raise ClientStateError(
            "this process is a fork of one that used gRPC, which does not work after a fork: use protocol 'http', "
            f"multiprocessing's 'spawn', or start Python with {FORK_SUPPORT}=1"
        )


class GrpcTransport:
    """Answers questions over one gRPC channel, which any thread may use."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._faults = Faults(endpoint)
        self._is_closed = False
        self._connect()

    def _connect(self) -> None:
        _check_fork()
        self._grpc, self._messages, stubs = grpc_wire.library()
        _Process.made_channels = True
        self._channel = grpc_wire.channel(self._grpc, self._grpc, self._endpoint)
        self._stub = stubs.GRPCInferenceServiceStub(self._channel)

    def after_fork(self) -> None:
        """Make a channel of this process, where grpcio supports that; raises ClientStateError elsewhere."""
        self._connect()

    def close(self) -> None:
        """Close the channel; calls under way end with an error."""
        self._is_closed = True
        self._channel.close()

    def send(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Return the answer to one question; raises a ServiceError."""
        message = grpc_wire.request(self._messages, ask)
        metadata = grpc_wire.metadata(self._endpoint, headers)
        left = deadline.left()
        if not left:
            raise self._faults.timed_out()
        call = getattr(self._stub, grpc_wire.METHODS[ask.what])
        try:
            if _Process.is_fork_with_grpc:
                answer = self._guarded(call, message, metadata, left)
            else:
                answer = call(message, timeout=left, metadata=metadata)
        except self._grpc.RpcError as error:
            raise failure(self._faults, ask, error, self._is_closed) from None
        except ValueError as error:  # "Cannot invoke RPC on closed channel!"
            raise closed_meanwhile() from error
        return grpc_wire.read(self._endpoint, ask, answer)

    def _guarded(self, call: Any, message: Any, metadata: Any, left: float) -> Any:
        """Call in a process in which gRPC may be dead, because a parent used it without this package."""
        future = call.future(message, timeout=left, metadata=metadata)
        try:
            return future.result(left + GRACE)
        except self._grpc.FutureTimeoutError as error:
            future.cancel()
            raise self._faults.timed_out("gRPC may not work in this process, which is a fork") from error


class AsyncGrpcTransport:
    """Answers questions over one gRPC channel, within one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        _check_fork()
        self._endpoint = endpoint
        self._faults = Faults(endpoint)
        self._is_closed = False
        self._grpc, self._messages, stubs = grpc_wire.library()
        _Process.made_channels = True
        self._channel = grpc_wire.channel(self._grpc.aio, self._grpc, endpoint)
        self._stub = stubs.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls under way end with an error."""
        self._is_closed = True
        await self._channel.close()

    async def send(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Return the answer to one question; raises a ServiceError."""
        message = grpc_wire.request(self._messages, ask)
        metadata = grpc_wire.metadata(self._endpoint, headers)
        left = deadline.left()
        if not left:
            raise self._faults.timed_out()
        call = getattr(self._stub, grpc_wire.METHODS[ask.what])(message, timeout=left, metadata=metadata)
        try:
            answer = await call
        except self._grpc.RpcError as error:
            raise failure(self._faults, ask, error, self._is_closed) from None
        except self._grpc.aio.UsageError as error:  # the channel is closed
            raise closed_meanwhile() from error
        except asyncio.CancelledError:
            # grpcio raises this too where the channel was closed, which nobody outside has asked of the call
            if self._is_closed and not _is_being_cancelled():
                raise closed_meanwhile() from None
            raise
        return grpc_wire.read(self._endpoint, ask, answer)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    cancelling = getattr(task, "cancelling", None)  # from Python 3.11 on
    return cancelling is None or bool(cancelling())


def closed_meanwhile() -> ClientStateError:
    """Return the error of a call whose client was closed under it."""
    return ClientStateError("the client was closed while a call was under way")


def failure(faults: Faults, ask: Ask, error: Any, is_closed: bool) -> CodetrError:
    """Return the typed error of an RpcError."""
    code = error.code().name
    if code == "CANCELLED" and is_closed:
        return closed_meanwhile()
    return faults.from_grpc(ask, code, error.details() or "")
