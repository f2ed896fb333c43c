"""The engine as a whole: right answers under stress, drain, flat memory."""

import asyncio
import gc
import random
import time
from pathlib import Path

import pytest

from adapters.errors import AdapterFileInvalid, ProbeMismatch
from registry.errors import RegistryUnavailable
from registry.models import Version
from server.contracts import Engine, Image, Job, Tier
from server.errors import AdapterUnavailable, DeadlineExceeded, Draining, PinLimit, QueueFull
from server.events import Refused
from server.limits import EngineLimits
from tests.engines import Bench, assert_answers, bench
from tests.fakes import WRONG_PROBE, FakeDevice, make_adapter_file, make_image, stopped

IMAGES = [make_image(seed, size=4) for seed in range(20)]
ALLOWED = (AdapterUnavailable, DeadlineExceeded, QueueFull, PinLimit)


async def test_a_batch_answers_as_one_job_at_a_time() -> None:
    async with bench(slots=8, limits=EngineLimits(max_batch=8)) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(8)]
        pairs = [(version, image) for version in versions for image in IMAGES[:4]]
        alone = [await b.answer(version, image) for version, image in pairs]
        random.Random(0).shuffle(pairs)
        together = await asyncio.gather(*(b.ask(version, image) for version, image in pairs))
        for (version, image), outcome in zip(pairs, together, strict=True):
            assert_answers(outcome, version, image)
        assert {logits.tobytes() for logits in alone} == {o.logits.tobytes() for o in together}


