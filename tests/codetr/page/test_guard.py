"""Whose requests the page's server answers."""

from __future__ import annotations

import pytest

from codetr.page.guard import BODY_TYPE, HEADERS, names_of, refusal
from serving.addresses import ListenAddress
from serving.errors import CodetrError

LOOPBACK = ListenAddress("127.0.0.1")
OPEN = ListenAddress("0.0.0.0")


def status(
    host: str, method: str = "GET", path: str = "/api/state", address: ListenAddress = LOOPBACK, **headers: str
) -> int | None:
    """What a request is refused with; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    names = names_of(address, address.ip, ["page.example"])
    refused = refusal(method, path, {"Host": host, **named}, names, address.is_loopback)
    return None if refused is None else refused.status


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "127.0.0.1:8080",
        "127.0.0.2",
        "[::1]:80",
        "LOCALHOST:9",
        "page.example",
        "localhost.",
    ],
)
def test_the_pages_own_names_are_answered(host: str) -> None:
    assert status(host) is None


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("evil.example:8080", id="a name that was made to point here"),
        pytest.param("localhost.evil.example", id="one that begins well"),
        pytest.param("page.example.evil", id="one that ends elsewhere"),
        pytest.param("10.0.0.1:8080", id="another network"),
        pytest.param("", id="none"),
        pytest.param("a@localhost", id="a user"),
        pytest.param("localhost/x", id="a path"),
        pytest.param("localhost:x", id="no port"),
        pytest.param("[::1", id="half an address"),
        pytest.param("127.1", id="a short form, which browsers write in full"),
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert status(host) == 421


def test_open_to_others_numbers_are_answered_and_foreign_names_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Desk")
    assert status("10.0.0.1:8080", address=OPEN) is None, "no DNS stands behind a number"
    assert status("desk:8080", address=OPEN) is None
    assert status("desk:8080") == 421, "on loopback nobody else calls it"
    assert status("evil.example", address=OPEN) == 421


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, None, id="a program"),
        pytest.param({"Origin": "http://localhost:8080"}, None, id="the page"),
        pytest.param({"Origin": "https://localhost:8080"}, None, id="the page behind a proxy with TLS"),
        pytest.param({"Origin": "http://localhost:8081"}, 403, id="another port of this machine"),
        pytest.param({"Origin": "http://evil.example"}, 403, id="another site"),
        pytest.param({"Origin": "null"}, 403, id="a sandboxed frame, a file"),
        pytest.param({"Origin": ""}, 403, id="an empty one"),
        pytest.param({"Sec_Fetch_Site": "same-origin"}, None, id="the page, as the browser says"),
        pytest.param({"Sec_Fetch_Site": "cross-site"}, 403, id="another site, as the browser says"),
        pytest.param({"Sec_Fetch_Site": "same-site"}, 403, id="another port, as the browser says"),
        pytest.param({"Sec_Fetch_Site": "none"}, 403, id="no page at all"),
    ],
)
def test_no_other_page_sends_pictures(headers: dict[str, str], expected: int | None) -> None:
    sent = {"Content_Type": BODY_TYPE, **headers}
    assert status("localhost:8080", "POST", "/api/detect", **sent) == expected


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""])
def test_what_forms_of_other_pages_can_send_is_refused(kind: str) -> None:
    assert status("localhost", "POST", "/api/detect", Content_Type=kind) == 415


def test_a_link_from_another_site_opens_the_page_and_reads_nothing() -> None:
    assert status("localhost", path="/", Sec_Fetch_Site="cross-site") is None
    assert status("localhost", path="/api/state", Sec_Fetch_Site="cross-site") == 403
    assert status("localhost", path="/api/state", Sec_Fetch_Site="none") is None, "typed into the browser"


@pytest.mark.parametrize("name", ["http://page.example", "page.example:443", "page example", "*", ""])
def test_a_name_is_given_alone(name: str) -> None:
    with pytest.raises(CodetrError, match="expected a name without scheme and port"):
        names_of(LOOPBACK, "127.0.0.1", [name])


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    directives = dict(each.split(" ", 1) for each in HEADERS["Content-Security-Policy"].split("; "))
    sources = {source for name, given in directives.items() if name.endswith("-src") for source in given.split()}
    assert sources == {"'none'", "'self'", "blob:", "data:"}
    for name in ("default-src", "frame-ancestors", "base-uri", "form-action"):
        assert directives[name] == "'none'"
