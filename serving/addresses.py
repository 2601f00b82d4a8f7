"""Where a server listens: a host as the user names it, to a numeric address that each part of Triton understands."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import random
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass

from serving.errors import CodetrError
from serving.runtime import find_server

LOOPBACK = "127.0.0.1"
_FIRST_UNPRIVILEGED = 1024
_FIRST_FREE = 20_000  # below it services have their usual ports
_BROADCAST = "255.255.255.255"
_IPV6 = 6
_SIOCGIFADDR = 0x8915  # ioctl of Linux: an interface's IPv4 address


@dataclass(frozen=True)
class ListenAddress:
    """A numeric address to listen on; `ip` has no brackets."""

    ip: str

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an address of IPv6."""
        return ":" in self.ip

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.ip).is_loopback

    @property
    def local_ip(self) -> str:
        """The address at which clients on this machine reach the server."""
        if not ipaddress.ip_address(self.ip).is_unspecified:
            return self.ip
        return "::1" if self.is_ipv6 else LOOPBACK

    @property
    def for_http(self) -> str:
        """What Triton's HTTP and metrics endpoints take; anything else they would bind to 255.255.255.255."""
        return f"ipv6:{self.ip}" if self.is_ipv6 else self.ip

    @property
    def for_grpc(self) -> str:
        """What Triton's gRPC endpoint takes."""
        return bracketed(self.ip)


def bracketed(ip: str) -> str:
    """Return a numeric address as it stands before a port."""
    return f"[{ip}]" if ":" in ip else ip


def resolve_host(host: str) -> ListenAddress:
    """Return the address to listen on for what the user calls the host; of several the first of IPv4.

    Raises:
        CodetrError: it is no address of this machine; says what it is instead.
    """
    name = host.strip().removeprefix("[").removesuffix("]")
    if not name:
        raise CodetrError(f"host {host!r}: expected an address of this machine, such as {LOOPBACK}")
    if "%" in name:
        raise CodetrError(f"host {host!r} has a scope, which Triton's HTTP endpoint does not take; name another")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CodetrError(f"host {host!r} is no address of this machine ({reason}){_interface_hint(name)}") from error
    first = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # keeps the resolver's order otherwise
    ip = ipaddress.ip_address(str(first[4][0]))
    if ip.is_multicast or str(ip) == _BROADCAST:
        raise CodetrError(f"host {host!r} stands for many machines; expected an address of this one")
    if ip.version == _IPV6 and ip.is_link_local:
        raise CodetrError(f"host {host!r} needs a scope, which Triton's HTTP endpoint does not take; name another")
    return ListenAddress(str(ip))


def check_port(name: str, address: ListenAddress, port: int, option: str) -> None:
    """Check that a port can be listened on.

    Args:
        name: what is spoken there.
        address: where.
        port: the port.
        option: of the command line that names another.

    Raises:
        CodetrError: it cannot; names the cause and what to do.
    """
    if address.is_ipv6 and not _has_ipv6():  # binding to :: works even then
        raise CodetrError(f"{address.ip} is an address of IPv6, which is off on this machine; name one of IPv4")
    try:
        with socket.socket(socket.AF_INET6 if address.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.ip, port))
    except OSError as error:
        raise CodetrError(_why_unusable(name, address, port, option, error)) from error


def free_ports(count: int) -> list[int]:
    """Return ports that are free on loopback at this moment, all different.

    They are none of those that the system gives to connections and to whoever asks for any port, where there are
    others: a server takes its ports only when it has loaded its models.
    """
    ours = range(_FIRST_FREE, _first_of_the_system())
    drawn = random.SystemRandom().sample(ours, min(len(ours), 1000))
    found: list[int] = []
    with ExitStack() as probes:
        for port in (*drawn, *[0] * count):  # 0: any that the system gives
            if len(found) == count:
                break
            probe = probes.enter_context(socket.socket())
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                if not port:
                    raise
            else:
                found.append(probe.getsockname()[1])
    return found


def _first_of_the_system() -> int:
    """Return the first of the ports that the system gives away by itself (ip(7)); 0 where it does not say."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _why_unusable(name: str, address: ListenAddress, port: int, option: str, error: OSError) -> str:
    where = f"the {name} port {port} of {address.ip}"
    if error.errno == errno.EADDRINUSE:
        server = find_server(f"{bracketed(address.local_ip)}:{port}")
        owner = f"`codetr serve` on {server.repository} (process {server.pid})" if server else "another program"
        return f"{where} is taken by {owner}; name another with {option}"
    if error.errno == errno.EACCES and port < _FIRST_UNPRIVILEGED:
        return (
            f"{where} is for privileged programs, which user {os.getuid()} may not start; name one from "
            f"{_FIRST_UNPRIVILEGED} on with {option}"
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{address.ip} is no address of this machine; name another with --host"
    return f"{where} cannot be used ({error.strerror}); name another with {option}, or another address with --host"


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _interface_hint(name: str) -> str:
    """Return what to say of a name that is a network interface's, or an address with its port."""
    if name in (interface for _, interface in socket.if_nameindex()):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                request = struct.pack("256s", name.encode()[:15])
                ip = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:
            return f"; {name} is a network interface without an address of IPv4"
        return f"; {name} is a network interface, whose address is {ip}"
    host, _, port = name.rpartition(":")
    if host and port.isdigit():
        return "; name the port with --http-port, --grpc-port or --metrics-port"
    return ""
