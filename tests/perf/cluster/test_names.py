from __future__ import annotations

import socket
import struct

import pytest

from perf.cluster.names import NameServer, answer

A, AAAA = 1, 28


def question(kind: int, name: bytes = b"\x0bcodetr-pods\x00") -> bytes:
    """RFC 1035: a number, recursion desired, one question."""
    return struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", kind, 1)


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3"], []])
def test_every_address_is_told(addresses: list[str]) -> None:
    asked = question(A)
    told = answer(asked, addresses)
    number, flags, questions, answers, *_ = struct.unpack_from("!6H", told)
    assert (number, questions, answers) == (77, 1, len(addresses))
    assert flags & 0x8000, "it is an answer"
    assert not flags & 0x000F, "without an error"
    assert told[12 : len(asked)] == asked[12:]
    found = [socket.inet_ntoa(told[at + 12 : at + 16]) for at in range(len(asked), len(told), 16)]
    assert found == addresses


def test_there_are_no_addresses_of_ipv6() -> None:
    assert struct.unpack_from("!6H", answer(question(AAAA), ["127.0.0.2"]))[3] == 0


def test_it_answers_with_what_it_has_at_that_time() -> None:
    with NameServer(["127.0.0.2"]) as names, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        for expected in (["127.0.0.2"], ["127.0.0.3", "127.0.0.4"]):
            names.addresses[:] = expected
            client.sendto(question(A), ("127.0.0.1", names.port))
            assert client.recv(4096) == answer(question(A), expected)
