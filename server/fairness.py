"""Fair order between tasks, by a virtual counter per task: the smallest is served first."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

SLACK = 64  # stale records kept before a sweep


class _Place(NamedTuple):
    """Where a task stands: by counter, then by arrival."""

    counter: float
    arrival: int
    task: str


class FairOrder:
    """Tasks that want service, the one with the smallest counter first.

    A task's counter grows by what it is served. Virtual time follows the smallest counter and grows by an
    equal part of each service, so a task that returns, or is new, starts level with the others: absence earns
    no credit, and a stream of newcomers cannot hold back who is there. With n tasks present, a task is served
    within 3 n services of its joining.

    Every operation is O(log n). An absent task is remembered only while its counter is ahead of virtual time.
    """

    def __init__(self) -> None:
        self._time = 0.0
        self._heap: list[_Place] = []
        self._present: dict[str, _Place] = {}
        self._ahead: dict[str, float] = {}
        self._ahead_limit = SLACK
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._present)

    def __contains__(self, task: str) -> bool:
        return task in self._present

    def join(self, task: str) -> None:
        """Let a task be served. Joining twice does nothing."""
        if task not in self._present:
            self._put(task, max(self._ahead.pop(task, 0.0), self._time))

    def leave(self, task: str) -> None:
        place = self._present.pop(task, None)
        if place is not None and place.counter > self._time:
            self._ahead[task] = place.counter
            self._sweep_ahead()
        self._sweep_heap()

    def first(self) -> str | None:
        """Return the task to serve next, None if no task is present."""
        heap, present = self._heap, self._present
        while heap and present.get(heap[0].task) is not heap[0]:
            heappop(heap)
        return heap[0].task if heap else None

    def charge(self, task: str, cost: float = 1.0) -> None:
        """Record that a present task was served."""
        counter = self._present[task].counter
        self._time = max(self._time, counter) + cost / len(self._present)
        self._put(task, counter + cost)
        self._sweep_heap()

    def _put(self, task: str, counter: float) -> None:
        place = self._present[task] = _Place(counter, next(self._arrivals), task)
        heappush(self._heap, place)

    def _sweep_heap(self) -> None:
        if len(self._heap) > 2 * len(self._present) + SLACK:
            self._heap = list(self._present.values())
            heapify(self._heap)

    def _sweep_ahead(self) -> None:
        if len(self._ahead) > self._ahead_limit:
            self._ahead = {task: at for task, at in self._ahead.items() if at > self._time}
            self._ahead_limit = 2 * len(self._ahead) + SLACK


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
