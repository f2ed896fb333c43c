"""Who is waited for when an alias moves: leases, silence, and replicas that are cut off."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from registry import EmbeddedRegistry, Lease, RegistryUnavailable
from registry.models import check_name
from server.catalog import Catalog
from server.errors import NotConfirmed
from server.membership import BEATS_A_LEASE, Membership, make_name
from tests.fakes import FakeClock
from tests.unit.app_parts import SwitchableRegistry, add_version

LEASE = 9.0
BEAT = LEASE / BEATS_A_LEASE


class Deaf(EmbeddedRegistry):
    """A registry that can be read, and takes leases only while `hears`."""

    hears = True

    async def put_lease(self, lease: Lease) -> None:
        if not self.hears:
            raise RegistryUnavailable("embedded", "full")
        await super().put_lease(lease)


@dataclass
class Fleet:
    directory: Path
    clock: FakeClock = field(default_factory=FakeClock)
    registries: list[EmbeddedRegistry] = field(default_factory=list)

    def member(self, name: str) -> Membership:
        registry = Deaf(self.directory)
        self.registries.append(registry)
        return Membership(registry, name=name, lease_seconds=LEASE, clock=self.clock)

    async def joined(self, name: str, cursor: str = "5") -> Membership:
        member = self.member(name)
        await member.begin()
        await member.applied(cursor)
        return member


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    for registry in made.registries:
        await registry.close()


async def names(watcher: Membership) -> set[str]:
    return {member.lease.replica for member in await watcher.look()}


def test_names_are_names_and_differ() -> None:
    made = {make_name() for _ in range(100)}
    assert len(made) == 100
    assert all(check_name("replica", name) for name in made)


async def test_all_who_hold_a_lease_must_confirm(fleet: Fleet) -> None:
    first, second = await fleet.joined("a", "7"), await fleet.joined("b", "6")
    with pytest.raises(NotConfirmed) as caught:
        await first.confirm("7", seconds=0.1)
    assert caught.value.replicas == ("b",)
    waiting = asyncio.ensure_future(first.confirm("7", seconds=30))
    await second.applied("9")
    assert await waiting == ("a", "b")


async def test_who_has_begun_to_read_is_waited_for(fleet: Fleet) -> None:
    first = await fleet.joined("a", "7")
    await fleet.member("b").begin()
    with pytest.raises(NotConfirmed) as caught:
        await first.confirm("7", seconds=0.1)
    assert caught.value.replicas == ("b",)


async def test_who_leaves_is_not_waited_for(fleet: Fleet) -> None:
    first, second = await fleet.joined("a", "7"), await fleet.joined("b", "6")
    await second.leave()
    assert second.is_cut_off
    assert await first.confirm("7", seconds=30) == ("a",)


async def test_who_is_silent_for_its_lease_is_gone_and_has_known_it_before(fleet: Fleet) -> None:
    watcher, silent = await fleet.joined("a"), await fleet.joined("b")
    for _ in range(BEATS_A_LEASE):
        assert await names(watcher) == {"a", "b"}
        assert not silent.is_cut_off
        fleet.clock.advance(BEAT)
        await watcher.applied("5")
    assert silent.is_cut_off
    assert not watcher.is_cut_off
    assert await names(watcher) == {"a"}


async def test_time_without_an_answer_of_the_registry_is_no_silence(fleet: Fleet) -> None:
    watcher, other = await fleet.joined("a"), await fleet.joined("b")
    await watcher.look()
    fleet.clock.advance(1000)  # the registry was away for both
    assert other.is_cut_off
    assert await names(watcher) == {"a", "b"}


async def test_a_beat_ends_the_silence(fleet: Fleet) -> None:
    watcher, other = await fleet.joined("a"), await fleet.joined("b")
    for _ in range(3 * BEATS_A_LEASE):
        fleet.clock.advance(BEAT)
        await other.applied("5")
        await watcher.applied("5")
        assert await names(watcher) == {"a", "b"}


async def test_nothing_is_told_between_beats_unless_it_is_news(fleet: Fleet) -> None:
    member = await fleet.joined("a")
    (before,) = await member.look()
    fleet.clock.advance(BEAT / 2)
    await member.applied("5")
    assert (await member.look())[0].lease == before.lease
    await member.applied("6")
    assert (await member.look())[0].lease.cursor == "6"


async def test_what_was_read_before_anybody_waited_does_not_count(fleet: Fleet) -> None:
    member = fleet.member("a")
    fleet.registries[0].hears = False  # type: ignore[attr-defined]
    await member.begin()
    fleet.registries[0].hears = True  # type: ignore[attr-defined]
    await member.applied("5")  # of a read that nobody waited for
    assert member.is_cut_off
    await member.begin()
    await member.applied("5")
    assert not member.is_cut_off


async def test_a_lease_that_could_not_be_renewed_is_told_again_at_once(fleet: Fleet) -> None:
    member = await fleet.joined("a")
    fleet.registries[0].hears = False  # type: ignore[attr-defined]
    await member.applied("6")
    fleet.registries[0].hears = True  # type: ignore[attr-defined]
    await member.applied("6")
    assert (await member.look())[0].lease.cursor == "6"


async def test_a_lease_that_the_registry_lost_is_told_again(fleet: Fleet) -> None:
    member, watcher = await fleet.joined("a"), fleet.member("b")
    (seen,) = await watcher.look()
    await fleet.registries[1].drop_lease(seen.lease)
    await member.look()
    await member.applied("5")
    assert await names(watcher) == {"a"}


# --- with catalogs


@dataclass
class Two:
    """Two replicas' catalogs on one registry, the second following by itself only when told."""

    writer: Catalog
    other: Catalog
    registry: SwitchableRegistry
    clock: FakeClock


