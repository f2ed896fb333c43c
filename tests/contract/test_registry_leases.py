"""Leases, over every backend: what replicas tell of themselves."""

import asyncio
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from registry import START, InvalidName, Lease, Registry, RegistryUnavailable
from registry.models import position
from tests.contract import backends
from tests.contract.backends import add
from tests.contract.conftest import WORKERS


def lease(replica: str = "a", beat: int = 1, cursor: str = START) -> Lease:
    return Lease(replica=replica, cursor=cursor, beat=beat, seconds=1.5)


async def test_what_a_replica_tells_replaces_what_it_told(registry: Registry) -> None:
    assert await registry.leases() == ()
    await registry.put_lease(lease("b"))
    await registry.put_lease(lease("a", beat=1))
    await registry.put_lease(lease("a", beat=2, cursor="7-9"))
    assert await registry.leases() == (lease("a", 2, "7-9"), lease("b"))


async def test_only_who_told_nothing_since_is_dropped(registry: Registry) -> None:
    await registry.put_lease(lease("a", beat=2))
    assert not await registry.drop_lease(lease("a", beat=1))
    assert not await registry.drop_lease(lease("b"))
    assert await registry.leases() == (lease("a", beat=2),)
    assert await registry.drop_lease(lease("a", beat=2))
    assert not await registry.drop_lease(lease("a", beat=2))
    assert await registry.leases() == ()


async def test_leases_are_no_events(registry: Registry) -> None:
    await registry.put_lease(lease())
    await registry.drop_lease(lease())
    assert await registry.cursor() == START


async def test_names_cannot_lead_elsewhere(registry: Registry) -> None:
    for name in ("../a", "A", ".lock", ""):
        with pytest.raises(InvalidName):
            await registry.put_lease(lease(name))
        with pytest.raises(InvalidName):
            await registry.drop_lease(lease(name))


async def test_cursors_are_in_the_order_of_their_positions(registry: Registry) -> None:
    await add(registry, "pets", *range(12))
    events = await registry.events(START)
    assert [position(event.cursor) for event in events] == list(range(1, 14))
    assert position(await registry.cursor()) == 13
    assert position(START) == 0


async def test_of_dropping_and_telling_at_one_time_nothing_told_is_lost(
    registry: Registry, backend: str, tmp_path: Path, pool: ProcessPoolExecutor
) -> None:
    loop = asyncio.get_running_loop()
    work = [(backends.tell, f"r{n}", 30) for n in range(WORKERS - 1)] + [(backends.drop_all, "", 60)]
    jobs = [loop.run_in_executor(pool, backends.in_process, backend, tmp_path, *args) for args in work]
    *_, dropped = await asyncio.gather(*jobs)
    found = {item.replica: item.beat for item in await registry.leases()}
    for replica in (f"r{n}" for n in range(WORKERS - 1)):
        assert found.get(replica, dropped.get(replica)) == 30, (
            "the last beat is there, or was seen and dropped"
        )


async def test_a_closed_registry_is_unavailable(registry: Registry) -> None:
    await registry.close()
    for call in (registry.put_lease(lease()), registry.leases(), registry.drop_lease(lease())):
        with pytest.raises(RegistryUnavailable):
            await call
