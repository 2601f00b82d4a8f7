"""TLS and mutual TLS, of a CA made here, on both protocols and in both clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from codetr_client import Tls, errors
from codetr_client.errors import CodetrError
from tests.clients import fakes
from tests.clients.conftest import Call
from tests.clients.fakes import Certificates, FakeTriton

pytestmark = pytest.mark.usefixtures("_patient_probe")


@contextmanager
def encrypted(
    protocol: str, certificates: Certificates, wants_client: bool = False, name: str = "server", prefix: str = ""
) -> Iterator[tuple[FakeTriton, str]]:
    triton = FakeTriton()
    if protocol == "grpc":
        with fakes.grpc_server(triton, certificates.server_credentials(wants_client, name)) as port:
            yield triton, f"grpcs://localhost:{port}"
    else:
        with fakes.http_server(triton, certificates.server_context(wants_client, name), prefix) as port:
            yield triton, f"https://localhost:{port}{prefix}"


def test_a_server_whose_ca_is_known_is_asked(call: Call, protocol: str, certificates: Certificates) -> None:
    with encrypted(protocol, certificates) as (triton, url):
        image = bytes(3 << 20)
        assert call("detect", image, url=url, tls=Tls(certificates.ca_pem)).names == ("dog",)
        assert triton.seen[0].images == (image,)
        assert len(call("detect", b"a", url=url.partition("://")[2], protocol=protocol, tls=Tls(certificates.ca_pem)))


def test_both_sides_show_certificates(call: Call, protocol: str, certificates: Certificates) -> None:
    tls = Tls(certificates.ca_pem, certificates.client_pem, certificates.client_key)
    with encrypted(protocol, certificates, wants_client=True) as (_, url):
        assert len(call("detect", b"a", url=url, tls=tls)) == 1


def test_a_certificate_for_another_name_is_refused_unless_that_is_meant(
    call: Call, protocol: str, certificates: Certificates
) -> None:
    with encrypted(protocol, certificates, name="elsewhere") as (triton, url):
        with pytest.raises(
            errors.ServerTlsError, match=r"certificate is not for localhost; give .* as tls server_name"
        ):
            call("detect", b"a", url=url, tls=Tls(certificates.ca_pem))
        assert not triton.seen
        tls = Tls(certificates.ca_pem, server_name="detector.example")
        assert len(call("detect", b"a", url=url, tls=tls)) == 1


def test_an_unknown_ca_is_named(call: Call, protocol: str, certificates: Certificates) -> None:
    with encrypted(protocol, certificates) as (triton, url):
        for tls in (None, Tls(certificates.other_pem)):
            with pytest.raises(errors.ServerTlsError, match=r"no CA that is trusted here .*; give that CA's file as"):
                call("detect", b"a", url=url, tls=tls, retries=5)
    assert not triton.seen


def test_an_expired_certificate_is_named(call: Call, protocol: str, certificates: Certificates) -> None:
    with (
        encrypted(protocol, certificates, name="expired") as (_, url),
        pytest.raises(errors.ServerTlsError, match="expired; is this machine's clock right"),
    ):
        call("detect", b"a", url=url, tls=Tls(certificates.ca_pem))


def test_a_missing_client_certificate_is_named(call: Call, protocol: str, certificates: Certificates) -> None:
    with (
        encrypted(protocol, certificates, wants_client=True) as (_, url),
        pytest.raises(errors.ServerTlsError, match="wants a client certificate; give tls certificate_file and key"),
    ):
        call("detect", b"a", url=url, tls=Tls(certificates.ca_pem))


def test_a_client_certificate_of_another_ca_is_named(call: Call, protocol: str, certificates: Certificates) -> None:
    tls = Tls(certificates.ca_pem, certificates.stranger_pem, certificates.stranger_key)
    with (
        encrypted(protocol, certificates, wants_client=True) as (_, url),
        pytest.raises(errors.ServerTlsError, match="does not accept this client's certificate; it"),
    ):
        call("detect", b"a", url=url, tls=tls)


def test_tls_where_there_is_none_is_named(call: Call, server: Any) -> None:
    with pytest.raises(errors.ServerTlsError, match=f"not encrypted; give {server.protocol}://"):
        call("detect", b"a", url=f"{server.protocol}s://localhost:{server.port}")


def test_none_where_there_is_tls_is_named(call: Call, protocol: str, certificates: Certificates) -> None:
    for wants_client in (False, True):
        with (
            encrypted(protocol, certificates, wants_client) as (_, url),
            pytest.raises(errors.ServerTlsError, match=f"is encrypted; give {protocol}s://localhost"),
        ):
            call("detect", b"a", url=url.replace("s://", "://"))


def test_the_other_protocol_behind_tls_is_named(call: Call, protocol: str, certificates: Certificates) -> None:
    other = "http" if protocol == "grpc" else "grpc"
    with encrypted(other, certificates) as (_, url):
        address = url.partition("://")[2]
        with pytest.raises((errors.ServerProtocolError, errors.ServerTlsError), match="protocol"):
            call("detect", b"a", url=address, protocol=protocol, tls=Tls(certificates.ca_pem))


def test_a_path_prefix_holds_for_every_question(call: Call, certificates: Certificates) -> None:
    with encrypted("http", certificates, prefix="/vision/detect") as (triton, url):
        tls = Tls(certificates.ca_pem)
        call("check", url=url, tls=tls)
        assert call("detect", b"a", url=f"{url}/", tls=tls).names == ("dog",)
        assert triton.seen[0].path == "/vision/detect/v2/models/codetr/infer"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda c: Tls("/no/such.pem"), "tls ca_file /no/such.pem: cannot be read: No such file", id="none"
        ),
        pytest.param(lambda c: Tls(c.server_ext), r"tls ca_file .*server.ext: expected PEM", id="another file"),
        pytest.param(lambda c: Tls(c.server_key), r"tls ca_file .*server.key: expected certificates", id="a key as CA"),
        pytest.param(lambda c: Tls(certificate_file=c.client_pem), "certificate_file and key_file belong", id="no key"),
        pytest.param(
            lambda c: Tls(c.ca_pem, c.client_pem, c.server_key), "are no certificate with its key", id="another's key"
        ),
        pytest.param(
            lambda c: Tls(c.ca_pem, c.client_pem, c.locked_key),
            r"key_file .*locked.key: it is encrypted; expected a key without",
            id="a key with a password, which OpenSSL would ask for on the terminal",
        ),
    ],
)
def test_files_at_fault_are_errors_before_the_first_call(
    call: Call, protocol: str, certificates: Certificates, make: Any, message: str
) -> None:
    with pytest.raises(CodetrError, match=message):
        call("detect", b"a", url="localhost:1", protocol=protocol, tls=make(certificates))
