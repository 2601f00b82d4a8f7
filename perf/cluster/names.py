"""A name server for one name, in a thread: a cluster's DNS, which tells clients and proxies the addresses of pods."""

from __future__ import annotations

import socket
import struct
import threading

from serving.addresses import LOOPBACK

_HEADER = struct.Struct("!6H")
_RECURSION_DESIRED, _ANSWER = 0x0100, 0x8480  # an authoritative answer; recursion is at hand
_A, _IN = 1, 1


class NameServer:
    """Answers every question for addresses of IPv4 with `addresses`, which may change while it runs.

    Other questions, such as those for IPv6, get an answer without addresses. `port` is where it listens, UDP.
    """

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.sendto(b"", (LOOPBACK, self.port))  # closing alone would leave it waiting
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(4096)
            if not question:
                return
            self._socket.sendto(answer(question, list(self.addresses)), client)


def answer(question: bytes, addresses: list[str], seconds: int = 1) -> bytes:
    """Return the answer to a question of one name (RFC 1035, section 4): its addresses, which hold for `seconds`."""
    number, flags = struct.unpack_from("!2H", question)
    end = question.index(b"\0", _HEADER.size) + 5  # the name, its type and its class
    asked = question[_HEADER.size : end]
    found = addresses if asked[-4:] == struct.pack("!2H", _A, _IN) else []
    header = _HEADER.pack(number, _ANSWER | (flags & _RECURSION_DESIRED), 1, len(found), 0, 0)
    # 0xC00C points to the name in the question
    records = (struct.pack("!3HIH", 0xC00C, _A, _IN, seconds, 4) + socket.inet_aton(each) for each in found)
    return header + asked + b"".join(records)
