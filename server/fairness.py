"""Fair order between tasks, by a virtual counter per task: the smallest is served first."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

SLACK = 64  # stale places kept before a sweep


class _Place(NamedTuple):
    """Where a task stands: by counter, then by arrival."""

    counter: float
    arrival: int
    task: str


class FairOrder:
    """Tasks that want service, the one with the smallest counter first.

    Each service adds one to its task's counter. Virtual time follows the smallest counter, and each service
    adds one n-th to it, so a task that is new or returns starts level with the n others: absence earns no
    credit, and newcomers in a stream hold back nobody. A task is served within 3 n services of joining.

    Every operation is O(log n). Nothing is kept of absent tasks.
    """

    def __init__(self) -> None:
        self._time = 0.0
        self._heap: list[_Place] = []
        self._present: dict[str, _Place] = {}
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._present)

    def __contains__(self, task: str) -> bool:
        return task in self._present

    def join(self, task: str) -> None:
        """Let a task be served. Joining twice does nothing."""
        if task not in self._present:
            self._put(task, self._time)

    def leave(self, task: str) -> None:
        self._present.pop(task, None)
        self._sweep()

    def first(self) -> str | None:
        """Return the task to serve next, None if no task is present."""
        heap, present = self._heap, self._present
        while heap and present.get(heap[0].task) is not heap[0]:
            heappop(heap)
        return heap[0].task if heap else None

    def charge(self, task: str) -> None:
        """Record that a present task was served."""
        counter = self._present[task].counter
        self._time = max(self._time, counter) + 1 / len(self._present)
        self._put(task, counter + 1)
        self._sweep()

    def _put(self, task: str, counter: float) -> None:
        place = self._present[task] = _Place(counter, next(self._arrivals), task)
        heappush(self._heap, place)

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._present) + SLACK:
            self._heap = list(self._present.values())
            heapify(self._heap)


class FairSemaphore:
    """At most `permits` holders at a time; who waits is let in by fair order between tasks."""

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._order = FairOrder()
        self._waiting: dict[str, OrderedDict[asyncio.Future[None], None]] = {}

    @asynccontextmanager
    async def hold(self, task: str) -> AsyncIterator[None]:
        await self._acquire(task)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, task: str) -> None:
        if self._free and not self._order:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task, OrderedDict())[turn] = None
        self._order.join(task)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._remove(task, turn)
            else:
                self._release()  # let in and cancelled at once
            raise

    def _release(self) -> None:
        self._free += 1
        while self._free and (task := self._order.first()) is not None:
            turn = next(iter(self._waiting[task]))
            self._order.charge(task)
            self._remove(task, turn)
            if not turn.done():
                turn.set_result(None)
                self._free -= 1

    def _remove(self, task: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(task)
        if queue is None or turn not in queue:
            return
        del queue[turn]
        if not queue:
            del self._waiting[task]
            self._order.leave(task)
