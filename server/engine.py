"""The engine of a replica: accepts jobs, keeps their adapters at hand, answers them in mixed batches."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters.manifest import Manifest
from registry.models import Version
from server.batcher import Batcher
from server.contracts import AdapterState, BackboneInfo, Device, Job, Outcome, Tier
from server.errors import AdapterMisfit, AdapterUnavailable, Draining, EngineBroken
from server.events import EngineEvents, NoEvents, Refused
from server.jobs import JobQueue
from server.limits import EngineLimits
from server.residency import Residency
from server.sources import Sources
from server.tiers import DiskCache


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """The state of an engine at one moment. What the disk holds is as of the last look at it."""

    queued: int
    in_flight: int
    adapters: Mapping[Tier, int]
    pinned: int
    slots: int
    host_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Threads:
    """Where blocking work runs. `forward` must run as many calls at a time as the device has lanes."""

    forward: Executor
    load: Executor
    validate: Executor

    @classmethod
    def start(cls, load_threads: int, lanes: int) -> "Threads":
        return cls(
            forward=ThreadPoolExecutor(lanes, "forward"),
            load=ThreadPoolExecutor(load_threads, "load"),
            validate=ThreadPoolExecutor(1, "validate"),
        )

    def stop(self) -> None:
        for pool in (self.forward, self.load, self.validate):
            pool.shutdown()


class LocalEngine:
    """The Engine of this process, on one device. Owns the device's threads until `drain`.

    Args:
        device: The bank and the forward.
        fetch: Returns an adapter file by digest; raises RegistryError (`Registry.fetch`).
        limits: What may be used.
        disk: Directory of the disk cache, None for none. Processes of one host may share it.
        events: Who watches.
        threads: Where blocking work runs; by default its own.
        clock: Seconds that never go back; deadlines of jobs are times of it.
    """

    def __init__(
        self,
        device: Device,
        fetch: Callable[[str], Awaitable[bytes]],
        *,
        limits: EngineLimits | None = None,
        disk: Path | None = None,
        events: EngineEvents | None = None,
        threads: Threads | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits, events = limits or EngineLimits(), events or NoEvents()
        self._device = device
        self._events = events
        self._threads = threads or Threads.start(limits.load_threads, device.info.lanes)
        self._queue = JobQueue()
        self._disk = None if disk is None else DiskCache(disk, limits.disk_bytes, clock=clock)
        self._sources = Sources(
            device,
            fetch,
            limits=limits,
            disk=self._disk,
            events=events,
            pool=self._threads.load,
            clock=clock,
        )
        self._residency = Residency(
            device,
            self._queue,
            self._sources,
            limits=limits,
            events=events,
            wake=self._wake,
            clock=clock,
        )
        self._batcher = Batcher(
            device,
            self._queue,
            self._residency,
            limits=limits,
            events=events,
            thread=self._threads.forward,
            clock=clock,
        )
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    @property
    def backbone(self) -> BackboneInfo:
        return self._device.info

    async def predict(self, job: Job) -> Outcome:
        with self._accepted():
            try:
                ticket = self._batcher.submit(job)
            except AdapterUnavailable as error:
                misfit = isinstance(error, AdapterMisfit)
                self._events.refused(Refused.ADAPTER_MISFIT if misfit else Refused.ADAPTER_UNAVAILABLE)
                raise
            try:
                return await ticket.future
            except asyncio.CancelledError:
                self._batcher.withdraw(ticket)
                raise

    async def validate(self, data: bytes, *, new: bool = True) -> Manifest:
        with self._accepted():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads.validate, partial(self._device.validate, data, new=new)
            )

    async def prefetch(self, version: Version) -> Tier:
        with self._accepted():
            return await self._residency.ensure(version)

    async def pin(self, version: Version) -> None:
        with self._accepted():
            await self._residency.pin(version)

    async def unpin(self, version: Version) -> None:
        self._residency.unpin(version.digest)

    def state(self, digest: str) -> AdapterState:
        return self._residency.state(digest)

    def forget(self, digest: str) -> None:
        self._residency.forget(digest)

    def check(self) -> None:
        self._batcher.check()

    def gauges(self) -> EngineGauges:
        """Read the engine's state. Cheap; looks at no disk."""
        slots, host, disk = self._residency.slots, self._sources.host, self._disk
        tiers = {Tier.DEVICE: slots.used, Tier.HOST: len(host), Tier.DISK: 0 if disk is None else len(disk)}
        return EngineGauges(
            queued=len(self._queue),
            in_flight=self._batcher.in_flight,
            adapters=tiers,
            pinned=slots.kept,
            slots=slots.total,
            host_bytes=host.nbytes,
            disk_bytes=0 if disk is None else disk.nbytes,
        )

    async def drain(self) -> None:
        self._draining = True
        await self._idle.wait()
        await self._batcher.close()
        await self._residency.close()
        await asyncio.to_thread(self._threads.stop)

    def _wake(self) -> None:
        self._batcher.wake()

    @contextmanager
    def _accepted(self) -> Iterator[None]:
        """Count a call as one that `drain` waits for."""
        self._refuse()
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    def _refuse(self) -> None:
        if self._draining:
            self._events.refused(Refused.DRAINING)
            raise Draining
        try:
            self._batcher.check()
        except EngineBroken:
            self._events.refused(Refused.BROKEN)
            raise
