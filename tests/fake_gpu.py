"""A `Gpu` without a GPU that is strict about order: streams run late, and in the worst order allowed.

Nothing that is queued happens before somebody waits for it, and then the streams take steps at random, one of
them as late as it can be. So a copy that nothing waits for comes too late, a buffer that is reused too early
is overwritten, and the answers are wrong.
"""

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backbone.executors.gpu import Event, Graph, Memory, Stream

TO_DEVICE = {Stream.IN, Stream.LOAD}
PLENTY = 2**33


@dataclass(eq=False)
class FakeEvent:
    """How often it was recorded, and how many of these records have happened."""

    recorded: int = 0
    happened: int = 0


@dataclass(frozen=True, slots=True)
class _Step:
    """Something in a stream; it may happen once `event` happened `times` times."""

    do: Callable[[], None]
    event: FakeEvent
    times: int = 0

    @property
    def may_happen(self) -> bool:
        return self.event.happened >= self.times


class FakeGpu:
    """Implements `Gpu` on the CPU.

    Args:
        seed: Of the order.
        starved: A stream that moves only when nothing else can.
        deaf: A stream that ignores what it is told to wait for: what the tests must notice.
        total: Bytes of its memory, of which `taken` are in use by others.
        peak_bytes: What a forward takes.
        before_run: Called before each run of a captured function; may raise.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        seed: int = 0,
        *,
        starved: Stream | None = None,
        deaf: Stream | None = None,
        total: int = PLENTY,
        taken: int = 0,
        peak_bytes: int = 0,
        before_run: Callable[[], None] = lambda: None,
    ) -> None:
        self._rng = random.Random(seed)
        self._starved, self._deaf = starved, deaf
        self._total, self._taken, self._peak = total, taken, peak_bytes
        self._queues: dict[Stream, deque[_Step]] = {stream: deque() for stream in Stream}
        self._pinned: dict[int, Tensor] = {}
        self._captured: list[Graph] = []
        self._lock = threading.RLock()
        self._before_run = before_run
        self.replays = 0

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def pinned_zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return self._pin(torch.zeros(shape, dtype=dtype))

    def pinned(self, values: Tensor) -> Tensor:
        return self._pin(values.clone())

    def copy(self, target: Tensor, source: Tensor, stream: Stream) -> None:
        here, there = (source, target) if stream in TO_DEVICE else (target, source)
        assert target.shape == source.shape and target.dtype == source.dtype
        assert here.untyped_storage().data_ptr() in self._pinned, "a copy with memory that is not pinned"
        assert there.untyped_storage().data_ptr() not in self._pinned, "a copy within the host"
        with self._lock:
            self._queues[stream].append(_Step(lambda: _no_value(target.copy_(source)), FakeEvent()))

    def event(self) -> FakeEvent:
        return FakeEvent()

    def record(self, event: Event, stream: Stream) -> None:
        known = _fake(event)
        with self._lock:
            known.recorded += 1
            self._queues[stream].append(_Step(lambda: _happen(known), FakeEvent()))

    def wait(self, event: Event, stream: Stream) -> None:
        known = _fake(event)
        if stream is not self._deaf:
            with self._lock:
                self._queues[stream].append(_Step(lambda: None, known, known.recorded))

    def synchronize(self, event: Event) -> None:
        known = _fake(event)
        with self._lock:
            times = known.recorded
            while known.happened < times:
                self._step()

    def settle(self) -> None:
        with self._lock:
            while any(self._queues.values()):
                self._step()

    def capture(self, run: Callable[[], None]) -> Graph:
        assert not any(self._queues.values()), "a capture while something is under way"

        @torch.inference_mode()
        def graph() -> None:
            self._before_run()
            run()

        graph()
        self._captured.append(graph)
        return graph

    def replay(self, graph: Graph) -> None:
        assert graph in self._captured, "a graph that was never captured"
        with self._lock:
            self.replays += 1
            self._queues[Stream.COMPUTE].append(_Step(graph, FakeEvent()))

    def peak(self, run: Callable[[], None]) -> int:
        torch.inference_mode()(run)()
        return self._peak

    def memory(self) -> Memory:
        return Memory(self._total, self._total - self._taken, 0)

    def _pin(self, made: Tensor) -> Tensor:
        self._pinned[made.untyped_storage().data_ptr()] = made
        return made

    def _step(self) -> None:
        able = [stream for stream, queue in self._queues.items() if queue and queue[0].may_happen]
        assert able, "every stream waits for another"
        eager = [stream for stream in able if stream is not self._starved]
        self._queues[self._rng.choice(eager or able)].popleft().do()


def _fake(event: Event) -> FakeEvent:
    assert isinstance(event, FakeEvent)
    return event


def _happen(event: FakeEvent) -> None:
    event.happened += 1


def _no_value(_: object) -> None:
    return None
