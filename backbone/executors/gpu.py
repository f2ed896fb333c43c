"""The seam between the cuda executor and its device: streams, events, graphs, pinned memory.

All that the executor asks of CUDA goes through here, so that a device without a GPU can stand in and be
strict about order (tests/fake_gpu.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

Graph = Callable[[], None]


class Stream(StrEnum):
    """A queue of the device; what is in one runs in order, beside the others."""

    IN = "in"  # images and slots, to the device
    LOAD = "load"  # adapters, to the device
    COMPUTE = "compute"
    OUT = "out"  # logits, to the host


class Event(Protocol):
    """A mark in a stream; it stands for its latest `record`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the device: in all, free for anybody, and used by this process."""

    total: int
    free: int
    used: int


class Gpu(Protocol):
    """A device and its four streams. Only `synchronize` and `settle` make the host wait."""

    @property
    def device(self) -> torch.device: ...

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return device memory that keeps its address."""
        ...

    def pinned_zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return host memory that the device copies from and to by itself."""
        ...

    def pinned(self, values: Tensor) -> Tensor:
        """Return a pinned copy; it is not reused before the copies from it are done."""
        ...

    def copy(self, target: Tensor, source: Tensor, stream: Stream) -> None: ...

    def event(self) -> Event: ...

    def record(self, event: Event, stream: Stream) -> None: ...

    def wait(self, event: Event, stream: Stream) -> None:
        """Let a stream go on only after an event; an event that was never recorded holds up nothing."""
        ...

    def synchronize(self, event: Event) -> None:
        """Wait for an event."""
        ...

    def settle(self) -> None:
        """Wait for everything."""
        ...

    def capture(self, run: Callable[[], None]) -> Graph:
        """Run once, then record what it launches. The graphs share memory: they must not run side by side."""
        ...

    def replay(self, graph: Graph) -> None:
        """Launch a graph on `Stream.COMPUTE`."""
        ...

    def peak(self, run: Callable[[], None]) -> int:
        """Run, and return how many bytes of device memory it took at its peak beside what was there."""
        ...

    def memory(self) -> Memory: ...


class CudaGpu:
    """Implements `Gpu` on PyTorch's CUDA."""

    def __init__(self, device: str = "cuda", *, graphs: bool = True) -> None:
        """Make the streams. Without `graphs`, a capture stays the function it was given: slow, for tests."""
        torch.cuda.init()
        index = torch.device(device).index
        self.device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
        self._streams = {stream: torch.cuda.Stream(self.device) for stream in Stream}
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs = graphs

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        made = torch.zeros(shape, dtype=dtype, device=self.device)
        torch.cuda.current_stream(self.device).synchronize()  # the other streams do not wait for this one
        return made

    def pinned_zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def pinned(self, values: Tensor) -> Tensor:
        return values.contiguous().pin_memory()

    def copy(self, target: Tensor, source: Tensor, stream: Stream) -> None:
        with torch.cuda.stream(self._streams[stream]):
            target.copy_(source, non_blocking=True)

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(blocking=True)  # a waiting thread sleeps

    def record(self, event: Event, stream: Stream) -> None:
        _real(event).record(self._streams[stream])

    def wait(self, event: Event, stream: Stream) -> None:
        self._streams[stream].wait_event(_real(event))

    def synchronize(self, event: Event) -> None:
        _real(event).synchronize()

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)

    def capture(self, run: Callable[[], None]) -> Graph:
        self.settle()
        compute = self._streams[Stream.COMPUTE]
        with torch.cuda.stream(compute), torch.inference_mode():
            run()
        self.settle()
        if not self._graphs:
            return lambda: _infer(run)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool, stream=compute):
            run()
        replay: Graph = graph.replay
        return replay

    def replay(self, graph: Graph) -> None:
        with torch.cuda.stream(self._streams[Stream.COMPUTE]):
            graph()

    def peak(self, run: Callable[[], None]) -> int:
        self.settle()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        with torch.cuda.stream(self._streams[Stream.COMPUTE]), torch.inference_mode():
            run()
        self.settle()
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.empty_cache()
        return int(peak - before)

    def memory(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self.device)
        return Memory(total=total, free=free, used=torch.cuda.memory_reserved(self.device))


def _infer(run: Callable[[], None]) -> None:
    with torch.inference_mode():
        run()


def _real(event: Event) -> torch.cuda.Event:
    assert isinstance(event, torch.cuda.Event)
    return event
