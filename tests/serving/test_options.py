from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import CodetrError
from serving.options import ServerOptions, option_values, tritonserver_options
from serving.tls import TlsFiles

APIS = "model-repository,shared-memory,trace,logging"


def words(
    *extra: str, known: frozenset[str] = frozenset(), models: Path = Path("/models"), **options: object
) -> list[str]:
    """The options that a server gets."""
    return tritonserver_options(
        ServerOptions(Path("r"), extra=extra, admin_key="secret", **options),
        models=models,
        plugin=Path("/models/plugin.so"),
        version_compatible=True,
        backends=Path("/backends"),
        region_prefix="prefix_",
        known=known,
    )


def values(option: str, *extra: str, **options: object) -> list[str]:
    return [value for name, value in option_values(words(*extra, **options)) if name == option]


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        pytest.param((8000, 8000, 8002), "expected three different ports, got 8000, 8000, 8002", id="the same twice"),
        pytest.param((0, 8001, 8002), "HTTP port: expected 1..65535, got 0", id="zero"),
        pytest.param((8000, 8001, 70000), "metrics port: expected 1..65535, got 70000", id="too large"),
        pytest.param((8000, -1, 8002), "gRPC port: expected 1..65535, got -1", id="negative"),
    ],
)
def test_impossible_ports_are_refused(tmp_path: Path, ports: tuple[int, int, int], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        ServerOptions(tmp_path, "127.0.0.1", *ports)


def test_every_network_is_reached_at_loopback(tmp_path: Path) -> None:
    assert ServerOptions(tmp_path, "0.0.0.0").address == "127.0.0.1"
    assert ServerOptions(tmp_path, "10.1.2.3").address == "10.1.2.3"
    assert ServerOptions(tmp_path, "::").address == "[::1]"


@pytest.mark.parametrize(
    ("host", "http", "grpc"),
    [
        pytest.param("127.0.0.1", "127.0.0.1", "127.0.0.1", id="IPv4"),
        pytest.param("localhost", "127.0.0.1", "127.0.0.1", id="a name"),
        pytest.param("::1", "ipv6:::1", "[::1]", id="IPv6"),
        pytest.param("[::]", "ipv6:::", "[::]", id="every network, in brackets"),
    ],
)
def test_each_endpoint_gets_the_address_as_it_reads_it(host: str, http: str, grpc: str) -> None:
    assert values("http-address", host=host) == values("metrics-address", host=host) == [http]
    assert values("grpc-address", host=host) == [grpc]


def test_nobody_changes_a_server_without_the_key_and_who_is_elsewhere_sees_no_statistics() -> None:
    for option in ("http-restricted-api", "grpc-restricted-protocol"):
        assert values(option) == [f"{APIS}:codetr-admin=secret"]
        assert values(option, host="::1") == [f"{APIS}:codetr-admin=secret"]
        assert values(option, host="0.0.0.0") == [f"{APIS},statistics:codetr-admin=secret"]
    assert values("model-control-mode") == ["poll"]  # in which both protocols refuse to load and unload
    assert "--disable-auto-complete-config" in words()


def test_a_users_own_restrictions_stand_beside_ours() -> None:
    """Triton refuses an endpoint that is restricted twice."""
    theirs = "statistics,trace:my-key=x"
    assert values("http-restricted-api", "--http-restricted-api", theirs, host="0.0.0.0") == [
        "model-repository,shared-memory,logging:codetr-admin=secret",
        theirs,
    ]
    assert values("grpc-restricted-protocol", "--http-restricted-api", theirs) == [f"{APIS}:codetr-admin=secret"]
    everything = f"{APIS}:my-key=x"
    assert values("http-restricted-api", f"--http-restricted-api={everything}") == [everything]


@pytest.mark.parametrize(
    ("option", "theirs"),
    [
        ("model-control-mode", "explicit"),
        ("backend-directory", "/mine"),
        ("pinned-memory-pool-byte-size", "1"),
    ],
)
def test_a_users_option_takes_the_place_of_ours(option: str, theirs: str) -> None:
    assert values(option, f"--{option}", theirs) == [theirs]


def test_no_other_door_is_open_where_the_release_has_one() -> None:
    known = ["allow-sagemaker", "allow-vertex-ai"]
    assert {f"--{option}=false" for option in known} < set(words(known=known))
    assert values("allow-vertex-ai", "--allow-vertex-ai=true", known=known) == ["true"]
    assert values("allow-vertex-ai") == []


def test_settings_of_backends_are_joined_and_the_users_win() -> None:
    ours = ["python,shm-region-prefix-name=prefix_", "tensorrt,plugins=/models/plugin.so"]
    assert values("backend-config") == [*ours, "tensorrt,version-compatible=true"]
    theirs = ["--backend-config=tensorrt,plugins=/a.so;/b.so", "--backend-config", "python,stub-timeout-seconds=9"]
    assert values("backend-config", *theirs) == [
        ours[0], "tensorrt,version-compatible=true", "tensorrt,plugins=/a.so;/b.so", "python,stub-timeout-seconds=9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        pytest.param(["--http-port=9000"], "--http-port follows from --http-port of codetr serve", id="port"),
        pytest.param(["--http-po", "9000"], "--http-po follows from --http-port of codetr serve", id="beginning"),
        pytest.param(["--grpc-address", "::"], "--grpc-address follows from --host of codetr serve", id="address"),
        pytest.param(["--model-store=/m"], "--model-store follows from --repository", id="repository"),
        pytest.param(["--allow-http=false"], "--allow-http=false: codetr serve asks the HTTP endpoint", id="no HTTP"),
        pytest.param(["--http-restricted-api=health:a=b"], "health cannot be shut", id="health"),
    ],
)
def test_an_option_that_belongs_before_the_separator_is_named(extra: list[str], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        ServerOptions(Path("r"), extra=tuple(extra))


def test_others_pass_as_they_are() -> None:
    extra = ("--log-verbose=1", "--model-load-thread-count", "2", "--grpc-keepalive-time=5")
    assert tuple(words(*extra)[-4:]) == extra


def test_certificates_are_grpcs_and_plain_http_stays_on_this_machine() -> None:
    files = TlsFiles(Path("/c.pem"), Path("/k.pem"))
    given = words(host="0.0.0.0", tls=files)
    assert "--http-address=127.0.0.1" in given
    assert "--grpc-address=0.0.0.0" in given
    assert {"--grpc-use-ssl=true", "--grpc-server-cert=/c.pem", "--grpc-server-key=/k.pem"} < set(given)
    mutual = words(tls=TlsFiles(Path("/c.pem"), Path("/k.pem"), Path("/ca.pem")))
    assert {"--grpc-use-ssl-mutual=true", "--grpc-root-cert=/ca.pem"} < set(mutual)
    with pytest.raises(CodetrError, match="--grpc-server-key: codetr serve was given certificates itself"):
        words("--grpc-server-key=/other", tls=files)
    assert "--grpc-server-key=/other" in words("--grpc-server-key=/other")


def test_http_takes_an_image_as_large_as_the_repository_accepts_where_the_release_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "codetr_preprocess").mkdir()
    config = tmp_path / "codetr_preprocess" / "config.pbtxt"
    known = frozenset({"http-max-input-size"})
    config.write_text("")
    assert values("http-max-input-size", models=tmp_path) == []
    assert values("http-max-input-size", models=tmp_path, known=known) == [str(65 << 20)]
    config.write_text('parameters { key: "max_bytes" value { string_value: "100000000" } }')
    assert values("http-max-input-size", models=tmp_path, known=known) == [str(100_000_000 + (1 << 20))]
    assert values("http-max-input-size", "--http-max-input-size=7", models=tmp_path, known=known) == ["7"]


@pytest.mark.parametrize("key", ["two words", "a\nb", "ü", ""])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(CodetrError, match="CODETR_ADMIN_KEY: expected letters, digits"):
        ServerOptions(Path("r"), admin_key=key)


def test_a_key_is_not_shown_with_the_options() -> None:
    assert "secret" not in repr(ServerOptions(Path("r"), admin_key="secret"))
