"""A real Redis server, killed, started again and paused under calls."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from registry import START, Event, EventKind, KeptRegistry, RegistryUnavailable, open_registry
from registry.checking import check
from registry.redis_backend import CONNECTIONS
from tests.builders import make_blob, make_manifest
from tests.contract.backends import add, production
from tests.redis_servers import RedisServer

TIMEOUT = 0.5  # of each call
SLACK = 1.0  # for a busy host
WRITERS = 4


@pytest_asyncio.fixture(params=["redis", "files"])
async def registry(
    request: pytest.FixtureRequest, own_redis: RedisServer, tmp_path: Path
) -> AsyncIterator[KeptRegistry]:
    blobs = f"&blobs=file://{tmp_path}/blobs" if request.param == "files" else ""
    made = open_registry(f"{own_redis.url}?timeout={TIMEOUT}{blobs}", tmp_path)
    yield made
    await made.close()


def every_call(registry: KeptRegistry, digest: str) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: registry.get_task("pets"),
        lambda: registry.get_version("pets", 1),
        registry.list_tasks,
        lambda: registry.list_versions("pets"),
        lambda: registry.alias_history("pets", "production"),
        lambda: registry.fetch(digest),
        registry.cursor,
        lambda: registry.events(START),
        registry.list_keys,
        lambda: registry.set_alias("pets", "production", 2),
        lambda: registry.rollback_alias("pets", "production"),
        lambda: registry.add_version("pets", make_blob(9), make_manifest()),
        lambda: registry.delete_version("pets", 2),
        lambda: registry.delete_task("pets"),
        registry.numbers,
        registry.reclaim,
    ]


async def assert_all_fail_in_time(registry: KeptRegistry, digest: str) -> None:
    async def fail(call: Callable[[], Awaitable[Any]]) -> None:
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable) as caught:
            await call()
        assert time.monotonic() - started < TIMEOUT + SLACK
        assert caught.value.backend == "redis"

    await asyncio.gather(*(fail(call) for call in every_call(registry, digest)))


async def until_back(registry: KeptRegistry) -> None:
    """Return once the registry answers; the test's timeout bounds it."""
    while True:
        try:
            await registry.cursor()
        except RegistryUnavailable:
            await asyncio.sleep(0.01)
        else:
            return


async def test_while_it_is_dead_everything_fails_at_once(
    registry: KeptRegistry, own_redis: RedisServer
) -> None:
    await add(registry, "pets", 1, 2)
    digest = (await registry.get_version("pets", 1)).digest
    own_redis.kill()
    started = time.monotonic()
    await assert_all_fail_in_time(registry, digest)
    assert time.monotonic() - started < SLACK, "a refused connection needs no waiting"
    own_redis.start()
    assert await registry.fetch(digest) == make_blob(1)
    assert (await check(registry)).faults == []


async def test_while_it_hangs_everything_fails_in_time(
    registry: KeptRegistry, own_redis: RedisServer
) -> None:
    await add(registry, "pets", 1, 2)
    version = await registry.get_version("pets", 1)
    with own_redis.paused():
        await assert_all_fail_in_time(registry, version.digest)
    await until_back(registry)
    assert await registry.fetch(version.digest) == make_blob(1)
    assert (await check(registry)).faults == []


