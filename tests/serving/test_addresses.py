from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from serving import addresses, runtime
from serving.addresses import ListenAddress, check_port, free_ports, resolve_host
from serving.errors import CodetrError
from serving.runtime import PrivateFolder, ServerRecord


@pytest.mark.parametrize(
    ("host", "ip"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("LOCALHOST", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::", "::"),
        (" 10.0.0.1 ", "10.0.0.1"),
    ],
)
def test_a_host_is_resolved_to_a_number(host: str, ip: str) -> None:
    """Triton binds HTTP to 255.255.255.255 for anything else."""
    assert resolve_host(host) == ListenAddress(ip)


def test_of_a_names_addresses_the_first_of_ipv4_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.3", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    assert resolve_host("box").ip == "10.0.0.2"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found[:1])
    assert resolve_host("box").ip == "fd00::1"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        pytest.param("", "host '': expected an address of this machine", id="empty"),
        pytest.param("no-such-host.invalid", "host 'no-such-host.invalid' is no address of this machine", id="unknown"),
        pytest.param("lo", "; lo is a network interface, whose address is 127.0.0.1", id="interface"),
        pytest.param("127.0.0.1:8000", "; name the port with --http-port", id="with a port"),
        pytest.param("fe80::1%lo", "has a scope, which Triton's HTTP endpoint does not take", id="scope"),
        pytest.param("fe80::1", "needs a scope, which Triton's HTTP endpoint does not take", id="without scope"),
        pytest.param("255.255.255.255", "stands for many machines", id="broadcast"),
        pytest.param("224.0.0.1", "stands for many machines", id="multicast"),
        pytest.param("a" * 300, "is no address of this machine", id="too long"),
        pytest.param("a..b", "is no address of this machine", id="no name"),
    ],
)
def test_what_is_no_address_is_named(host: str, message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        resolve_host(host)


def test_addresses_say_how_far_they_reach() -> None:
    assert ListenAddress("127.8.0.1").is_loopback
    assert ListenAddress("::1").is_loopback
    assert not ListenAddress("0.0.0.0").is_loopback
    assert not ListenAddress("::").is_loopback


def refused(address: str, port: int, error: OSError | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a port, whose use ends in an error."""

    class Socket(socket.socket):
        def bind(self, address: object) -> None:
            if error is not None:
                raise error

    if error is not None:
        monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(CodetrError) as caught:
        check_port("HTTP", ListenAddress(address), port, "--http-port")
    return str(caught.value)


def test_a_taken_port_is_named_with_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        expected = f"the HTTP port {port} of 127.0.0.1 is taken by another program; name another with --http-port"
        assert refused("127.0.0.1", port, None, monkeypatch) == expected
        assert "is taken by another program" in refused("0.0.0.0", port, None, monkeypatch)


def test_a_port_of_a_server_of_ours_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SHARED_MEMORY", tmp_path)
    folder = PrivateFolder()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        folder.write_record(ServerRecord(77, "127.0.0.1", port, 1, 2, None, "/r", tls=False))
        assert "is taken by `codetr serve` on /r (process 77);" in refused("127.0.0.1", port, None, monkeypatch)
    folder.close()


def test_free_ports_are_none_that_others_are_given_meanwhile() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert first < 21_000 or all(20_000 <= port < first for port in ports)


@pytest.mark.parametrize("room", [0, 1], ids=["none", "one, which is taken"])
def test_where_the_system_gives_all_ports_they_are_of_those(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(addresses, "_FIRST_FREE", port)
        monkeypatch.setattr(addresses, "_first_of_the_system", lambda: port + room)
        found = free_ports(3)
    assert len({*found, port}) == 4


def test_a_foreign_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused("192.0.2.1", free_ports(1)[0], None, monkeypatch)  # RFC 5737
    assert message == "192.0.2.1 is no address of this machine; name another with --host"


@pytest.mark.parametrize("address", ["::1", "::"])
def test_ipv6_that_is_off_is_no_taken_port(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(address, 8000, OSError(errno.EADDRNOTAVAIL, "x"), monkeypatch)
    assert message == f"{address} is an address of IPv6, which is off on this machine; name one of IPv4"


def test_a_privileged_port_says_who_may_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused("127.0.0.1", 80, PermissionError(errno.EACCES, "Permission denied"), monkeypatch)
    assert "port 80 of 127.0.0.1 is for privileged programs" in message
    assert "name one from 1024 on with --http-port" in message


def test_anything_else_is_said_with_the_systems_words(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused("127.0.0.1", 8000, OSError(errno.ENOBUFS, "No buffer space available"), monkeypatch)
    assert "cannot be used (No buffer space available)" in message
