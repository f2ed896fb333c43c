"""Loading and evicting: single flight, off the hot path, reserved until used, and nobody starves."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from registry.errors import BlobNotFound, RegistryUnavailable
from registry.models import Version
from server.contracts import AdapterState, Tier
from server.errors import AdapterMisfit, AdapterUnavailable, PinLimit
from server.events import Dropped, Refused
from server.limits import EngineLimits
from tests.builders import make_manifest
from tests.engines import Bench, assert_answers, bench
from tests.fakes import FakeAdapter, FakeBlobs, FakeClock, make_adapter_file, make_image, stopped

IMAGE = make_image(size=4)


async def test_concurrent_jobs_for_an_adapter_load_it_once() -> None:
    async with bench() as b:
        version = b.blobs.add()
        b.blobs.close(version.digest)
        asked = [b.ask(version) for _ in range(20)]
        prefetched = [asyncio.create_task(b.engine.prefetch(version)) for _ in range(5)]
        await b.turns()
        b.blobs.open(version.digest)
        for outcome in await asyncio.gather(*asked):
            assert_answers(outcome, version, IMAGE)
        assert set(await asyncio.gather(*prefetched)) == {Tier.STORED}
        assert b.blobs.fetched[version.digest] == 1
        assert b.events.loads == [Tier.STORED]


async def test_two_tasks_with_the_same_bytes_share_a_slot() -> None:
    async with bench() as b:
        first, second = b.blobs.add("one", payload=b"same"), b.blobs.add("other", payload=b"same")
        await asyncio.gather(b.ask(first), b.ask(second))
        assert b.engine.gauges().adapters[Tier.DEVICE] == 1


async def test_jobs_of_other_tasks_do_not_wait_for_a_fetch() -> None:
    async with bench() as b:
        slow, cold = b.blobs.add("slow"), b.blobs.add("cold")
        b.blobs.close(slow.digest)
        waiting = b.ask(slow)
        await b.turns()
        assert_answers(await b.ask(cold), cold, IMAGE)
        assert not waiting.done()
        b.blobs.open(slow.digest)
        assert_answers(await waiting, slow, IMAGE)


async def test_jobs_of_other_tasks_do_not_wait_for_a_copy_to_the_device() -> None:
    async with bench(inline="nothing") as b:
        slow, warm = b.blobs.add("slow"), b.blobs.add("warm")
        await b.engine.prefetch(warm)
        copying, go_on = threading.Event(), threading.Event()

        def wait(adapter: FakeAdapter) -> None:
            copying.set()
            assert go_on.wait(10)

        b.device.before_load = wait
        waiting = b.ask(slow)
        assert await asyncio.to_thread(copying.wait, 10)
        assert_answers(await b.ask(warm), warm, IMAGE)
        assert not waiting.done()
        go_on.set()
        assert_answers(await waiting, slow, IMAGE)


async def test_a_registry_that_hangs_holds_up_only_what_is_nowhere_else(tmp_path: Path) -> None:
    limits = EngineLimits(max_loads=2)
    async with bench(slots=2, limits=limits, disk=tmp_path) as b:
        known = [b.blobs.add(f"known{i}") for i in range(4)]
        for version in known:
            await b.engine.prefetch(version)
        hanging = [b.blobs.add(f"hanging{i}") for i in range(6)]
        for version in hanging:
            b.blobs.close(version.digest)
        waiting = [b.ask(version) for version in hanging]
        await b.turns()
        for version in known * 2:
            assert_answers(await b.ask(version), version, IMAGE)
        for version in hanging:
            b.blobs.open(version.digest)
        await asyncio.gather(*waiting)


async def test_a_cold_adapter_is_fetched_while_others_wait_for_slots() -> None:
    async with bench(slots=1, limits=EngineLimits(max_loads=1)) as b:
        running, near, cold = (b.blobs.add(name) for name in ("running", "near", "cold"))
        for version in (near, running):
            await b.engine.prefetch(version)
        with stopped(b.device):
            asked = [b.ask(running)]
            await b.turns()
            asked += [b.ask(near), b.ask(cold)]
            await b.turns()
            assert b.blobs.fetched[cold.digest] == 1
        await asyncio.gather(*asked)


async def test_a_registry_that_never_answers_fails_the_job_in_the_end() -> None:
    async with bench(limits=EngineLimits(fetch_seconds=0.01)) as b:
        version = b.blobs.add()
        b.blobs.close(version.digest)
        with pytest.raises(AdapterUnavailable, match="did not hand it over"):
            await b.ask(version)


@pytest.mark.parametrize(
    "error", [RegistryUnavailable("redis", "away"), BlobNotFound("ab"), OSError("a bug")], ids=repr
)
async def test_a_failed_load_fails_only_its_own_jobs_and_recovers(error: Exception) -> None:
    clock = FakeClock()
    async with bench(clock=clock) as b:
        good, bad = b.blobs.add("good"), b.blobs.add("bad")
        await b.engine.prefetch(good)
        b.blobs.error = error
        outcomes = await asyncio.gather(b.ask(bad), b.ask(good), b.ask(bad), return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "AdapterUnavailable", "Outcome", "AdapterUnavailable",
        ]  # fmt: skip
        assert b.events.failed_loads == 1

        b.blobs.error = None
        with pytest.raises(AdapterUnavailable):
            await b.ask(bad)
        assert b.blobs.fetched[bad.digest] == 1
        assert b.events.reasons[-1] == Refused.ADAPTER_UNAVAILABLE

        clock.advance(1)
        assert_answers(await b.ask(bad), bad, IMAGE)


async def test_an_adapter_for_another_backbone_is_told_from_one_to_wait_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    async with bench(clock=clock) as b:
        data = make_adapter_file(manifest=make_manifest(fingerprint="0" * 64))
        version = b.blobs.add()
        b.blobs.data[version.digest] = data
        for ask in (b.ask, b.ask, b.engine.prefetch, b.engine.pin):  # the first loads, the others are told
            with pytest.raises(AdapterMisfit, match="does not fit this backbone"):
                await ask(version)
            clock.advance(10)
        assert b.blobs.fetched[version.digest] == 1
        (line,) = [record.getMessage() for record in caplog.records]
        assert version.digest in line and "does not fit this backbone" in line
        assert b.events.reasons == [Dropped.ADAPTER_MISFIT, Refused.ADAPTER_MISFIT]


async def test_a_copy_that_fails_costs_no_slot() -> None:
    clock = FakeClock()
    async with bench(slots=1, clock=clock) as b:
        bad, good = b.blobs.add("bad"), b.blobs.add("good")

        def fail(adapter: FakeAdapter) -> None:
            if adapter.digest == bad.digest:
                raise MemoryError

        b.device.before_load = fail
        for _ in range(3):
            with pytest.raises(AdapterUnavailable):
                await b.ask(bad)
            clock.advance(2)
        assert_answers(await b.ask(good), good, IMAGE)


async def test_evicted_is_who_was_used_longest_ago() -> None:
    async with bench(slots=3, clock=FakeClock()) as b:
        old, middle, new, more = (b.blobs.add(f"t{i}") for i in range(4))
        for version in (old, middle, new, old, more):
            await b.ask(version)
        tiers = [b.engine.state(version.digest).tier for version in (old, middle, new, more)]
        assert tiers == [Tier.DEVICE, Tier.HOST, Tier.DEVICE, Tier.DEVICE]
        assert [tier for tier, _ in b.events.evictions] == [Tier.DEVICE]


async def test_evicted_is_first_who_has_no_jobs_waiting() -> None:
    async with bench(slots=3, limits=EngineLimits(max_batch=1)) as b:
        busy, idle, running, new = (b.blobs.add(name) for name in ("busy", "idle", "running", "new"))
        for version in (busy, idle, running):
            await b.ask(version)
        with stopped(b.device):
            asked = [b.ask(running), b.ask(running)]
            await b.turns()
            asked += [b.ask(busy), b.ask(busy)]
            await b.turns()
            asked.append(b.ask(new))
            await b.turns()
            assert b.engine.state(busy.digest).tier is Tier.DEVICE
            assert b.engine.state(idle.digest).tier is Tier.HOST
            assert len(b.events.evictions) == 1
        await asyncio.gather(*asked)


async def test_a_slot_of_a_running_batch_is_never_evicted() -> None:
    async with bench(slots=1) as b:
        running, waiting = b.blobs.add("running"), b.blobs.add("waiting")
        await b.engine.prefetch(running)
        with stopped(b.device):
            first = b.ask(running)
            await b.turns()
            second = b.ask(waiting)
            await b.turns()
            assert b.engine.state(running.digest).tier is Tier.DEVICE
            assert not second.done()
        assert_answers(await first, running, IMAGE)
        assert_answers(await second, waiting, IMAGE)


async def test_an_adapter_loaded_for_a_job_stays_until_the_job_ran() -> None:
    """With one slot and many tasks, every load serves at least one job: there is no thrashing."""
    async with bench(slots=1, limits=EngineLimits(max_batch=2)) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(10)]
        asked = [b.ask(version) for version in versions for _ in range(4)]
        await asyncio.gather(*asked)
        assert len(b.events.loads) <= len(b.events.batches) == 20


async def test_a_load_for_jobs_that_were_cancelled_evicts_nobody() -> None:
    async with bench(slots=1) as b:
        hot, gone = b.blobs.add("hot"), b.blobs.add("gone")
        await b.ask(hot)
        b.blobs.close(gone.digest)
        asked = b.ask(gone)
        await b.turns()
        asked.cancel()
        b.blobs.open(gone.digest)
        await b.turns()
        assert b.engine.state(hot.digest).tier is Tier.DEVICE
        assert b.engine.state(gone.digest).tier is Tier.HOST
        assert b.events.reasons == [Dropped.CANCELLED]


async def test_a_reservation_ends_with_the_jobs_it_was_for() -> None:
    async with bench(slots=2, limits=EngineLimits(max_batch=1)) as b:
        running, gone, other = (b.blobs.add(name) for name in ("running", "gone", "other"))
        await b.engine.prefetch(running)
        with stopped(b.device):
            first = [b.ask(running), b.ask(running)]
            await b.turns()
            cancelled = b.ask(gone)
            await b.turns()
            assert b.engine.state(gone.digest).tier is Tier.DEVICE
            waiting = b.ask(other)
            await b.turns()
            assert b.engine.state(other.digest).tier is not Tier.DEVICE
            cancelled.cancel()
            await b.turns()
            assert b.engine.state(other.digest).tier is Tier.DEVICE
        await asyncio.gather(*first, waiting)


async def test_a_job_that_comes_while_its_load_gives_up_is_answered() -> None:
    async with bench(slots=1, inline="all") as b:
        version = b.blobs.add()
        for patience in range(30):
            b.engine.forget(version.digest)
            asked = b.ask(version)
            await b.turns(patience)
            asked.cancel()
            await b.turns(patience % 7)
            assert_answers(await b.ask(version), version, IMAGE)


async def test_a_prefetch_that_comes_while_its_load_gives_up_brings_the_adapter() -> None:
    async with bench(slots=1, inline="all") as b:
        version, other = b.blobs.add(), b.blobs.add("other")
        for patience in range(40):
            await b.ask(other)
            b.engine.forget(version.digest)
            asked = b.ask(version)
            await b.turns(patience // 4)
            asked.cancel()
            await b.turns(patience % 4)
            await asyncio.wait_for(b.engine.prefetch(version), 10)
            assert b.engine.state(version.digest).tier is Tier.DEVICE


async def test_a_pinned_adapter_stays() -> None:
    async with bench(slots=2, limits=EngineLimits(max_pinned=1)) as b:
        pinned, others = b.blobs.add("pinned"), [b.blobs.add(f"t{i}") for i in range(5)]
        await b.engine.pin(pinned)
        for version in others:
            await b.ask(version)
        assert b.engine.state(pinned.digest).tier is Tier.DEVICE
        assert b.engine.state(pinned.digest).pinned
        await b.engine.unpin(pinned)
        for version in others[:2]:
            await b.ask(version)
        assert b.engine.state(pinned.digest).tier is Tier.HOST


async def test_pins_are_limited() -> None:
    async with bench(slots=4, limits=EngineLimits(max_pinned=2)) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(3)]
        for version in versions[:2]:
            await b.engine.pin(version)
            await b.engine.pin(version)
        with pytest.raises(PinLimit):
            await b.engine.pin(versions[2])
        await b.engine.unpin(versions[0])
        await b.engine.pin(versions[2])
        assert b.engine.gauges().pinned == 2


@pytest.mark.parametrize("slots", [1, 2])
async def test_pins_always_leave_a_slot(slots: int) -> None:
    async with bench(slots=slots, limits=EngineLimits(max_pinned=100)) as b:
        for i in range(slots - 1):
            await b.engine.pin(b.blobs.add(f"pinned{i}"))
        with pytest.raises(PinLimit):
            await b.engine.pin(b.blobs.add("more"))
        version = b.blobs.add("other")
        assert_answers(await b.ask(version), version, IMAGE)


async def test_a_pin_that_cannot_be_loaded_does_not_count() -> None:
    async with bench(limits=EngineLimits(max_pinned=1)) as b:
        missing, there = b.blobs.add("missing"), b.blobs.add("there")
        del b.blobs.data[missing.digest]
        with pytest.raises(AdapterUnavailable):
            await b.engine.pin(missing)
        await b.engine.pin(there)


async def test_adapters_come_from_the_nearest_tier(tmp_path: Path) -> None:
    blobs = FakeBlobs()
    first, second = blobs.add("first"), blobs.add("second")
    async with bench(slots=1, disk=tmp_path, blobs=blobs) as b:
        assert b.engine.state(first.digest) == AdapterState(Tier.STORED, pinned=False, last_used=None)
        assert [await b.engine.prefetch(version) for version in (first, second, first, first)] == [
            Tier.STORED, Tier.STORED, Tier.HOST, Tier.DEVICE,
        ]  # fmt: skip
        gauges = b.engine.gauges()
        assert dict(gauges.adapters) == {Tier.DEVICE: 1, Tier.HOST: 2, Tier.DISK: 2}
        assert gauges.host_bytes == gauges.disk_bytes == first.size + second.size
    blobs.error = RegistryUnavailable("redis", "away")
    async with bench(slots=1, disk=tmp_path, blobs=blobs) as b:
        assert await b.engine.prefetch(second) is Tier.DISK
        assert_answers(await b.ask(first), first, IMAGE)
        assert b.events.lookups.count((Tier.DISK, True)) == 2


async def test_a_damaged_disk_cache_is_not_believed(tmp_path: Path) -> None:
    blobs = FakeBlobs()
    version = blobs.add()
    async with bench(disk=tmp_path, blobs=blobs) as b:
        await b.ask(version)
    (tmp_path / version.digest).write_bytes(make_adapter_file(b"evil"))
    async with bench(disk=tmp_path, blobs=blobs) as b:
        assert_answers(await b.ask(version), version, IMAGE)
    assert blobs.fetched[version.digest] == 2


async def test_a_forgotten_adapter_is_dropped_everywhere(tmp_path: Path) -> None:
    async with bench(disk=tmp_path) as b:
        version = b.blobs.add()
        await b.engine.pin(version)
        await b.turns()
        b.engine.forget(version.digest)
        assert b.engine.state(version.digest) == AdapterState(Tier.STORED, pinned=False, last_used=None)
        assert b.engine.gauges().slots == 4
        assert_answers(await b.ask(version), version, IMAGE)


async def test_a_forgotten_adapter_still_answers_accepted_jobs() -> None:
    async with bench(limits=EngineLimits(max_batch=1)) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            asked = [b.ask(version) for _ in range(4)]
            await b.turns()
            b.engine.forget(version.digest)
            del b.blobs.data[version.digest]
        for outcome in await asyncio.gather(*asked):
            assert_answers(outcome, version, IMAGE)
        assert b.engine.state(version.digest).tier is Tier.STORED
        with pytest.raises(AdapterUnavailable):
            await b.ask(version)


async def test_the_last_use_is_told() -> None:
    async with bench() as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        assert b.engine.state(version.digest).last_used is None
        await b.ask(version)
        used = b.engine.state(version.digest).last_used
        assert used is not None
        assert used > 1.7e9


class Client:
    """Asks for one version again and again; keeps the answers, and the most batches that one took."""

    def __init__(self, b: Bench, version: Version) -> None:
        self.b, self.version, self.waited, self.answers = b, version, 0, 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            before = len(self.b.device.batches)
            assert_answers(await self.b.ask(self.version, IMAGE), self.version, IMAGE)
            self.waited = max(self.waited, len(self.b.device.batches) - before)
            self.answers += 1


async def run_clients(
    jobs: Sequence[int], *, slots: int, max_batch: int, max_loads: int, batches: int
) -> list[Client]:
    """Let task i always have jobs[i] jobs waiting, for so many batches."""
    limits = EngineLimits(max_batch=max_batch, max_loads=max_loads, max_pinned=0)
    async with bench(slots=slots, limits=limits, inline="all") as b:
        stop = asyncio.Event()
        clients = [Client(b, b.blobs.add(f"t{task}")) for task in range(len(jobs))]
        running = [
            asyncio.create_task(client.run(stop))
            for client, count in zip(clients, jobs, strict=True)
            for _ in range(count)
        ]
        while len(b.device.batches) < batches:
            await b.turns(20)
        stop.set()
        await asyncio.gather(*running)
        return clients


@settings(max_examples=30, deadline=None, phases=set(Phase) - {Phase.explain})
@given(
    jobs=st.lists(st.sampled_from([1, 1, 1, 2, 8, 20]), min_size=1, max_size=12),
    slots=st.integers(1, 4),
    max_batch=st.integers(1, 5),
    max_loads=st.integers(1, 4),
)
def test_nobody_starves(jobs: list[int], slots: int, max_batch: int, max_loads: int) -> None:
    """The bound that Residency states, for tasks with one job at a time beside greedy ones."""
    clients = asyncio.run(
        run_clients(jobs, slots=slots, max_batch=max_batch, max_loads=max_loads, batches=150)
    )
    bound = (2 * len(jobs) / min(slots, max_loads) + 1) * (3 * slots / max_batch + 2)
    for count, client in zip(jobs, clients, strict=True):
        if count == 1:
            assert client.waited <= bound
            assert client.answers >= 1


def test_zipf_traffic_over_many_more_tasks_than_slots_serves_all() -> None:
    jobs = [max(1, 60 // (rank + 1)) for rank in range(40)]
    clients = asyncio.run(run_clients(jobs, slots=4, max_batch=8, max_loads=4, batches=600))
    # 600 batches use 4 slots each, so every task can have had its adapter loaded 60 times
    assert min(client.answers for client in clients) >= 40