async def test_many_calls_at_once_fail_in_the_time_of_one(
    registry: KeptRegistry, own_redis: RedisServer
) -> None:
    await add(registry, "pets", 1)
    with own_redis.paused():
        started = time.monotonic()
        calls = [registry.get_version("pets", 1) for _ in range(200)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < TIMEOUT + SLACK
    assert {type(result) for result in results} == {RegistryUnavailable}
    await until_back(registry)
    for _ in range(200 // CONNECTIONS):  # as many at once as need not wait for one another
        found = await asyncio.gather(*(registry.get_version("pets", 1) for _ in range(CONNECTIONS)))
        assert [version.version for version in found] == [1] * CONNECTIONS


async def test_the_first_use_of_a_server_that_is_not_up_yet(own_redis: RedisServer, tmp_path: Path) -> None:
    own_redis.kill()
    registry = open_registry(own_redis.url, tmp_path)
    with pytest.raises(RegistryUnavailable, match="onnect"):
        await registry.list_tasks()
    own_redis.start()
    assert await add(registry, "pets", 1) == [1]
    await registry.close()


@dataclass
class Writer:
    """Adds versions of its own task and promotes them, again and again; keeps what was acknowledged."""

    registry: KeptRegistry
    task: str
    seed: int
    acknowledged: dict[int, int] = field(default_factory=dict)  # version by seed
    promoted: int = 0
    failures: int = 0
    stopping: bool = False

    async def run(self) -> None:
        while not self.stopping:
            self.seed += 1
            try:
                added = await self.registry.add_version(self.task, make_blob(self.seed), make_manifest())
                self.acknowledged[self.seed] = added.version.version
                await self.registry.set_alias(self.task, "production", added.version.version)
                self.promoted = added.version.version
            except RegistryUnavailable:
                self.failures += 1
                await asyncio.sleep(0.01)


@dataclass
class Follower:
    """Reads events from the last cursor on, whatever happens in between."""

    registry: KeptRegistry
    seen: list[Event] = field(default_factory=list)
    failures: int = 0
    stopping: bool = False

    async def run(self) -> None:
        while not self.stopping:
            try:
                await self.read()
            except RegistryUnavailable:
                self.failures += 1
            await asyncio.sleep(0.005)

    async def read(self) -> None:
        while events := await self.registry.events(self.seen[-1].cursor if self.seen else START, limit=7):
            self.seen += events


async def until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110  (the test's timeout bounds it)
        await asyncio.sleep(0.005)


async def until_grown(writers: list[Writer], by: int) -> None:
    wanted = [len(writer.acknowledged) + by for writer in writers]
    await until(lambda: all(len(w.acknowledged) >= n for w, n in zip(writers, wanted, strict=True)))


async def until_failed(*parts: Writer | Follower) -> None:
    before = [part.failures for part in parts]
    await until(lambda: all(part.failures > n for part, n in zip(parts, before, strict=True)))


async def assert_nothing_lost(registry: KeptRegistry, writers: list[Writer], follower: Follower) -> None:
    for writer in writers:
        for seed, number in writer.acknowledged.items():
            version = await registry.get_version(writer.task, number)
            assert await registry.fetch(version.digest) == make_blob(seed)
        assert await production(registry, writer.task) >= writer.promoted
    await follower.read()
    assert tuple(follower.seen) == await registry.events(START, limit=10**6), "each event once, in order"
    told = {(e.task, e.version) for e in follower.seen if e.kind is EventKind.VERSION_ADDED}
    assert told >= {(w.task, number) for w in writers for number in w.acknowledged.values()}


async def under_load(
    registry: KeptRegistry, disturb: Callable[[list[Writer], Follower], Awaitable[None]]
) -> None:
    writers = [Writer(registry, f"task{n}", 100_000 * n) for n in range(WRITERS)]
    follower = Follower(registry)
    running = [asyncio.ensure_future(part.run()) for part in (*writers, follower)]
    await until_grown(writers, 3)
    await disturb(writers, follower)
    await until_grown(writers, 3)
    for part in (*writers, follower):
        part.stopping = True
    await asyncio.gather(*running)
    await assert_nothing_lost(registry, writers, follower)
    await registry.reclaim()
    assert (await check(registry)).faults == []


async def test_kills_under_load_lose_nothing_acknowledged(
    registry: KeptRegistry, own_redis: RedisServer
) -> None:
    rng = random.Random(3)

    async def disturb(writers: list[Writer], follower: Follower) -> None:
        for _ in range(4):
            own_redis.kill()
            await until_failed(*writers, follower)
            await asyncio.to_thread(own_redis.start)
            await until_grown(writers, rng.randint(1, 3))

    await under_load(registry, disturb)


async def test_pauses_under_load_lose_nothing_acknowledged(
    registry: KeptRegistry, own_redis: RedisServer
) -> None:
    async def disturb(writers: list[Writer], follower: Follower) -> None:
        for _ in range(2):
            with own_redis.paused():
                await until_failed(*writers, follower)
            await until_grown(writers, 2)

    await under_load(registry, disturb)


async def test_a_short_pause_only_delays(registry: KeptRegistry, own_redis: RedisServer) -> None:
    await add(registry, "pets", 1)
    with own_redis.paused():
        waiting = asyncio.ensure_future(registry.get_version("pets", 1))
        await asyncio.sleep(TIMEOUT / 5)
        assert not waiting.done()
    assert (await waiting).version == 1


async def test_a_full_server_refuses_writes_and_goes_on_reading(
    registry: KeptRegistry, own_redis: RedisServer
) -> None:
    await add(registry, "pets", 1)
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RegistryUnavailable, match="maxmemory"):
        await registry.add_version("pets", make_blob(2), make_manifest())
    with pytest.raises(RegistryUnavailable, match="maxmemory"):
        await registry.set_alias("pets", "canary", 1)
    assert (await registry.get_task("pets")).aliases == {"production": 1}
    own_redis.command("CONFIG", "SET", "maxmemory", "0")
    assert await add(registry, "pets", 2) == [2]


async def test_risky_settings_are_named(registry: KeptRegistry, own_redis: RedisServer) -> None:
    assert await registry.risks() == ()
    own_redis.command("CONFIG", "SET", "appendfsync", "everysec")
    (only,) = await registry.risks()
    assert "appendfsync is everysec" in only
    own_redis.command("CONFIG", "SET", "appendonly", "no")
    own_redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    first, second = await registry.risks()
    assert "appendonly is off" in first and "allkeys-lru" in second