@pytest.fixture(params=["serve", "refuse"])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Two]:
    clock, registry, others = FakeClock(), SwitchableRegistry(tmp_path), SwitchableRegistry(tmp_path)
    for payload in (b"1", b"2"):
        await add_version(registry, "pets", payload)
    catalogs = [
        Catalog(
            followed,
            poll_seconds=seconds,
            membership=Membership(followed, name=name, lease_seconds=LEASE, clock=clock),
            refuse_when_cut_off=request.param == "refuse",
        )
        for name, followed, seconds in (("a", registry, 0.01), ("b", others, 3600))
    ]
    for catalog in catalogs:
        await catalog.start()
    yield Two(*catalogs, others, clock)
    for catalog in catalogs:
        await catalog.close()
    await registry.close()
    await others.close()


async def served(catalog: Catalog) -> int:
    return (await catalog.resolve("pets")).version


async def test_a_confirmed_move_is_served_everywhere(two: Two) -> None:
    assert await served(two.other) == 1
    await two.registry.set_alias("pets", "production", 2)
    waiting = asyncio.ensure_future(two.writer.confirm(30))
    with pytest.raises(NotConfirmed):
        await two.writer.confirm(0.1)
    assert not waiting.done()
    await two.other.refresh()
    assert await waiting == ("a", "b")
    assert await served(two.other) == 2


async def test_a_replica_that_starts_after_the_move_begins_with_it(two: Two, tmp_path: Path) -> None:
    await two.other.close()
    await two.registry.set_alias("pets", "production", 2)
    assert await two.writer.confirm(30) == ("a",)
    late = Catalog(two.registry, membership=Membership(two.registry, name="late"))
    await late.start()
    assert await served(late) == 2
    assert await two.writer.confirm(30) == ("a", "late")
    await late.close()


async def test_a_replica_that_is_cut_off_does_as_it_is_told(two: Two) -> None:
    assert await served(two.other) == 1
    two.registry.away = True
    with pytest.raises(RegistryUnavailable):
        await two.other.refresh()
    assert await served(two.other) == 1, "its lease is held still"
    two.clock.advance(LEASE)
    if two.other._refuses:
        with pytest.raises(RegistryUnavailable):
            await served(two.other)
    else:
        assert await served(two.other) == 1
    assert (await two.other.resolve("pets", version=1)).version == 1, "a version by number cannot be stale"
    two.registry.away = False
    await two.other.refresh()
    assert await served(two.other) == 1


async def test_a_replica_that_was_frozen_looks_before_it_answers(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await served(two.other) == 1
    await two.registry.set_alias("pets", "production", 2)
    assert await served(two.other) == 1, "it has not looked yet, and is waited for"
    two.clock.advance(LEASE)
    monkeypatch.setattr(two.other, "_poll_seconds", -1)  # it should have looked since
    assert await served(two.other) == 2


async def test_a_registry_that_is_away_confirms_nothing(two: Two) -> None:
    two.writer.membership._registry = two.registry

    async def away() -> tuple[Lease, ...]:
        raise RegistryUnavailable("embedded", "")

    two.registry.leases = away  # type: ignore[method-assign]
    with pytest.raises(NotConfirmed) as caught:
        await two.writer.confirm(0.1)
    assert caught.value.replicas == ()
