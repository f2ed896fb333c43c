"""The catalog answers from memory, follows the registry, and keeps answering while it is away."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.manifest import Training
from registry.errors import AliasNotFound, RegistryUnavailable, TaskNotFound, VersionNotFound
from server.catalog import Catalog
from server.version_cache import VersionCache
from tests.builders import make_manifest
from tests.fakes import make_version
from tests.unit.app_parts import SwitchableRegistry, add_key, add_version


@dataclass
class Followed:
    registry: SwitchableRegistry
    catalog: Catalog
    forgotten: list[str]


@pytest.fixture
async def followed(tmp_path: Path) -> AsyncIterator[Followed]:
    """A catalog of a registry with one task; it polls only when told."""
    registry, forgotten = SwitchableRegistry(tmp_path), []
    await add_version(registry, "pets", b"1")
    catalog = Catalog(registry, forget=forgotten.append, poll_seconds=3600)
    await catalog.start()
    yield Followed(registry, catalog, forgotten)
    await catalog.close()
    await registry.close()


async def test_a_version_is_read_once_and_then_served_from_memory(followed: Followed) -> None:
    assert followed.catalog.lookup("pets") is None
    found = await followed.catalog.resolve("pets")
    assert (found.task, found.version) == ("pets", 1)
    assert followed.catalog.lookup("pets") is found
    assert followed.catalog.lookup("pets", version=1) is found
    assert followed.catalog.lookup("pets", alias="production") is found
    assert await followed.catalog.resolve("pets") is found
    assert followed.registry.reads["get_version"] == 1


async def test_many_at_once_share_one_read(followed: Followed) -> None:
    found = await asyncio.gather(*(followed.catalog.resolve("pets") for _ in range(50)))
    assert len({id(version) for version in found}) == 1
    assert followed.registry.reads["get_version"] == 1


async def test_what_another_process_wrote_is_found_on_a_miss(followed: Followed) -> None:
    await add_version(followed.registry, "cars")
    assert (await followed.catalog.resolve("cars")).task == "cars"
    await followed.registry.set_alias("cars", "canary", 1)
    assert (await followed.catalog.resolve("cars", alias="canary")).version == 1


@pytest.mark.parametrize(
    ("task", "version", "alias", "error"),
    [
        ("boats", None, None, TaskNotFound),
        ("pets", 7, None, VersionNotFound),
        ("pets", None, "canary", AliasNotFound),
    ],
)
async def test_what_does_not_exist_is_named_after_one_look(
    followed: Followed, task: str, version: int | None, alias: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await followed.catalog.resolve(task, version, alias)
    assert followed.registry.reads["events"] <= 1


async def test_unknown_names_asked_for_at_once_share_reads(followed: Followed) -> None:
    asked = [followed.catalog.resolve(f"boats-{i}") for i in range(100)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(error, TaskNotFound) for error in found)
    assert followed.registry.reads["events"] == 1


async def test_an_alias_that_moves_is_followed_without_a_wait(followed: Followed) -> None:
    await followed.catalog.resolve("pets")
    await add_version(followed.registry, "pets", b"2", promote=True)
    assert followed.catalog.lookup("pets").version == 1  # type: ignore[union-attr]
    await followed.catalog.refresh()
    assert followed.catalog.lookup("pets").version == 2  # type: ignore[union-attr]


async def test_a_refresh_sees_everything_written_before_it(followed: Followed) -> None:
    """A refresh that is under way may have read too early: the next caller gets a later one."""
    first = asyncio.ensure_future(followed.catalog.refresh())
    await followed.registry.until_read("events")
    await add_version(followed.registry, "cars")
    await followed.catalog.refresh()
    await first
    assert followed.catalog.task("cars").latest == 1


async def test_a_deleted_version_disappears_and_is_forgotten(followed: Followed) -> None:
    first = await followed.catalog.resolve("pets")
    await add_version(followed.registry, "pets", b"2", promote=True)
    await followed.registry.delete_version("pets", 1)
    await followed.catalog.refresh()
    assert followed.forgotten == [first.digest]
    with pytest.raises(VersionNotFound):
        await followed.catalog.resolve("pets", 1)


async def test_bytes_that_another_task_uses_are_not_forgotten(followed: Followed) -> None:
    first = await followed.catalog.resolve("pets")
    data = await followed.registry.fetch(first.digest)
    await followed.registry.add_version("twins", data, first.manifest)
    await followed.catalog.resolve("twins")
    await followed.registry.delete_task("pets")
    await followed.catalog.refresh()
    assert followed.forgotten == []
    await followed.registry.delete_task("twins")
    await followed.catalog.refresh()
    assert followed.forgotten == [first.digest]


async def test_a_deleted_task_disappears_even_if_it_is_made_again(followed: Followed) -> None:
    first = await followed.catalog.resolve("pets")
    await followed.registry.delete_task("pets")
    await add_version(followed.registry, "pets", b"new")
    await followed.catalog.refresh()
    again = await followed.catalog.resolve("pets")
    assert again.version > first.version
    with pytest.raises(VersionNotFound):
        await followed.catalog.resolve("pets", first.version)


async def test_a_version_deleted_while_it_is_read_is_not_kept(followed: Followed) -> None:
    await add_version(followed.registry, "pets", b"2", promote=True)
    await followed.catalog.refresh()
    deleted = asyncio.Event()
    read = followed.registry.get_version

    async def slow_read(task: str, version: int) -> object:
        found = await read(task, version)
        await deleted.wait()
        return found

    followed.registry.get_version = slow_read  # type: ignore[method-assign,assignment]
    resolving = asyncio.ensure_future(followed.catalog.resolve("pets", 1))
    await followed.registry.until_read("get_version")
    await followed.registry.delete_version("pets", 1)
    await followed.catalog.refresh()
    deleted.set()
    assert (await resolving).version == 1
    assert followed.catalog.lookup("pets", 1) is None


async def test_what_was_met_is_served_while_the_registry_is_away(followed: Followed) -> None:
    met = await followed.catalog.resolve("pets")
    followed.registry.away = True
    assert await followed.catalog.resolve("pets") is met
    with pytest.raises(RegistryUnavailable):
        await followed.catalog.resolve("boats")
    with pytest.raises(RegistryUnavailable):
        await followed.catalog.refresh()
    await followed.catalog.catch_up()
    followed.registry.away = False
    await add_version(followed.registry, "cars")
    await followed.catalog.refresh()
    assert followed.catalog.task("cars")


async def test_a_failure_half_way_through_events_loses_none(followed: Followed) -> None:
    await add_version(followed.registry, "cars")
    read = followed.registry.get_task

    async def fails(task: str) -> object:
        raise RegistryUnavailable("embedded", "gone")

    followed.registry.get_task = fails  # type: ignore[method-assign,assignment]
    with pytest.raises(RegistryUnavailable):
        await followed.catalog.refresh()
    followed.registry.get_task = read  # type: ignore[method-assign]
    await followed.catalog.refresh()
    assert followed.catalog.task("cars")


async def test_staleness_grows_only_while_the_registry_is_away(followed: Followed) -> None:
    assert 0 <= followed.catalog.staleness_seconds < 60
    followed.registry.away = True
    before = followed.catalog.staleness_seconds
    await followed.catalog.catch_up()
    assert followed.catalog.staleness_seconds >= before
    assert Catalog(followed.registry).staleness_seconds == float("inf")


async def test_the_background_task_follows_and_survives_an_outage(tmp_path: Path) -> None:
    registry = SwitchableRegistry(tmp_path)
    catalog = Catalog(registry, poll_seconds=0.001)
    await catalog.start()
    registry.away = True
    await registry.until_read("events", 3)
    registry.away = False
    await add_version(registry, "cars")
    await registry.until_read("get_task")
    await catalog.refresh()
    assert len(catalog) == 1
    await catalog.close()
    await registry.close()


async def test_a_cursor_the_registry_does_not_know_means_listing_again(followed: Followed) -> None:
    await followed.catalog.resolve("pets")
    await add_version(followed.registry, "cars")
    followed.catalog._cursor = "999999999"
    await followed.catalog.refresh()
    assert followed.catalog.task("cars")
    assert followed.catalog.lookup("pets") is None


async def test_keys_follow(followed: Followed) -> None:
    assert not followed.catalog.keys
    await add_key(followed.registry, "token", "predict")
    await followed.catalog.refresh()
    assert [key.name for key in followed.catalog.keys.values()] == ["token"]
    await followed.registry.delete_key("token")
    await followed.catalog.refresh()
    assert not followed.catalog.keys


async def test_tasks_are_paged_in_name_order_and_filtered(followed: Followed) -> None:
    for name in ("cars", "boats", "zebras"):
        await add_version(followed.registry, name)
    await followed.catalog.refresh()
    first = followed.catalog.tasks(after=None, limit=2, allowed=lambda name: name != "cars")
    assert [task.task for task in first.items] == ["boats", "pets"]
    second = followed.catalog.tasks(after=first.next_after, limit=2, allowed=lambda name: name != "cars")
    assert [task.task for task in second.items] == ["zebras"]
    assert second.next_after is None


async def test_closing_leaves_no_task_behind(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    registry = SwitchableRegistry(tmp_path)
    catalog = Catalog(registry, poll_seconds=0.001)
    await catalog.start()
    await registry.until_read("events")
    await catalog.close()
    assert asyncio.all_tasks() == before
    await registry.close()


def test_cache_shares_what_is_equal_and_leaves_the_training_record_out() -> None:
    cache = VersionCache(10)
    training = Training(dataset="d", train_images=1, val_images=1, seed=0, recipe={}, metrics={}, packages={})
    for number in (1, 2):
        version = make_version("pets", number)
        manifest = make_manifest().model_copy(update={"training": training})
        cache.add(version.model_copy(update={"manifest": manifest}))
    one, two = cache.get("pets", 1), cache.get("pets", 2)
    assert one is not None
    assert two is not None
    assert one.manifest.sites is two.manifest.sites
    assert one.manifest.training is None
    assert one.manifest.labels == ("cat", "dog")


def test_cache_drops_the_least_recently_used() -> None:
    cache = VersionCache(2)
    cache.add(make_version("a", 1))
    cache.add(make_version("b", 1))
    cache.get("a", 1)
    cache.add(make_version("c", 1))
    assert cache.get("b", 1) is None
    assert cache.has_task("a")
    assert not cache.has_task("b")
    assert len(cache) == 2


def test_cache_drops_a_task_as_a_whole() -> None:
    cache = VersionCache(10)
    digests = {cache.add(make_version("a", number)).digest for number in (1, 2)}
    kept = cache.add(make_version("b", 1))
    assert cache.drop_task("a") == digests
    assert cache.drop("a", 1) is None
    assert cache.digests() == {kept.digest}
