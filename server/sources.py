"""Where adapters come from, nearest first: host memory, the local disk, the registry."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

from server.contracts import Device, FoldedAdapter, Tier
from server.events import EngineEvents
from server.limits import EngineLimits
from server.tiers import DiskCache, HostCache

P = ParamSpec("P")
T = TypeVar("T")


class Sources:
    """Hands over folded adapters, and keeps copies within the limits. Runs on one event loop.

    Reading, checking and folding run in `pool`.
    """

    def __init__(
        self,
        device: Device,
        fetch: Callable[[str], Awaitable[bytes]],
        *,
        limits: EngineLimits,
        disk: DiskCache | None,
        events: EngineEvents,
        pool: Executor,
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._fetch = fetch
        self._limits = limits
        self._events = events
        self._pool = pool
        self.host = HostCache(limits.host_bytes, clock=clock)
        self.disk = disk

    def tier(self, digest: str) -> Tier:
        """Return the nearest tier that has the adapter. Costs one look at the disk at most."""
        if digest in self.host:
            return Tier.HOST
        return Tier.DISK if self.disk is not None and digest in self.disk else Tier.STORED

    def is_near(self, digest: str) -> bool:
        """Tell whether `look` will most likely find the adapter on this host."""
        if self.tier(digest) is not Tier.STORED:
            return True
        self._events.looked_up(Tier.HOST, False)
        if self.disk is not None:
            self._events.looked_up(Tier.DISK, False)
        return False

    async def look(self, digest: str) -> tuple[Tier, FoldedAdapter | None]:
        """Look for an adapter on this host.

        Raises:
            AdapterError: If the file on disk does not fit this backbone.
        """
        adapter = self.host.get(digest)
        self._events.looked_up(Tier.HOST, adapter is not None)
        if adapter is not None or self.disk is None:
            return Tier.HOST, adapter
        data = await self.in_pool(self.disk.read, digest)
        self._events.looked_up(Tier.DISK, data is not None)
        return Tier.DISK, None if data is None else await self.fold(digest, data)

    async def fetch(self, digest: str) -> bytes:
        """Get an adapter file from the registry.

        Raises:
            RegistryError
            TimeoutError: After `fetch_seconds`.
        """
        async with asyncio.timeout(self._limits.fetch_seconds):
            return await self._fetch(digest)

    async def fold(self, digest: str, data: bytes) -> FoldedAdapter:
        """Fold an adapter file and keep the result in host memory.

        Raises:
            AdapterError: If it does not fit this backbone.
        """
        adapter = await self.in_pool(self._device.fold, data)
        self._report(Tier.HOST, self.host.put(digest, adapter))
        return adapter

    async def store(self, digest: str, data: bytes) -> None:
        """Keep an adapter file on disk."""
        if self.disk is not None:
            self._report(Tier.DISK, await self.in_pool(self.disk.write, digest, data))

    def drop(self, digest: str) -> None:
        self.host.drop(digest)
        if self.disk is not None:
            self.disk.drop(digest)

    async def in_pool(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *args, **kwargs))

    def _report(self, tier: Tier, idle_seconds: list[float]) -> None:
        for seconds in idle_seconds:
            self._events.evicted(tier, seconds)
