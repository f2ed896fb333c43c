"""Ways to a Redis server: TCP, a password, TLS, and sentinels that know where the master is now."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from registry import KeptRegistry, RegistryUnavailable, open_registry
from tests.builders import make_blob
from tests.contract.backends import add, production
from tests.redis_servers import RedisServer, Sentinel, free_port, redis_server

pytestmark = pytest.mark.usefixtures("needs_redis")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[KeptRegistry]:
    registry = open_registry(url, Path("/nonexistent"))
    try:
        yield registry
    finally:
        await registry.close()


async def works(url: str) -> bool:
    async with opened(url) as registry:
        await add(registry, "pets", 1)
        version = await registry.get_version("pets", 1)
        return await registry.fetch(version.digest) == make_blob(1)


class TestPassword:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        port = free_port()
        with redis_server("--port", str(port), "--requirepass", "hunter2") as server:
            yield port
            assert "hunter2" not in server.log.read_text()

    async def test_opens_and_its_absence_is_named(self, port: int) -> None:
        assert await works(f"redis://:hunter2@127.0.0.1:{port}/3")
        for login in ("", ":wrong-secret@"):
            with pytest.raises(RegistryUnavailable, match=r"(?i)auth|password") as caught:
                await works(f"redis://{login}127.0.0.1:{port}")
            assert "secret" not in str(caught.value)

    async def test_databases_are_apart(self, port: int) -> None:
        async with (
            opened(f"redis://:hunter2@127.0.0.1:{port}/1") as one,
            opened(f"redis://:hunter2@127.0.0.1:{port}/2") as two,
        ):
            await add(one, "pets", 1)
            assert (await two.list_tasks()).items == ()


class Certificates(NamedTuple):
    authority: Path
    certificate: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make an authority and a certificate for 127.0.0.1 that it has signed."""
    authority, signer, certificate, key = (directory / n for n in ("ca.pem", "ca.key", "tls.pem", "tls.key"))
    common = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-x509", "-days", "2"]
    signed = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    for arguments in (
        ["-keyout", signer, "-out", authority, "-subj", "/CN=test authority"],
        [
            "-keyout",
            key,
            "-out",
            certificate,
            "-subj",
            "/CN=redis",
            "-CA",
            authority,
            "-CAkey",
            signer,
            *signed,
        ],
    ):
        subprocess.run(["openssl", "req", *common, *arguments], check=True, capture_output=True)
    return Certificates(authority, certificate, key)


class TestTls:
    async def test_is_used_and_the_certificate_verified(self, tmp_path: Path) -> None:
        made, port = make_certificates(tmp_path), free_port()
        options = ["--tls-port", str(port), "--tls-ca-cert-file", str(made.authority)]
        options += ["--tls-cert-file", str(made.certificate), "--tls-key-file", str(made.key)]
        both = f"ssl_certfile={made.certificate}&ssl_keyfile={made.key}"
        with redis_server(*options):
            assert await works(f"rediss://127.0.0.1:{port}?ssl_ca_certs={made.authority}&{both}")
            for url in (
                f"rediss://127.0.0.1:{port}?{both}",  # not an authority this host trusts
                f"rediss://127.0.0.1:{port}?ssl_ca_certs={made.authority}",  # it wants one too
                f"redis://127.0.0.1:{port}?timeout=0.5",
            ):
                with pytest.raises(RegistryUnavailable):
                    await works(url)


class Fleet(NamedTuple):
    master: RedisServer
    replica: RedisServer
    sentinel: Sentinel
    url: str


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    ports = [free_port() for _ in range(3)]
    with (
        redis_server("--port", str(ports[0]), "--repl-diskless-sync-delay", "0") as master,
        redis_server("--port", str(ports[1]), "--replicaof", f"127.0.0.1 {ports[0]}") as replica,
        TemporaryDirectory(prefix="redis-") as directory,
    ):
        replica.until("INFO", "replication", answers=b"master_link_status:up")
        sentinel = Sentinel(Path(directory), ports[2], ports[0])
        try:
            sentinel.start()
            sentinel.until("INFO", "sentinel", answers=b"slaves=1")
            # the first sentinel of the URL is not there: the others are asked
            servers = f"127.0.0.1:{free_port()},127.0.0.1:{ports[2]}"
            yield Fleet(master, replica, sentinel, f"redis+sentinel://{servers}/main?timeout=2")
        finally:
            sentinel.stop()


async def promoted(registry: KeptRegistry, version: int) -> bool:
    try:
        await registry.set_alias("pets", "production", version)
    except RegistryUnavailable:
        await asyncio.sleep(0.02)
        return False
    return True


async def test_a_failover_needs_no_restart_and_loses_nothing_replicated(fleet: Fleet) -> None:
    async with opened(fleet.url) as registry:
        assert await add(registry, "pets", 1, 2) == [1, 2]
        cursor = await registry.cursor()
        fleet.replica.until("XINFO", "STREAM", "{ssfserve}:events", answers=cursor.encode())
        fleet.master.kill()
        with pytest.raises(RegistryUnavailable):
            await registry.set_alias("pets", "production", 2)
        while not await promoted(registry, 2):
            pass
        assert await production(registry) == 2
        assert await registry.fetch((await registry.get_version("pets", 1)).digest) == make_blob(1)
        assert [event.version for event in await registry.events(cursor)] == [2]


async def test_an_unknown_service_is_named(fleet: Fleet) -> None:
    with pytest.raises(RegistryUnavailable, match="other"):
        await works(fleet.url.replace("/main", "/other"))
