"""Copying, checking and cleaning, over every backend."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from registry import START, Actor, ApiKey, EventKind, KeptRegistry, KeyConflict, RestoreConflict, TaskNotFound
from registry.checking import check
from registry.copying import Copied, copy
from tests.builders import make_blob, make_manifest
from tests.contract.backends import BACKENDS, add, add_and_delete, in_process, production
from tests.contract.model import Model, assert_agrees, perform

Make = Callable[[str], KeptRegistry]
KEY = ApiKey(name="ci", secret_hash="a" * 64, scopes=frozenset({"manage"}), tasks=("p*",), created=1.5)


@pytest_asyncio.fixture
async def other(tmp_path: Path, redis_url: str, backend: str) -> AsyncIterator[KeptRegistry]:
    """An empty registry of the next kind."""
    place, names = tmp_path / "other", list(BACKENDS)
    place.mkdir()
    (place / "redis-url").write_text(redis_url + "x")
    made = BACKENDS[names[(names.index(backend) + 1) % len(names)]](place)
    yield made
    await made.close()


async def grow(registry: KeptRegistry, seed: int = 0, steps: int = 60) -> Model:
    """Live a random life; return what should be there."""
    model, rng = Model(), random.Random(seed)
    for _ in range(steps):
        operation = model.propose(rng)
        await perform(registry, operation)
        model.apply(operation)
    await registry.add_key(KEY)
    return model


async def everything(registry: KeptRegistry) -> dict[str, object]:
    tasks = (await registry.list_tasks()).items
    return {
        "tasks": tasks,
        "versions": [await registry.list_versions(task.task, limit=1000) for task in tasks],
        "past": [await registry.past(task.task) for task in tasks],
        "numbers": await registry.numbers(),
        "keys": await registry.list_keys(),
    }


class TestCopy:
    async def test_moves_everything_to_another_backend(
        self, registry: KeptRegistry, other: KeptRegistry
    ) -> None:
        model = await grow(registry)
        copied = await copy(registry, other)
        assert copied == Copied(len(model.versions), sum(map(len, model.versions.values())), 1, changed=False)
        assert await everything(other) == await everything(registry)
        await assert_agrees(other, model)
        assert (await check(other)).faults == []

    async def test_life_goes_on_in_the_copy_as_in_the_source(
        self, registry: KeptRegistry, other: KeptRegistry
    ) -> None:
        model, rng = await grow(registry), random.Random(99)
        await registry.delete_task("toys")
        model.delete_task("toys")
        await copy(registry, other)
        for _ in range(60):
            operation = model.propose(rng)
            await perform(other, operation)
            model.apply(operation)
        await assert_agrees(other, model)

    async def test_may_be_repeated(self, registry: KeptRegistry, other: KeptRegistry) -> None:
        await grow(registry)
        await copy(registry, other)
        before, cursor = await everything(other), await other.cursor()
        await copy(registry, other)
        assert await everything(other) == before
        assert await other.events(cursor) == ()

    async def test_goes_on_where_it_was_cut_off(self, registry: KeptRegistry, other: KeptRegistry) -> None:
        await add(registry, "pets", 1, 2, 3)
        await registry.set_alias("pets", "production", 3)
        for version in (await registry.list_versions("pets"))[:2]:
            await other.restore_version(version, await registry.fetch(version.digest))
        assert (await other.get_task("pets")).aliases == {}
        await copy(registry, other)
        assert await everything(other) == await everything(registry)

    async def test_takes_over_what_came_since_the_last_copy(
        self, registry: KeptRegistry, other: KeptRegistry
    ) -> None:
        await add(registry, "pets", 1, 2)
        await copy(registry, other)
        await add(registry, "pets", 3)
        await registry.set_alias("pets", "production", 3)
        await registry.set_alias("pets", "canary", 2)
        await copy(registry, other)
        assert await everything(other) == await everything(registry)

    async def test_refuses_to_mix_two_tasks_of_one_name(
        self, registry: KeptRegistry, other: KeptRegistry
    ) -> None:
        await add(registry, "pets", 1, 2)
        await add(other, "pets", 2)
        with pytest.raises(RestoreConflict, match="`pets` exists with other content"):
            await copy(registry, other)

    async def test_refuses_to_overwrite_an_alias_with_another_past(
        self, registry: KeptRegistry, other: KeptRegistry
    ) -> None:
        await add(registry, "pets", 1, 2, 3)
        await copy(registry, other)
        await other.set_alias("pets", "production", 2)
        await registry.set_alias("pets", "production", 3)
        with pytest.raises(RestoreConflict, match="production"):
            await copy(registry, other)
        assert await production(other) == 2

    async def test_refuses_to_overwrite_a_key(self, registry: KeptRegistry, other: KeptRegistry) -> None:
        await registry.add_key(KEY)
        await other.add_key(KEY.model_copy(update={"secret_hash": "b" * 64}))
        with pytest.raises(KeyConflict):
            await copy(registry, other)

    async def test_tells_if_the_source_was_written_to(
        self, registry: KeptRegistry, other: KeptRegistry
    ) -> None:
        await add(registry, "pets", 1)
        written: list[asyncio.Task[object]] = []

        def interfere(_: object) -> None:
            if not written:
                written.append(asyncio.ensure_future(add(registry, "cars", 2)))

        real = other.restore_past

        async def restore_past(past: object, *, by: Actor) -> None:
            await asyncio.gather(*written)
            await real(past, by=by)  # type: ignore[arg-type]

        other.restore_past = restore_past  # type: ignore[method-assign]
        assert (await copy(registry, other, interfere)).changed

    async def test_followers_of_the_target_hear_of_it(
        self, registry: KeptRegistry, other: KeptRegistry
    ) -> None:
        await add(registry, "pets", 1, 2)
        await registry.set_alias("pets", "production", 2)
        await copy(registry, other)
        assert [(e.kind, e.version) for e in await other.events(START)] == [
            (EventKind.VERSION_ADDED, 1),
            (EventKind.VERSION_ADDED, 2),
            (EventKind.ALIAS_SET, 2),
        ]

    async def test_the_past_of_an_unknown_task(self, registry: KeptRegistry) -> None:
        with pytest.raises(TaskNotFound):
            await registry.past("pets")


class TestCheck:
    async def test_counts_what_is_there(self, registry: KeptRegistry) -> None:
        await add(registry, "pets", 1, 2)
        await add(registry, "cars", 1)
        await registry.add_key(KEY)
        report = await check(registry)
        assert report.faults == []
        assert (report.tasks, report.versions, report.aliases, report.keys) == (2, 3, 2, 1)
        assert (report.bytes, report.events) == (3 * 1024, 6)

    async def test_is_content_after_any_life(self, registry: KeptRegistry) -> None:
        await grow(registry, seed=5, steps=100)
        assert (await check(registry)).faults == []

    async def test_is_not_confused_by_writes_meanwhile(self, registry: KeptRegistry) -> None:
        await add(registry, "pets", 1, 2)

        async def write() -> None:
            for round_ in range(10):
                await registry.add_version("pets", make_blob(50 + round_), make_manifest(), promote=True)
                await registry.delete_version("pets", round_ + 1)

        _, *reports = await asyncio.gather(write(), *(check(registry) for _ in range(10)))
        assert [report.faults for report in reports] == [[]] * 10


class TestReclaim:
    async def test_leaves_what_is_used(self, registry: KeptRegistry) -> None:
        await add(registry, "pets", 1, 2)
        await add(registry, "cars", 2, 3)
        await registry.delete_task("cars")
        await registry.reclaim()
        assert (await check(registry)).faults == []
        assert await registry.reclaim() == 0

    async def test_beside_uploads_and_deletions_loses_nothing(
        self, registry: KeptRegistry, backend: str, tmp_path: Path
    ) -> None:
        async def work(task: str) -> None:
            await asyncio.to_thread(in_process, backend, tmp_path, add_and_delete, task, 10)
            await add(registry, task, *range(5))

        working = asyncio.gather(*(work(f"task{n}") for n in range(3)))
        rounds = 0
        while not working.done():
            await registry.reclaim(older_than=0.2)
            rounds += 1
        await working
        report = await check(registry)
        assert report.faults == []
        assert (report.versions, rounds > 3) == (15, True)
