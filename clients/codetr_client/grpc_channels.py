"""gRPC for threads and for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from codetr_client import forks, grpc_wire
from codetr_client.deadline import Deadline
from codetr_client.errors import ClientStateError, CodetrError
from codetr_client.faults import Faults
from codetr_client.wire import Ask, Endpoint

# Seconds that gRPC itself gets to end a call whose time is over, before it is left alone.
GRACE = 0.5


class GrpcTransport:
    """Answers questions over one gRPC channel, which any thread may use."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._faults = Faults(endpoint)
        self._is_closed = False
        self._connect()

    def _connect(self) -> None:
        self._grpc, self._messages, stubs = grpc_wire.library()
        forks.note_channel()
        self._channel = grpc_wire.channel(self._grpc, self._grpc, self._endpoint)
        self._stub = stubs.GRPCInferenceServiceStub(self._channel)

    def after_fork(self) -> None:
        """Make a channel of this process, where grpcio supports that; raises ClientStateError elsewhere."""
        forks.check()
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
            if forks.is_doubtful():
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
        self._endpoint = endpoint
        self._faults = Faults(endpoint)
        self._is_closed = False
        self._grpc, self._messages, stubs = grpc_wire.library()
        forks.note_channel()
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
