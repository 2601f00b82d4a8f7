"""What went wrong, from what transports and servers say, as the exceptions of `codetr_client.errors`."""

from __future__ import annotations

import errno
import json
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from codetr_client import contract, errors
from codetr_client.http_wire import Response
from codetr_client.wire import DEFAULT_PORTS, MAX_ANSWER_BYTES, METRICS_PORT, Ask, Endpoint


class DeadlinePassedError(errors.ServerTimeoutError):
    """The server found, by its clock, that the request's deadline had passed before it was computed."""


class UnexplainedError(errors.ServerUnreachableError):
    """A connection that ended without a word: another protocol is spoken there, or the server stopped."""

    likely: type[errors.ServerUnreachableError] = errors.ServerUnreachableError

    def plain(self) -> errors.ServerUnreachableError:
        """Return the same as what users see."""
        return self.likely(str(self))


@dataclass(frozen=True)
class Faults:
    """Says what went wrong with questions to one endpoint."""

    endpoint: Endpoint

    def timed_out(self, doing: str = "") -> errors.ServerTimeoutError:
        """Return the error of a call whose time is over; `doing` says what took it, if that is known."""
        while_ = f": {doing}" if doing else ""
        return errors.ServerTimeoutError(
            f"no answer from {self.endpoint.address} within {self.endpoint.timeout:g} s{while_}"
        )

    def refused(self) -> errors.ServerUnreachableError:
        """Return the error of a port at which nothing listens."""
        hint = "`codetr serve` starts one"
        if not self.endpoint.is_local:
            hint = "does the server run there, and listen on more than its own loopback?"
        return self._unreachable("connection refused", hint)

    def unknown_host(self, reason: str) -> errors.ServerUnreachableError:
        """Return the error of a name that has no address."""
        return self._unreachable(
            f"the name {self.endpoint.host} cannot be resolved ({reason})", "correct it, or this machine's DNS"
        )

    def broken_off(self, reason: str) -> UnexplainedError:
        """Return the error of a connection that ended before the answer did."""
        hint = "the server stopped, or something between closed the connection"
        return UnexplainedError(str(self._unreachable(f"the connection broke off {reason}", hint)))

    def encrypted(self) -> errors.ServerTlsError:
        """Return the error of a plain question to a server with TLS."""
        protocol, address = self.endpoint.protocol, self.endpoint.address
        return errors.ServerTlsError(
            f"no {protocol} at {address}: what answers there is encrypted; give {protocol}s://{address}"
        )

    def from_os(self, error: OSError) -> errors.ServiceError:
        """Return the error of a socket's."""
        if isinstance(error, ssl.SSLError):
            return self.from_tls(error)
        if isinstance(error, TimeoutError):  # the system's own, after minutes
            return self._unreachable("the connection timed out", "is the address right, and does a firewall drop it?")
        if isinstance(error, ConnectionRefusedError):
            return self.refused()
        if isinstance(error, ConnectionError):
            return self.broken_off(f"({error.strerror or 'reset'})")
        if isinstance(error, socket.gaierror):
            return self.unknown_host(error.strerror or str(error))
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return self._unreachable(str(error.strerror).lower(), "is the address right, and this machine connected?")
        return self._unreachable(error.strerror or str(error), "is the address right?")

    def from_tls(self, error: ssl.SSLError) -> errors.ServiceError:
        """Return the error of a handshake over HTTP."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return self.bad_certificate(error.verify_message)
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return self.broken_off("within TLS")
        return self.tls_text(error.reason or str(error))

    def tls_text(self, reason: str) -> errors.ServerTlsError | errors.ServerProtocolError:
        """Return the error that OpenSSL's or BoringSSL's words for a failed handshake stand for."""
        upper = reason.upper().replace(" ", "_")
        address, protocol = self.endpoint.address, self.endpoint.protocol
        if re.search(r"WRONG_VERSION|HTTP_REQUEST|RECORD_LAYER_FAILURE|UNEXPECTED_MESSAGE|PACKET_LENGTH", upper):
            return errors.ServerTlsError(
                f"no TLS with {address}: what answers there is not encrypted; give {protocol}:// in place of "
                f"{protocol}s://, or the port with TLS"
            )
        if "APPLICATION_PROTOCOL" in upper or "ALPN" in upper:
            return self.other_protocol("it speaks TLS, but the other protocol")
        if re.search(r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE", upper):
            return errors.ServerTlsError(
                f"no TLS with {address}: the server wants a client certificate; give tls certificate_file and key_file"
            )
        if re.search(r"ALERT_(UNKNOWN_CA|BAD_CERT|CERTIFICATE|UNSUPPORTED_CERT|DECRYPT_ERROR|ACCESS_DENIED)", upper):
            return errors.ServerTlsError(
                f"no TLS with {address}: the server does not accept this client's certificate; it trusts another CA, "
                "or the certificate has expired"
            )
        return errors.ServerTlsError(f"no TLS with {address}: {reason}")

    def bad_certificate(self, reason: str) -> errors.ServerTlsError:
        """Return the error of a server's certificate that does not hold."""
        lower, tls = reason.lower(), self.endpoint.tls
        name = (tls and tls.server_name) or self.endpoint.host
        if re.search(r"mismatch|not in peer certificate|not valid for|name check|hostname", lower):
            what = f"its certificate is not for {name}; give the name that it is for as tls server_name"
        elif "expired" in lower or "not yet valid" in lower:
            what = f"{reason}; is this machine's clock right?"
        else:
            what = f"no CA that is trusted here signed its certificate ({reason}); give that CA's file as tls ca_file"
        return errors.ServerTlsError(f"no TLS with {self.endpoint.address}: {what}")

    def not_http(self, first: bytes) -> errors.ServerUnreachableError:
        """Return the error of an answer over HTTP whose first bytes are those of something else."""
        # HTTP/2 begins with a frame of type SETTINGS: three bytes of length, then 4
        if len(first) >= 4 and first[3] == 4 and first[0] == 0:
            return self.other_protocol("it speaks gRPC, not HTTP/1")
        if first[:2] == b"\x15\x03":
            return self.encrypted()
        return self.other_protocol("what answers there is not HTTP")

    def other_protocol(self, what: str, has_kserve: bool = True) -> errors.ServerProtocolError:
        """Return the error of a port at which something else speaks; `has_kserve`: what it speaks may be Triton's."""
        protocol: str = self.endpoint.protocol
        other = "http" if protocol == "grpc" else "grpc"
        usual = f"the port for {protocol}, Triton's {DEFAULT_PORTS[self.endpoint.protocol]}"
        hint = f"give protocol {other}, or {usual}" if has_kserve else f"{_METRICS}; give {usual}"
        return errors.ServerProtocolError(f"no {protocol} at {self.endpoint.address}: {what}; {hint}")

    def from_http(self, ask: Ask, response: Response) -> errors.ServiceError:
        """Return the error of an HTTP answer that is no success: the server's own has a JSON object with `error`."""
        message = _triton_message(response)
        if message in ("Not Found", "Method Not Allowed"):  # the server's words for a path, not for a model
            return self._from_proxy(response)
        if ask.what == "ready" and response.status == 400:
            return self.endpoint.not_ready(ask.model)  # Triton does not say here whether it knows the model
        if message is not None:
            return self.from_server(ask, _STATUS.get(response.status, str(response.status)), message)
        return self._from_proxy(response)

    def _from_proxy(self, response: Response) -> errors.ServiceError:
        status, address = response.status, self.endpoint.address
        server, kind = response.headers.get("server"), response.headers.get("content-type")
        by = "".join(f", {each[:60]}" for each in (server, kind) if each)
        said = f"{address} answers with HTTP status {status}{by}"
        if status in (401, 403, 407):
            return errors.RequestDeniedError(f"{said}: what stands before the server wants credentials; give headers")
        if status == 413:
            return errors.RequestRefusedError(f"{said}: the request is larger than it takes; send smaller images")
        if status in (429, 503):
            return errors.ServerBusyError(f"{address} turned the request away: HTTP status {status}{by}")
        if status in (502, 504):
            return self._unreachable(f"a proxy answers with status {status}{by}", "does the server behind it run?")
        if 300 <= status < 400:
            target = urlsplit(response.headers.get("location", ""))
            where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}"
            return errors.ServerProtocolError(f"{said} and points to {where}, which is not followed; give that url")
        if status in (404, 405):
            return errors.ServerProtocolError(
                f"{said}: no Triton behind this path; {_METRICS}; give the port for http, Triton's "
                f"{DEFAULT_PORTS['http']}, or behind a proxy the right path prefix in the url"
            )
        if status >= 500:
            return errors.ServerFaultError(said)
        return errors.ServerProtocolError(f"{said}, which Triton does not; give the server's own address")

    def from_grpc(self, ask: Ask, code: str, details: str) -> errors.ServiceError:
        """Return the error of a gRPC status, which the server sent or grpcio made up."""
        details = " ".join(details.split())
        proxy = re.search(r"Received http2 header with status: (\d{3})", details)
        if proxy:
            return self._from_proxy(Response(int(proxy[1]), {}, b""))
        if code == "DEADLINE_EXCEEDED":
            return self.timed_out()
        if "larger than max" in details:  # grpcio's words on both sides; the answer's limit is ours
            if details.startswith("CLIENT"):
                return errors.ServerAnswerError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
            return errors.RequestRefusedError(f"the request is larger than the server takes: {details}")
        if code == "UNAVAILABLE" and (local := self._from_channel(details)):
            return local
        return self.from_server(ask, code, details)

    def _from_channel(self, details: str) -> errors.ServiceError | None:
        """Return the error that grpcio itself met, or None for what the server sent with the same status."""
        if re.search(r"http1\.x server|first frame|Failed parsing HTTP/2", details):
            what = "it speaks HTTP/1, not gRPC" if "http1" in details else "what answers there is not gRPC"
            unexplained = UnexplainedError(str(self.other_protocol(what)))
            unexplained.likely = errors.ServerProtocolError
            return unexplained
        if "too_many_pings" in details:
            return self._unreachable(
                "it closed the connection because of too many keepalive pings",
                "give a longer keepalive, or the server --grpc-http2-min-recv-ping-interval-without-data",
            )
        if re.search(r"resolving|resolution|hostname lookup", details):
            reason = re.search(r"(Domain name not found|[^:\]]+)\]*$", details)
            return self.unknown_host(reason[1].strip() if reason else details)
        if re.search(r"handshake|SSL|TLS|ALPN|Peer name|[Hh]ostname [Vv]erification", details):
            verdict = re.search(r"CERTIFICATE_VERIFY_FAILED: (.*?)(: OK)?$", details)
            if verdict or re.search(r"[Vv]erif|Peer name", details.split("context: OK")[0].replace("verification", "")):
                return self.bad_certificate(verdict[1] if verdict else details)
            return self.tls_text(details)
        if "Connection refused" in details:
            return self.refused()
        last = re.sub(r"^[A-Z_]+: ", "", details.split("last error: ")[-1])
        if re.search(r"No route|unreachable", details):
            return self._unreachable(last, "is the address right, and this machine connected?")
        if re.search(r"failed to connect|Socket closed|reset|[Bb]roken pipe|GOAWAY|Stream removed|recvmsg", details):
            return self.broken_off(f"({last})")
        if re.search(r"[Kk]eepalive|[Pp]ing timeout|closed|shutdown|shutting down|Transport", details):
            return self.broken_off(f"({last})")
        return None

    def from_server(self, ask: Ask, status: str, message: str) -> errors.ServiceError:
        """Return the error that the server itself answers with."""
        message = re.sub(r"^\[request id: [^\]]*\] ", "", " ".join(message.split()))
        if "restricted, expecting header" in message:
            return errors.RequestDeniedError(f"{self.endpoint.address}: {message}; give that header")
        if contract.DEADLINE_PASSED in message:
            return DeadlinePassedError(f"{self.endpoint.address} turned the request away: {message}")
        if re.search(r"has no available versions|is not at ready state|is not ready", message):
            return self.endpoint.not_ready(ask.model)
        if re.search(r"Stub process .*is not healthy", message):  # Triton says INTERNAL until the step is loaded anew
            return errors.ModelNotReadyError(
                f"model '{ask.model}' at {self.endpoint.address} is not ready: a step of it died: {message}"
            )
        if status == "NOT_FOUND":
            return errors.ModelNotFoundError(f"no model '{ask.model}' at {self.endpoint.address}: {message}")
        if status == "DEADLINE_EXCEEDED":
            return self.timed_out()
        if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return errors.RequestDeniedError(
                f"{self.endpoint.address}: {message or status}; give credentials as headers"
            )
        if status in ("INVALID_ARGUMENT", "OUT_OF_RANGE"):
            return errors.RequestRefusedError(message)
        if status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") or re.search(
            r"maximum queue size|timeout expired", message, re.IGNORECASE
        ):
            return errors.ServerBusyError(f"{self.endpoint.address} turned the request away: {message or status}")
        if status == "UNIMPLEMENTED" and not message.strip():
            return self.other_protocol("it speaks gRPC, but is no Triton")
        return errors.ServerFaultError(message or f"{self.endpoint.address} answers with status {status}")

    def _unreachable(self, reason: str, hint: str) -> errors.ServerUnreachableError:
        protocol, address = self.endpoint.protocol, self.endpoint.address
        return errors.ServerUnreachableError(f"no server answers {protocol} at {address}: {reason}; {hint}")


_METRICS = f"Triton's port {METRICS_PORT} is for its metrics page"
# What Triton's HTTP status stands for; 401 and 403 as gRPC has them.
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _triton_message(response: Response) -> str | None:
    try:
        document = json.loads(response.body)
    except (ValueError, RecursionError):
        return None
    message = document.get("error") if isinstance(document, dict) else None
    return message if isinstance(message, str) else None
