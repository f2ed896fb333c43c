"""Where a Redis registry is, and what is refused."""

from pathlib import Path

import pytest

from registry import RegistryUrlInvalid, open_registry
from registry.places import shown
from registry.redis_registry import RedisRegistry
from registry.redis_url import Address, RedisTarget


@pytest.mark.parametrize(
    ("url", "servers", "database", "login"),
    [
        ("redis://localhost", [("localhost", 6379)], 0, (None, None)),
        ("redis://10.0.0.1:7000/3", [("10.0.0.1", 7000)], 3, (None, None)),
        ("redis://:p%40ss@host/", [("host", 6379)], 0, (None, "p@ss")),
        ("redis://user:p:w@[::1]:1", [("::1", 1)], 0, ("user", "p:w")),
        ("redis+sentinel://a,b:2,[::1]:3/main/4", [("a", 26379), ("b", 2), ("::1", 3)], 4, (None, None)),
    ],
)
def test_servers_database_and_login(
    url: str, servers: list[tuple[str, int]], database: int, login: tuple[str | None, str | None]
) -> None:
    target = RedisTarget.parse(url)
    assert target.servers == tuple(Address(*server) for server in servers)
    assert (target.database, (target.username, target.password)) == (database, login)
    assert not target.tls


def test_sentinel_names_its_service() -> None:
    target = RedisTarget.parse("rediss+sentinel://u:p@a:1,b:2/my%20main?sentinel_password=s")
    assert (target.service, target.tls, target.username) == ("my main", True, "u")
    assert target.options.sentinel_password == "s"


def test_a_socket() -> None:
    target = RedisTarget.parse("redis+unix:///run/re%20dis.sock?database=2")
    assert (target.path, target.database, target.servers) == ("/run/re dis.sock", 2, ())


def test_options(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    options = f"prefix=a.b&timeout=0.5&max_events=9&ssl_ca_certs={ca}&blobs=s3%3A%2F%2Fbucket%2Fx%26y"
    target = RedisTarget.parse(f"rediss://host?{options}")
    assert target.tls
    assert target.options.model_dump(exclude_defaults=True) == {
        "prefix": "a.b",
        "timeout": 0.5,
        "max_events": 9,
        "ssl_ca_certs": ca,
        "blobs": "s3://bucket/x&y",
    }


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://", "host is missing"),
        ("redis://host:0", "host:port"),
        ("redis://host:99999", "host:port"),
        ("redis://host:6379x", "host:port"),
        ("redis://a,b", "host:port"),
        ("redis://[::1", "host:port"),
        ("redis://host/db", "database is a number"),
        ("redis://host/1/2", "database is a number"),
        ("redis://host?database=1", "behind the slash"),
        ("redis://host?nosuch=1", "nosuch: no such option; there are prefix, blobs, timeout"),
        ("redis://host?timeout=0", "timeout: Input should be greater than 0"),
        ("redis://host?timeout=nan", "timeout: "),
        ("redis://host?prefix={x}", "prefix: "),
        ("redis://host?prefix=a&prefix=b", "given twice"),
        ("redis://host?prefix", "name=value"),
        ("redis://host?blobs=/srv", "blobs: "),
        ("redis://host#x", "`#`"),
        ("rediss://host?ssl_ca_certs=/nosuch.pem", "ssl_ca_certs is no file"),
        ("redis+unix://", "redis\\+unix:///path"),
        ("redis+unix://host/x", "redis\\+unix:///path"),
        ("redis+sentinel://host:1", "name the service"),
        ("redis+sentinel://host:1/main/x", "database is a number"),
    ],
)
def test_what_is_wrong_is_named(url: str, reason: str) -> None:
    with pytest.raises(RegistryUrlInvalid, match=reason):
        RedisTarget.parse(url)


@pytest.mark.parametrize(
    "rest", ["host:x", "host?timeout=hunter2", "host?sentinel_password=hunter2&x=hunter2", "[hunter2"]
)
def test_no_refusal_repeats_a_secret(rest: str) -> None:
    with pytest.raises(RegistryUrlInvalid) as caught:
        open_registry(f"redis://user:hunter2@{rest}", Path("/data"))
    assert "hunter2" not in str(caught.value) and "hunter2" not in repr(caught.value.args)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_opening_one_connects_to_nothing(tmp_path: Path) -> None:
    opened = open_registry(f"redis://127.0.0.1:1?blobs=file://{tmp_path}/blobs", tmp_path)
    assert isinstance(opened, RedisRegistry)
    assert list(tmp_path.iterdir()) == []


def test_where_blobs_are_is_shown_without_what_is_secret() -> None:
    assert shown("s3://key:secret@bucket/adapters?token=secret") == "s3://bucket/adapters"
