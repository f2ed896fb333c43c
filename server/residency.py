"""Brings adapters to the device off the hot path, and evicts others to make room."""

import asyncio
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from adapters.errors import AdapterError, AdapterIncompatible
from registry.errors import RegistryError
from registry.models import Version
from server.contracts import AdapterState, Device, FoldedAdapter, Tier
from server.errors import AdapterMisfit, AdapterUnavailable, PinLimit
from server.events import Dropped, EngineEvents
from server.fairness import FairSemaphore
from server.jobs import JobQueue
from server.limits import EngineLimits
from server.slots import SlotTable, Victim
from server.sources import Sources

logger = logging.getLogger(__name__)

REMEMBERED = 10_000  # adapters whose last use is known
MISFIT_SECONDS = 300.0  # for which a misfit is remembered: nothing but another start mends it


class _Failure(NamedTuple):
    detail: str
    kind: type[AdapterUnavailable] = AdapterUnavailable

    def of(self, version: Version) -> AdapterUnavailable:
        return self.kind(version.task, version.version, self.detail)


class _Claim(NamedTuple):
    """A load that waits for a slot; it gets None once nobody wants the adapter."""

    digest: str
    slot: asyncio.Future[int | None]


class Residency:
    """Decides which adapters are on the device, and loads them. All methods run on one event loop.

    There is one load per digest, whoever asks. `max_loads` at a time from this host, and as many from the
    registry, by fair order between the tasks they are for, may hold an adapter in memory and wait for a slot,
    first come first served. So a registry that is slow or away holds up only adapters that are nowhere else.

    A slot that was loaded for waiting jobs stays until a batch has used it, so every load serves someone and
    nobody starves. With T tasks, S slots not pinned and R = min(S, `max_loads`), a job at the head of
    its task is in one of the next (2 T / R + 1) (3 S / `max_batch` + 2) batches, if its bytes are at hand and
    a load takes no longer than a batch.
    """

    def __init__(
        self,
        device: Device,
        queue: JobQueue,
        sources: Sources,
        *,
        limits: EngineLimits,
        events: EngineEvents,
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._queue = queue
        self._sources = sources
        self._limits = limits
        self._events = events
        self._wake = wake
        self._clock = clock
        self.slots = SlotTable(device.info.slots, wanted=self._is_awaited, clock=clock)
        self.pin_limit = min(limits.max_pinned, device.info.slots - 1)
        self._near = FairSemaphore(limits.max_loads)
        self._far = FairSemaphore(limits.max_loads)
        self._loads: dict[str, asyncio.Task[_Failure | None]] = {}
        self._claims: deque[_Claim] = deque()
        self._callers: Counter[str] = Counter()
        self._failures: dict[str, tuple[float, _Failure]] = {}  # and until when they stand
        self._forgotten: set[str] = set()
        self._last_used: OrderedDict[str, float] = OrderedDict()

    @property
    def starved(self) -> bool:
        """True while a load waits for a slot."""
        return bool(self._claims)

    def demand(self, version: Version) -> bool:
        """Note that a job needs an adapter; return True if it is on the device, else start to load it.

        Raises:
            AdapterUnavailable: If loading it has just failed; AdapterMisfit if it is not for this server.
        """
        hit = self.slots.find(version.digest) is not None
        self._events.looked_up(Tier.DEVICE, hit)
        if not hit:
            self._start(version)
        return hit

    async def ensure(self, version: Version) -> Tier:
        """Bring an adapter to the device; return the tier it was in.

        Raises:
            AdapterUnavailable
        """
        digest = version.digest
        tier = self.tier(digest)
        self._callers[digest] += 1
        try:
            while self.slots.find(digest) is None:
                failure = await asyncio.shield(self._start(version))
                if failure is not None:
                    raise failure.of(version)
        finally:
            self._callers -= Counter((digest,))
            self.unwanted(digest)
        return tier

    async def pin(self, version: Version) -> None:
        """Bring an adapter to the device and keep it there until `unpin`, or until loading it fails.

        Raises:
            AdapterUnavailable
            PinLimit
        """
        if not self.slots.is_kept(version.digest) and self.slots.kept >= self.pin_limit:
            raise PinLimit(self.pin_limit)
        self.slots.keep(version.digest)
        try:
            await self.ensure(version)
        except AdapterUnavailable:
            self.slots.unkeep(version.digest)
            raise

    def unpin(self, digest: str) -> None:
        self.slots.unkeep(digest)
        self.grant()

    def hold(self, digest: str) -> int:
        """Keep a resident adapter for a batch and return its slot."""
        self._last_used[digest] = time.time()
        self._last_used.move_to_end(digest)
        if len(self._last_used) > REMEMBERED:
            self._last_used.popitem(last=False)
        return self.slots.hold(digest)

    def release(self, digest: str) -> None:
        """End `hold`. The caller calls `grant` when it has released all."""
        self.slots.release(digest)
        self._sweep(digest)

    def unwanted(self, digest: str) -> None:
        """Note that a job for an adapter is gone unanswered, or another caller content."""
        if not self._is_awaited(digest):
            self.slots.unreserve(digest)
            self._sweep(digest)
            self.grant()

    def grant(self) -> None:
        """Hand slots that can be had to the loads that wait for one, first come first served."""
        while self._claims:
            if not self._is_wanted(self._claims[0].digest):
                self._claims.popleft().slot.set_result(None)
            elif (claim := self.slots.claim()) is not None:
                self._claims.popleft().slot.set_result(claim.slot)
                if claim.victim is not None:
                    self._evicted(claim.victim)
            else:
                return

    def forget(self, digest: str) -> None:
        """Drop all copies as soon as no accepted job needs them."""
        self.slots.unkeep(digest)
        self._forgotten.add(digest)
        self._sweep(digest)
        self.grant()

    def tier(self, digest: str) -> Tier:
        return Tier.DEVICE if self.slots.find(digest) is not None else self._sources.tier(digest)

    def state(self, digest: str) -> AdapterState:
        return AdapterState(self.tier(digest), self.slots.is_kept(digest), self._last_used.get(digest))

    async def close(self) -> None:
        """Stop every load. No job may wait any more."""
        self._claims.clear()
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    def _start(self, version: Version) -> asyncio.Task[_Failure | None]:
        load = self._loads.get(version.digest)
        if load is None:
            self._refuse_failed(version)
            load = asyncio.get_running_loop().create_task(self._load(version))
            self._loads[version.digest] = load
        return load

    def _refuse_failed(self, version: Version) -> None:
        until, failure = self._failures.get(version.digest, (0.0, None))
        if failure is not None and self._clock() < until:
            raise failure.of(version)

    async def _load(self, version: Version) -> _Failure | None:
        try:
            return await self._attempt(version)
        finally:
            # not in a callback: who waits must never find a load that is over
            self._ended(version.digest)

    async def _attempt(self, version: Version) -> _Failure | None:
        """Return why the load failed; None if it did not, or if nobody wants the adapter any more."""
        try:
            await self._bring(version)
        except AdapterIncompatible as error:
            # a 409 leaves no line in the log, and only who runs the server can mend it
            logger.warning(
                "version %d of task %s (%s): %s", version.version, version.task, version.digest, error
            )
            failure = _Failure(str(error), AdapterMisfit)
        except (RegistryError, AdapterError) as error:
            failure = _Failure(str(error))
        except TimeoutError:
            seconds = self._limits.fetch_seconds
            failure = _Failure(f"the registry did not hand it over in {seconds:.0f} s")
        except Exception:
            logger.exception("loading version %d of task %s failed", version.version, version.task)
            failure = _Failure("loading it failed")
        else:
            return None
        self._fail(version.digest, failure)
        return failure

    async def _bring(self, version: Version) -> None:
        started, digest = self._clock(), version.digest
        if self._sources.is_near(digest):
            async with self._near.hold(version.task):
                tier, adapter = await self._sources.look(digest)
                if adapter is not None:
                    await self._place(digest, adapter, tier, started)
                    return
        async with self._far.hold(version.task):
            data = await self._sources.fetch(digest)
            adapter = await self._sources.fold(digest, data)
            await self._place(digest, adapter, Tier.STORED, started)
            # only now: the jobs need not wait for the disk
            await self._sources.store(digest, data)

    async def _place(self, digest: str, adapter: FoldedAdapter, tier: Tier, started: float) -> None:
        """Copy an adapter into a slot when one can be had, unless nobody wants it by then."""
        claim = _Claim(digest, asyncio.get_running_loop().create_future())
        self._claims.append(claim)
        self.grant()
        slot = await claim.slot
        if slot is None:
            return
        try:
            await self._sources.in_pool(self._device.load, slot, adapter)
        except BaseException:
            self.slots.free(slot)
            self.grant()
            raise
        self.slots.fill(slot, digest)
        self._queue.set_ready(digest, True)
        self._events.loaded(tier, self._clock() - started)
        self.grant()
        self._wake()

    def _ended(self, digest: str) -> None:
        del self._loads[digest]
        # a job came while the load gave up, or the slot is gone again
        if self.slots.find(digest) is None and self._queue.wants(digest):
            self._again(digest)
        self._sweep(digest)

    def _evicted(self, victim: Victim) -> None:
        self._events.evicted(Tier.DEVICE, victim.idle_seconds)
        if self._queue.wants(victim.digest):
            self._queue.set_ready(victim.digest, False)
            self._again(victim.digest)

    def _again(self, digest: str) -> None:
        try:
            self._start(self._queue.version_of(digest))
        except AdapterUnavailable as error:
            self._drop_jobs(digest, _Failure(error.detail, type(error)))

    def _fail(self, digest: str, failure: _Failure) -> None:
        """Fail the jobs that wait for an adapter, and for a while those to come."""
        now = self._clock()
        seconds = MISFIT_SECONDS if failure.kind is AdapterMisfit else self._limits.retry_seconds
        self._failures = {key: kept for key, kept in self._failures.items() if kept[0] > now}
        self._failures[digest] = (now + seconds, failure)
        self._events.load_failed()
        self._drop_jobs(digest, failure)

    def _drop_jobs(self, digest: str, failure: _Failure) -> None:
        misfit = failure.kind is AdapterMisfit
        for ticket in self._queue.remove_all(digest):
            self._events.dropped(Dropped.ADAPTER_MISFIT if misfit else Dropped.ADAPTER_UNAVAILABLE)
            ticket.fail(failure.of(ticket.job.version))

    def _is_awaited(self, digest: str) -> bool:
        return self._queue.wants(digest) or digest in self._callers

    def _is_wanted(self, digest: str) -> bool:
        return self._is_awaited(digest) or self.slots.is_kept(digest)

    def _sweep(self, digest: str) -> None:
        """Drop a forgotten adapter if nothing needs it any more."""
        if digest not in self._forgotten or digest in self._loads:
            return
        if self._is_wanted(digest) or self.slots.is_held(digest):
            return
        self._forgotten.discard(digest)
        self._last_used.pop(digest, None)
        self.slots.drop(digest)
        self._sources.drop(digest)