class Storm:
    """Random jobs, cancellations, deadlines, prefetches, pins, deletions and registry failures."""

    def __init__(self, b: Bench, seed: int) -> None:
        self.b = b
        self.rng = random.Random(seed)
        self.versions = [b.blobs.add(f"t{i % 12}", i // 12 + 1) for i in range(24)]
        self.answered = 0
        self.calls: set[asyncio.Task[None]] = set()

    async def blow(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
            if self.rng.random() < 0.5:
                await self.b.turns(self.rng.randrange(4))
            if len(self.calls) > 50:
                await self.settle(asyncio.FIRST_COMPLETED)
            self.b.engine.check()
        self.b.blobs.error = None
        while self.calls:
            await self.settle(asyncio.ALL_COMPLETED)

    async def settle(self, when: str) -> None:
        done, self.calls = await asyncio.wait(self.calls, return_when=when)
        for call in done:
            if not call.cancelled() and (error := call.exception()) is not None:
                assert isinstance(error, ALLOWED), error

    def step(self) -> None:
        version, engine = self.pick(), self.b.engine
        match self.rng.randrange(20):
            case 0 if self.calls:
                self.rng.choice(list(self.calls)).cancel()
            case 1:
                engine.forget(version.digest)
            case 2:
                self.start(self.pin_for_a_while(version))
            case 3:
                self.start(self.prefetch(version))
            case 4:
                self.b.blobs.error = RegistryUnavailable("redis", "away") if self.rng.random() < 0.2 else None
            case _:
                self.start(self.ask(version, self.rng.choice(IMAGES)))

    def pick(self) -> Version:
        return self.versions[min(int(self.rng.expovariate(0.25)), len(self.versions) - 1)]

    def start(self, call: "asyncio._CoroutineLike[None]") -> None:
        self.calls.add(asyncio.create_task(call))

    async def ask(self, version: Version, image: Image) -> None:
        deadline = None if self.rng.random() < 0.7 else time.monotonic() + self.rng.random() * 0.05
        assert_answers(await self.b.engine.predict(Job(version, image, deadline)), version, image)
        self.answered += 1

    async def prefetch(self, version: Version) -> None:
        await self.b.engine.prefetch(version)

    async def pin_for_a_while(self, version: Version) -> None:
        await self.b.engine.pin(version)
        await self.b.turns(10)
        await self.b.engine.unpin(version)


@pytest.mark.parametrize("seed", range(8))
async def test_every_answer_is_right_whatever_happens(seed: int, tmp_path: Path) -> None:
    limits = EngineLimits(
        max_batch=4, max_queue=60, max_queue_per_task=20, max_pinned=2, max_loads=3, host_bytes=6000,
        disk_bytes=12_000, retry_seconds=0.001,
    )  # fmt: skip
    device = FakeDevice(slots=1 + seed % 5, lanes=1 + seed % 2)
    async with bench(device=device, limits=limits, disk=tmp_path, inline="nothing") as b:
        storm = Storm(b, seed)
        await storm.blow(1500)
        assert storm.answered > 100
        gauges = b.engine.gauges()
        assert (gauges.queued, gauges.in_flight) == (0, 0)
        assert gauges.host_bytes <= limits.host_bytes
        # everything still works
        for version in storm.versions:
            await b.engine.unpin(version)
        for version in storm.versions:
            assert_answers(await b.ask(version, IMAGES[0]), version, IMAGES[0])


@pytest.mark.parametrize("seed", range(20))
async def test_every_answer_is_right_in_reproducible_order(seed: int) -> None:
    limits = EngineLimits(max_batch=3, max_queue=40, max_pinned=1, max_loads=2, retry_seconds=0)
    async with bench(slots=1 + seed % 3, limits=limits, inline="all") as b:
        await Storm(b, seed).blow(300)


async def test_drain_answers_what_was_accepted_and_refuses_the_rest() -> None:
    async with bench(slots=2, limits=EngineLimits(max_batch=1)) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(4)]
        b.blobs.close(versions[3].digest)
        with stopped(b.device):
            accepted = [b.ask(version) for version in versions]
            await b.turns()
            draining = [asyncio.create_task(b.engine.drain()) for _ in range(2)]
            await b.turns()
            with pytest.raises(Draining):
                await b.ask(versions[0])
            with pytest.raises(Draining):
                await b.engine.prefetch(versions[0])
        await b.turns()
        assert not any(drain.done() for drain in draining)
        b.blobs.open(versions[3].digest)
        for version, outcome in zip(versions, await asyncio.gather(*accepted), strict=True):
            assert_answers(outcome, version, make_image(size=4))
        await asyncio.gather(*draining)
        assert b.events.reasons == [Refused.DRAINING, Refused.DRAINING]


async def test_drain_ends_loads_that_no_job_waits_for() -> None:
    async with bench() as b:
        version = b.blobs.add()
        b.blobs.close(version.digest)
        asked = b.ask(version)
        await b.turns()
        asked.cancel()
        await asyncio.wait_for(b.engine.drain(), 10)


async def test_validation_is_the_devices() -> None:
    async with bench() as b:
        good = make_adapter_file()
        assert (await b.engine.validate(good)).labels == ("cat", "dog")
        with pytest.raises(ProbeMismatch):
            await b.engine.validate(make_adapter_file(WRONG_PROBE))
        with pytest.raises(AdapterFileInvalid):
            await b.engine.validate(b"junk")
        assert b.device.bank == {}


async def test_the_engine_is_the_engine_of_the_contract() -> None:
    async with bench() as b:
        engine: Engine = b.engine
        assert engine.backbone.slots == 4


async def test_memory_is_flat_over_loads_evictions_and_failures() -> None:
    limits = EngineLimits(max_batch=4, host_bytes=3000, max_loads=2)

    class Short(FakeDevice):
        """Keeps no list of its batches."""

        @property
        def batches(self) -> list[tuple[int, ...]]:
            return []

        @batches.setter
        def batches(self, _: object) -> None:
            pass

    async with bench(slots=2, limits=limits, device=Short(slots=2), inline="all") as b:
        versions = [b.blobs.add(f"t{i}") for i in range(40)]
        missing = [b.blobs.add(f"missing{i}") for i in range(40)]
        for version in missing:
            del b.blobs.data[version.digest]

        async def cycle(times: int) -> int:
            for turn in range(times):
                await b.answer(versions[turn % 40])
                if turn % 10 == 0:
                    with pytest.raises(AdapterUnavailable):
                        await b.ask(missing[turn // 10 % 40])
                if turn % 7 == 0:
                    b.engine.forget(versions[turn % 40].digest)
            evicted = len(b.events.evictions)
            for kept in (b.events.batches, b.events.evictions, b.events.loads, b.events.lookups):
                kept.clear()
            b.events.reasons.clear()
            assert evicted >= times - 40
            gc.collect()
            return len(gc.get_objects())

        before = await cycle(500)
        after = await cycle(2500)
        assert after - before < 200


async def test_tiers_are_counted() -> None:
    async with bench(slots=2) as b:
        for i in range(3):
            await b.answer(b.blobs.add(f"t{i}"))
        gauges = b.engine.gauges()
        assert dict(gauges.adapters) == {Tier.DEVICE: 2, Tier.HOST: 3, Tier.DISK: 0}
        assert (gauges.slots, gauges.pinned, gauges.disk_bytes) == (2, 0, 0)
