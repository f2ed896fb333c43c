"""Jobs that wait for a batch, by task and adapter."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from registry.models import Version
from server.contracts import Job, Outcome
from server.fairness import FairOrder


class Ticket:
    """A job that was accepted, and the future of its answer."""

    __slots__ = ("entered", "future", "job", "timer")

    def __init__(self, job: Job, future: asyncio.Future[Outcome], entered: float) -> None:
        self.job = job
        self.future = future
        self.entered = entered
        self.timer: asyncio.TimerHandle | None = None

    @property
    def digest(self) -> str:
        return self.job.version.digest

    def answer(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class _Flow:
    """The tickets of one adapter of one task, in order of arrival."""

    task: str
    digest: str
    ready: bool
    tickets: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)


@dataclass(slots=True, eq=False)
class _TaskQueue:
    """How many tickets of a task wait, and which of its flows can be served, in turn."""

    length: int = 0
    ready: OrderedDict[str, _Flow] = field(default_factory=OrderedDict)


class JobQueue:
    """Tickets that wait. Those whose adapter is on the device are *ready* and leave in fair order by task.

    Adapters of one task take turns; tickets of one adapter leave as they came. Every operation is O(log n)
    in the number of tasks; nothing is kept of tasks without tickets.
    """

    def __init__(self) -> None:
        self._order = FairOrder()
        self._tasks: dict[str, _TaskQueue] = {}
        self._flows: dict[str, dict[str, _Flow]] = {}
        self._length = 0
        self._ready = 0

    def __len__(self) -> int:
        return self._length

    @property
    def ready(self) -> int:
        return self._ready

    @property
    def tasks(self) -> int:
        return len(self._tasks)

    def length_of(self, task: str) -> int:
        queue = self._tasks.get(task)
        return queue.length if queue else 0

    def wants(self, digest: str) -> bool:
        """Tell whether a ticket waits for this adapter."""
        return digest in self._flows

    def version_of(self, digest: str) -> Version:
        """Return the version that the first ticket waiting for this adapter names."""
        flow = next(iter(self._flows[digest].values()))
        return next(iter(flow.tickets)).job.version

    def push(self, ticket: Ticket, *, ready: bool) -> None:
        """Add a ticket; `ready` says whether its adapter is on the device."""
        task, digest = ticket.job.version.task, ticket.digest
        flows = self._flows.setdefault(digest, {})
        flow = flows.get(task)
        if flow is None:
            flow = flows[task] = _Flow(task, digest, ready)
        queue = self._tasks.setdefault(task, _TaskQueue())
        flow.tickets[ticket] = None
        queue.length += 1
        self._length += 1
        if ready:
            self._ready += 1
            queue.ready[digest] = flow
            self._order.join(task)

    def pop(self) -> Ticket | None:
        """Take the next ready ticket and charge its task for it."""
        task = self._order.first()
        if task is None:
            return None
        queue = self._tasks[task]
        digest, flow = next(iter(queue.ready.items()))
        queue.ready.move_to_end(digest)
        ticket = next(iter(flow.tickets))
        self._order.charge(task)
        self._detach(ticket, flow)
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out; return False if it does not wait here (any more)."""
        flow = self._flows.get(ticket.digest, {}).get(ticket.job.version.task)
        if flow is None or ticket not in flow.tickets:
            return False
        self._detach(ticket, flow)
        return True

    def remove_all(self, digest: str) -> list[Ticket]:
        """Take out every ticket that waits for an adapter."""
        tickets = [ticket for flow in self._flows.get(digest, {}).values() for ticket in flow.tickets]
        for ticket in tickets:
            self.remove(ticket)
        return tickets

    def clear(self) -> list[Ticket]:
        return [ticket for digest in list(self._flows) for ticket in self.remove_all(digest)]

    def set_ready(self, digest: str, ready: bool) -> None:
        """Record that an adapter came to the device, or left it."""
        for flow in self._flows.get(digest, {}).values():
            if flow.ready != ready:
                flow.ready = ready
                self._ready += len(flow.tickets) if ready else -len(flow.tickets)
                self._move(flow)

    def _move(self, flow: _Flow) -> None:
        queue = self._tasks[flow.task]
        if flow.ready:
            queue.ready[flow.digest] = flow
            self._order.join(flow.task)
        else:
            self._retire(queue, flow)

    def _retire(self, queue: _TaskQueue, flow: _Flow) -> None:
        queue.ready.pop(flow.digest, None)
        if not queue.ready:
            self._order.leave(flow.task)

    def _detach(self, ticket: Ticket, flow: _Flow) -> None:
        queue = self._tasks[flow.task]
        del flow.tickets[ticket]
        queue.length -= 1
        self._length -= 1
        self._ready -= flow.ready
        if not flow.tickets:
            self._retire(queue, flow)
            self._discard(flow)
        if not queue.length:
            del self._tasks[flow.task]

    def _discard(self, flow: _Flow) -> None:
        flows = self._flows[flow.digest]
        del flows[flow.task]
        if not flows:
            del self._flows[flow.digest]
