"""Engines on fakes, for tests: started, drained, and checked for breaches of the device's contract."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from registry.models import Version
from server.contracts import Image, Job, Logits, Outcome, Tier
from server.engine import LocalEngine, Threads
from server.events import Dropped, NoEvents, Refused
from server.limits import EngineLimits
from tests.fakes import FakeBlobs, FakeClock, FakeDevice, InlineExecutor, fake_logits, make_image


@dataclass
class Recorder(NoEvents):
    """Keeps every event."""

    batches: list[tuple[int, int]] = field(default_factory=list)
    reasons: list[Refused | Dropped] = field(default_factory=list)
    lookups: list[tuple[Tier, bool]] = field(default_factory=list)
    loads: list[Tier] = field(default_factory=list)
    failed_loads: int = 0
    evictions: list[tuple[Tier, float]] = field(default_factory=list)

    def batch_done(
        self, size: int, distinct_tasks: int, queue_seconds: Sequence[float], compute_seconds: float
    ) -> None:
        assert size == len(queue_seconds)
        assert min(queue_seconds) >= 0
        assert compute_seconds >= 0
        self.batches.append((size, distinct_tasks))

    def refused(self, reason: Refused) -> None:
        self.reasons.append(reason)

    def dropped(self, reason: Dropped) -> None:
        self.reasons.append(reason)

    def looked_up(self, tier: Tier, hit: bool) -> None:
        self.lookups.append((tier, hit))

    def loaded(self, tier: Tier, seconds: float) -> None:
        self.loads.append(tier)

    def load_failed(self) -> None:
        self.failed_loads += 1

    def evicted(self, tier: Tier, idle_seconds: float) -> None:
        self.evictions.append((tier, idle_seconds))


@dataclass
class Bench:
    """An engine and all that it stands on."""

    engine: LocalEngine
    device: FakeDevice
    blobs: FakeBlobs
    events: Recorder
    clock: Callable[[], float]

    def ask(
        self, version: Version, image: Image | None = None, *, deadline: float | None = None
    ) -> "asyncio.Task[Outcome]":
        image = make_image(size=4) if image is None else image
        return asyncio.create_task(self.engine.predict(Job(version, image, deadline)))

    async def answer(self, version: Version, image: Image | None = None) -> Logits:
        return (await self.ask(version, image)).logits

    async def turns(self, count: int = 100) -> None:
        """Let the event loop run everything that is due."""
        for _ in range(count):
            await asyncio.sleep(0)


def assert_answers(outcome: Outcome, version: Version, image: Image) -> None:
    expected = fake_logits(version.digest, version.manifest.num_classes, image)
    np.testing.assert_array_equal(outcome.logits, expected)


@asynccontextmanager
async def bench(
    *,
    slots: int = 4,
    limits: EngineLimits | None = None,
    disk: Path | None = None,
    device: FakeDevice | None = None,
    blobs: FakeBlobs | None = None,
    events: Recorder | None = None,
    inline: Literal["all", "loads", "nothing"] = "loads",
    clock: FakeClock | None = None,
) -> AsyncIterator[Bench]:
    """Start an engine; drain it at the end.

    What runs inline has no threads, so it is over after a few turns of the loop, in the same order each time.
    A test that stops the device needs the forward in a thread.
    """
    device, blobs, events = device or FakeDevice(slots=slots), blobs or FakeBlobs(), events or Recorder()
    limits, threads = limits or EngineLimits(), None
    if inline != "nothing":
        here = InlineExecutor()
        threads = Threads(here if inline == "all" else ThreadPoolExecutor(device.info.lanes), here, here)
    now = clock or asyncio.get_running_loop().time
    engine = LocalEngine(
        device,
        blobs.fetch,
        limits=limits,
        disk=disk,
        events=events,
        threads=threads,
        clock=now,
    )
    try:
        yield Bench(engine, device, blobs, events, now)
    finally:
        await engine.drain()
    assert device.breaches == []
