"""The registry backends under test, and work on them that other processes can be asked to do."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from registry import (
    START,
    AliasConflict,
    EmbeddedRegistry,
    Event,
    KeptRegistry,
    Lease,
    Registry,
    open_registry,
)
from tests.builders import make_blob, make_manifest

REDIS_URL = "redis-url"  # file in a test's directory that leads other processes to the server


def in_redis(place: Path) -> KeptRegistry:
    return open_registry(_url(place), place)


def in_redis_and_files(place: Path) -> KeptRegistry:
    return open_registry(f"{_url(place)}&blobs=file://{place}/blobs", place)


BACKENDS: dict[str, Callable[[Path], KeptRegistry]] = {
    "embedded": EmbeddedRegistry,
    "redis": in_redis,
    "redis and files": in_redis_and_files,
}


def _url(place: Path) -> str:
    return (place / REDIS_URL).read_text()


def in_process(name: str, place: Path, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run `work(registry, *args)` with a registry of this process' own."""

    async def main() -> Any:
        registry = BACKENDS[name](place)
        try:
            return await work(registry, *args)
        finally:
            await registry.close()

    return asyncio.run(main())


async def add(registry: Registry, task: str, *seeds: int) -> list[int]:
    """Add blobs one by one; return their version numbers."""
    return [number for number, _ in await add_blobs(registry, task, seeds)]


async def add_blobs(registry: Registry, task: str, seeds: Iterable[int]) -> list[tuple[int, bool]]:
    """Add blobs one by one; return their version numbers, and whether this call made them."""
    added = [await registry.add_version(task, make_blob(seed), make_manifest()) for seed in seeds]
    return [(item.version.version, item.created) for item in added]


async def production(registry: Registry, task: str = "pets") -> int:
    return (await registry.get_task(task)).aliases["production"]


async def add_and_delete(registry: Registry, task: str, rounds: int) -> None:
    """Fight over the same bytes: every process adds them and takes them away, under its own task."""
    for _ in range(rounds):
        added = await registry.add_version(task, make_blob(0), make_manifest())
        assert await registry.fetch(added.version.digest) == make_blob(0)
        await registry.delete_task(task)


async def try_alias(registry: Registry, task: str, version: int, expected: int) -> bool:
    """Return whether the compare-and-set won."""
    try:
        await registry.set_alias(task, "production", version, expected=expected, check=True)
    except AliasConflict:
        return False
    return True


async def follow(registry: Registry, cursor: str, count: int) -> list[Event]:
    """Read events in small bites until there are `count`; the test's timeout bounds it."""
    seen: list[Event] = []
    while len(seen) < count:
        seen += await registry.events(seen[-1].cursor if seen else cursor, limit=3)
    return seen


async def tell(registry: Registry, replica: str, beats: int) -> None:
    for beat in range(1, beats + 1):
        await registry.put_lease(Lease(replica=replica, cursor=START, beat=beat, seconds=1))


async def drop_all(registry: Registry, _: str, rounds: int) -> dict[str, int]:
    """Drop whatever is listed, over and over; return the last beat dropped of each replica."""
    dropped: dict[str, int] = {}
    for _round in range(rounds):
        for lease in await registry.leases():
            if await registry.drop_lease(lease):
                dropped[lease.replica] = lease.beat
    return dropped
