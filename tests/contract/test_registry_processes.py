"""Several processes at once on one registry, over every backend."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from registry import START, EventKind, Registry
from tests.builders import make_blob
from tests.contract import backends
from tests.contract.backends import add, production
from tests.contract.conftest import WORKERS

Work = Callable[..., Awaitable[Any]]
Everywhere = Callable[[Work, list[tuple[Any, ...]]], Awaitable[list[Any]]]


@pytest.fixture
def everywhere(pool: ProcessPoolExecutor, backend: str, tmp_path: Path) -> Everywhere:
    """Run `work` in one process per tuple of arguments, all at the same time."""

    async def run(work: Work, arguments: list[tuple[Any, ...]]) -> list[Any]:
        loop = asyncio.get_running_loop()
        jobs = [
            loop.run_in_executor(pool, backends.in_process, backend, tmp_path, work, *args)
            for args in arguments
        ]
        return await asyncio.gather(*jobs)

    return run


async def test_the_first_use_of_an_empty_place(everywhere: Everywhere, registry: Registry) -> None:
    # the processes create the storage, not this one
    results = await everywhere(backends.add_blobs, [("pets", [seed]) for seed in range(WORKERS)])
    assert sorted(number for ((number, _),) in results) == list(range(1, WORKERS + 1))


async def test_different_bytes_get_different_numbers(everywhere: Everywhere, registry: Registry) -> None:
    results = await everywhere(
        backends.add_blobs, [("pets", range(100 * n, 100 * n + 10)) for n in range(WORKERS)]
    )
    flat = [item for result in results for item in result]
    assert sorted(flat) == [(number, True) for number in range(1, 10 * WORKERS + 1)]
    for worker, result in enumerate(results):
        for position, (number, _) in enumerate(result):
            version = await registry.get_version("pets", number)
            assert await registry.fetch(version.digest) == make_blob(100 * worker + position)


async def test_same_bytes_are_made_once(everywhere: Everywhere, registry: Registry) -> None:
    results = await everywhere(backends.add_blobs, [("pets", range(10))] * WORKERS)
    by_seed = list(zip(*results, strict=True))
    for answers in by_seed:
        assert len({number for number, _ in answers}) == 1
        assert sum(created for _, created in answers) == 1
    assert (await registry.get_task("pets")).versions == 10


async def test_one_of_many_compare_and_sets_wins(everywhere: Everywhere, registry: Registry) -> None:
    await add(registry, "pets", *range(WORKERS + 1))
    expected = 1
    for _ in range(5):
        targets = [number for number in range(1, WORKERS + 2) if number != expected]
        won = await everywhere(backends.try_alias, [("pets", target, expected) for target in targets])
        assert sum(won) == 1
        assert await production(registry) == targets[won.index(True)]
        expected = await production(registry)


async def test_many_compare_and_sets_in_one_process(registry: Registry) -> None:
    await add(registry, "pets", *range(9))
    won = await asyncio.gather(*(backends.try_alias(registry, "pets", n, 1) for n in range(2, 10)))
    assert sum(won) == 1


async def test_bytes_survive_their_deletion_elsewhere(everywhere: Everywhere, registry: Registry) -> None:
    await everywhere(backends.add_and_delete, [(f"task{n}", 15) for n in range(WORKERS)])
    assert (await registry.list_tasks()).items == ()


async def test_events_of_concurrent_writers_are_complete_and_in_order(
    everywhere: Everywhere, registry: Registry
) -> None:
    each, tasks = 8, [f"task{n}" for n in range(WORKERS - 1)]
    followed, *_ = await asyncio.gather(
        backends.follow(registry, START, len(tasks) * (each + 1)),
        *(everywhere(backends.add_blobs, [(task, range(each))]) for task in tasks),
    )
    assert tuple(followed) == await registry.events(START)
    assert len({event.cursor for event in followed}) == len(followed)
    for task in tasks:
        mine = [(event.kind, event.version) for event in followed if event.task == task]
        added = [(EventKind.VERSION_ADDED, number) for number in range(1, each + 1)]
        assert mine == [added[0], (EventKind.ALIAS_SET, 1), *added[1:]]


async def test_another_process_reads_the_same_events(everywhere: Everywhere, registry: Registry) -> None:
    await add(registry, "pets", 1, 2)
    (theirs,) = await everywhere(backends.follow, [(START, 3)])
    assert tuple(theirs) == await registry.events(START)
    await add(registry, "pets", 3)
    (theirs,) = await everywhere(backends.follow, [(theirs[-1].cursor, 1)])
    assert [(event.kind, event.version) for event in theirs] == [(EventKind.VERSION_ADDED, 3)]


async def test_errors_travel_between_processes(everywhere: Everywhere, registry: Registry) -> None:
    await add(registry, "pets", 1)
    with pytest.raises(Exception, match="`pets` has no version 2") as caught:
        await everywhere(backends.try_alias, [("pets", 2, 1)])
    assert type(caught.value).__name__ == "VersionNotFound"
