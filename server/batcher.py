"""Forms batches of whatever is ready and runs them, one after the other, on the device's threads."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from registry.models import Version
from server.contracts import Device, Image, Job, Logits, Outcome
from server.errors import ComputeFailed, DeadlineExceeded, EngineBroken, OutputInvalid, QueueFull
from server.events import Dropped, EngineEvents, Refused
from server.jobs import JobQueue, Ticket
from server.limits import EngineLimits
from server.residency import Residency

logger = logging.getLogger(__name__)

Result = Logits | OutputInvalid | ComputeFailed


@dataclass(slots=True, eq=False)
class _Batch:
    """Jobs on their way through the device. The thread that runs them sets `started` and `ended`."""

    tickets: list[Ticket] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    started: float | None = None
    ended: float = 0.0


class Throughput:
    """Jobs per second of device time, over about the last ten batches."""

    KEEP = 0.9
    SHORTEST, LONGEST = 1.0, 60.0

    def __init__(self) -> None:
        self._jobs = 0.0
        self._seconds = 0.0

    def add(self, jobs: int, seconds: float) -> None:
        self._jobs = self._jobs * self.KEEP + jobs
        self._seconds = self._seconds * self.KEEP + seconds

    def seconds_for(self, jobs: int) -> float:
        """Return how long so many jobs will take, at least a second and at most a minute."""
        each = self._seconds / self._jobs if self._jobs else 0.0
        return min(max(jobs * each, self.SHORTEST), self.LONGEST)


class Batcher:
    """Keeps the device busy: whenever it is free, up to `max_batch` ready jobs run, whatever their tasks.

    No job waits for others. While a batch runs, the next is handed over only if it is full, since waiting
    could not improve it, and if no load needs its slots; so a busy device goes from batch to batch without
    waiting for the event loop. A device with two lanes takes it in while it computes. Runs on one event loop;
    `thread` must run as many calls at a time as the device has lanes.
    """

    def __init__(
        self,
        device: Device,
        queue: JobQueue,
        residency: Residency,
        *,
        limits: EngineLimits,
        events: EngineEvents,
        thread: Executor,
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._queue = queue
        self._residency = residency
        self._limits = limits
        self._events = events
        self._thread = thread
        self._clock = clock
        self._throughput = Throughput()
        self._running: dict[asyncio.Future[list[Result]], _Batch] = {}
        self._awake = False
        self._failed_runs = 0
        self._ended = 0.0  # of the batches so far
        self._broken: Exception | None = None

    @property
    def in_flight(self) -> int:
        return sum(len(batch.tickets) for batch in self._running.values())

    def submit(self, job: Job) -> Ticket:
        """Accept a job; the ticket's future brings the outcome, or an error of `Engine.predict`.

        Raises:
            QueueFull
            DeadlineExceeded
            AdapterUnavailable: If loading the adapter has just failed.
        """
        now = self._clock()
        self._refuse_full(job.version.task)
        if job.deadline is not None and job.deadline <= now:
            self._events.dropped(Dropped.DEADLINE)
            raise DeadlineExceeded
        ready = self._residency.demand(job.version)
        loop = asyncio.get_running_loop()
        ticket = Ticket(job, loop.create_future(), now)
        self._queue.push(ticket, ready=ready)
        if job.deadline is not None:
            ticket.timer = loop.call_later(job.deadline - now, self._expire, ticket)
        if ready:
            self.wake()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Drop a job whose caller has gone; if it runs already, nobody reads its answer."""
        ticket.stop_timer()
        self._queue.remove(ticket)
        self._events.dropped(Dropped.CANCELLED)
        self._residency.unwanted(ticket.digest)

    def wake(self) -> None:
        """Look for work as soon as the callbacks that are due have run: what comes together goes together."""
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._pump)

    def check(self) -> None:
        """Raise EngineBroken if no more answers can be expected."""
        if self._broken is not None:
            raise EngineBroken("its batch loop died") from self._broken
        if self._failed_runs >= self._limits.max_failed_runs:
            raise EngineBroken(f"the last {self._failed_runs} forwards failed")
        oldest = next(iter(self._running.values()), None)
        if oldest is not None and oldest.started is not None:
            seconds = self._clock() - oldest.started
            if seconds > self._limits.max_batch_seconds:
                raise EngineBroken(f"a batch has been running for {seconds:.0f} s")

    async def close(self) -> None:
        """Wait for the batches in flight."""
        while self._running:
            await asyncio.wait(list(self._running))

    def _refuse_full(self, task: str) -> None:
        limits, queue = self._limits, self._queue
        if len(queue) >= limits.max_queue:
            self._events.refused(Refused.QUEUE_FULL)
            raise QueueFull(limits.max_queue, self._throughput.seconds_for(len(queue)))
        waiting = queue.length_of(task)
        if waiting >= limits.max_queue_per_task:
            self._events.refused(Refused.TASK_QUEUE_FULL)
            # its share is one of `tasks` jobs
            ahead = min(len(queue), waiting * queue.tasks)
            raise QueueFull(limits.max_queue_per_task, self._throughput.seconds_for(ahead))

    def _pump(self) -> None:
        self._awake = False
        try:
            while self._may_start() and (batch := self._take()).tickets:
                self._start(batch)
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody may wait for ever)
            self._break(error)

    def _may_start(self) -> bool:
        if self._broken is not None or not self._queue.ready:
            return False
        if not self._running:
            return True
        full = self._queue.ready >= self._limits.max_batch
        return full and len(self._running) == 1 and not self._residency.starved

    def _take(self) -> _Batch:
        """Take the next jobs, and hold their slots at once: dropping a job may let a load evict others."""
        batch, now = _Batch(), self._clock()
        while len(batch.tickets) < self._limits.max_batch and (ticket := self._queue.pop()) is not None:
            deadline = ticket.job.deadline
            if ticket.future.done():
                continue  # cancelled; `withdraw` is on its way
            if deadline is not None and deadline <= now:
                self._drop_late(ticket)
                continue
            ticket.stop_timer()
            batch.tickets.append(ticket)
            if ticket.digest not in batch.slots:
                batch.slots[ticket.digest] = self._residency.hold(ticket.digest)
        return batch

    def _start(self, batch: _Batch) -> None:
        done = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)
        self._running[done] = batch
        done.add_done_callback(self._finish)

    def _compute(self, batch: _Batch) -> list[Result]:
        """Run on the device's thread."""
        batch.started = self._clock()
        images = [ticket.job.image for ticket in batch.tickets]
        outputs = _run(self._device, images, [batch.slots[ticket.digest] for ticket in batch.tickets])
        batch.ended = self._clock()
        versions = (ticket.job.version for ticket in batch.tickets)
        return [_checked(version, output) for version, output in zip(versions, outputs, strict=True)]

    def _finish(self, done: asyncio.Future[list[Result]]) -> None:
        batch = self._running.pop(done)
        try:
            for digest in batch.slots:
                self._residency.release(digest)
            self._residency.grant()
            # the device first, the answers while it works
            self._pump()
            self._answer(batch, done.result())
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody may wait for ever)
            for ticket in batch.tickets:
                ticket.fail(EngineBroken("its batch loop died"))
            self._break(error)

    def _answer(self, batch: _Batch, results: list[Result]) -> None:
        size, tasks = len(results), len({ticket.job.version.task for ticket in batch.tickets})
        # on a device with two lanes, a batch begins when the one before it ends
        started = min(max(batch.started or 0.0, self._ended), batch.ended)
        self._ended = max(self._ended, batch.ended)
        queued = [started - ticket.entered for ticket in batch.tickets]
        compute = batch.ended - started
        failed = sum(isinstance(result, ComputeFailed) for result in results)
        self._failed_runs = self._failed_runs + failed if failed == size else 0
        self._throughput.add(size, compute)
        self._events.batch_done(size, tasks, queued, compute)
        for ticket, seconds, result in zip(batch.tickets, queued, results, strict=True):
            if isinstance(result, Exception):
                self._events.dropped(_REASONS[type(result)])
                ticket.fail(result)
            else:
                ticket.answer(Outcome(result, seconds, compute, size, tasks))

    def _expire(self, ticket: Ticket) -> None:
        if self._queue.remove(ticket):
            self._drop_late(ticket)

    def _drop_late(self, ticket: Ticket) -> None:
        self._events.dropped(Dropped.DEADLINE)
        ticket.fail(DeadlineExceeded())
        self._residency.unwanted(ticket.digest)

    def _break(self, error: Exception) -> None:
        logger.critical("the batch loop died", exc_info=error)
        self._broken = error
        for ticket in self._queue.clear():
            self._events.dropped(Dropped.BROKEN)
            ticket.fail(EngineBroken("its batch loop died"))


_REASONS = {OutputInvalid: Dropped.OUTPUT_INVALID, ComputeFailed: Dropped.COMPUTE_FAILED}


def _run(device: Device, images: Sequence[Image], slots: Sequence[int]) -> list[Logits | Exception]:
    """Answer a batch; if it fails as a whole, answer each job alone, so that only the guilty fail."""
    try:
        outputs = device.run(images, slots)
        if len(outputs) != len(images):
            raise RuntimeError(f"{len(outputs)} answers to {len(images)} images")  # noqa: TRY301
    except Exception as error:
        if len(images) == 1:
            return [error]
        logger.exception("a batch of %d failed; each of its jobs runs alone", len(images))
        return [_run(device, [image], [slot])[0] for image, slot in zip(images, slots, strict=True)]
    return list(outputs)


def _checked(version: Version, output: Logits | Exception) -> Result:
    if isinstance(output, Exception):
        failure = ComputeFailed(version.task, version.version)
        failure.__cause__ = output
        return failure
    if not np.isfinite(output).all():
        return OutputInvalid(version.task, version.version)
    return output
