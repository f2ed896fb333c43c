"""Batches through the device without a gap: while one is computed, the next is queued behind it.

A *lane* is what one batch needs from its images on the host to its logits on the host; there are two. A batch
takes a free lane, is padded with slot 0 to the next captured size, and queued with all its copies at once;
only its caller then waits. In the streams:

    IN       images and slots to the lane          → uploaded
    COMPUTE  after `uploaded` and the slots' loads: the lane's graph of this size  → computed
    OUT      after `computed`: logits to the host  → done
    LOAD     after the last batch that used the slot is computed: its new row and head  → loaded
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbone.bank import IDENTITY
from backbone.executors.base import Image
from backbone.executors.gpu import Event, Gpu, Graph, Stream

LANES = 2

Forward = Callable[[Tensor, Tensor], Tensor]  # images [B, 3, H, W] uint8, slots [B] int32 → logits [B, W]


def sizes(max_batch: int) -> list[int]:
    """Return the batch sizes to capture: 1, 2, 4, 8, then two steps a doubling, and the largest."""
    steps = {1, 2, 4, 8}
    power = 8
    while power < max_batch:
        steps |= {power + power // 2, 2 * power}
        power *= 2
    return sorted({size for size in steps if size < max_batch} | {max_batch})


@dataclass(eq=False)
class Lane:
    """Buffers of one batch, for the largest size, on the host (pinned) and on the device."""

    staged: Tensor
    staged_slots: Tensor
    images: Tensor
    slots: Tensor
    logits: Tensor
    answers: Tensor
    uploaded: Event
    computed: Event
    done: Event
    graphs: dict[int, Graph] = field(default_factory=dict)

    @classmethod
    def make(cls, gpu: Gpu, shape: tuple[int, int, int, int], width: int) -> "Lane":
        """Make a lane for images [B, 3, H, W] and logits [B, width]."""
        batch = shape[0]
        return cls(
            staged=gpu.pinned_zeros(*shape, dtype=torch.uint8),
            staged_slots=gpu.pinned_zeros(batch, dtype=torch.int32),
            images=gpu.zeros(*shape, dtype=torch.uint8),
            slots=gpu.zeros(batch, dtype=torch.int32),
            logits=gpu.zeros(batch, width, dtype=torch.float32),
            answers=gpu.pinned_zeros(batch, width, dtype=torch.float32),
            uploaded=gpu.event(),
            computed=gpu.event(),
            done=gpu.event(),
        )


@dataclass(frozen=True, slots=True)
class Flight:
    """A batch under way, of `count` images."""

    lane: Lane
    count: int


class Pipeline:
    """Runs batches, at most `LANES` at a time, and loads on a device. Safe from several threads."""

    def __init__(self, gpu: Gpu, shape: tuple[int, int, int, int], width: int) -> None:
        """Allocate the lanes, for images [largest batch, 3, H, W] and logits of `width` columns."""
        self._gpu = gpu
        self.lanes = [Lane.make(gpu, shape, width) for _ in range(LANES)]
        self.sizes = sizes(shape[0])
        self._free: SimpleQueue[Lane] = SimpleQueue()
        self._queueing = threading.Lock()
        self._used: dict[int, Event] = {}  # by slot: after it, the last batch that reads the slot is computed
        self._loaded: dict[int, Event] = {}  # by slot: after it, the slot's row and head are whole

    def capture(self, forward: Forward) -> None:
        """Capture a forward in every size, largest first: its memory serves the smaller ones too."""
        for size in reversed(self.sizes):
            for lane in self.lanes:
                lane.graphs[size] = self._gpu.capture(_bound(forward, lane, size))
        for lane in self.lanes:
            self._free.put(lane)

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [B, width] of images [3, H, W], each with the adapter in its slot.

        More images than the largest size go one part after the other.
        """
        largest = self.sizes[-1]
        if len(images) > largest:
            parts = range(0, len(images), largest)
            return np.concatenate([self.run(images[i : i + largest], slots[i : i + largest]) for i in parts])
        return self.collect(self.submit(images, slots))

    def submit(self, images: Sequence[Image], slots: Sequence[int]) -> Flight:
        """Queue a batch of at most the largest size, once a lane is free. `collect` it, once."""
        lane = self._free.get()
        try:
            self._stage(lane, images, slots)
            with self._queueing:
                self._queue(lane, len(images), slots)
        except BaseException:
            self._give_back(lane)
            raise
        return Flight(lane, len(images))

    def collect(self, flight: Flight) -> NDArray[np.float32]:
        """Wait for a batch and return its logits [B, width]."""
        try:
            self._gpu.synchronize(flight.lane.done)
            logits: NDArray[np.float32] = flight.lane.answers[: flight.count].numpy().copy()
        except BaseException:
            self._give_back(flight.lane)
            raise
        self._free.put(flight.lane)
        return logits

    def load(self, slot: int, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Queue copies (to, from pinned memory) of all that a slot holds; batches queued later see all of it.

        Batches queued before are computed with what was there. What a slot gives up may be written for
        another one after this call: loads run one after the other.
        """
        loaded = self._gpu.event()
        with self._queueing:
            if slot in self._used:
                self._gpu.wait(self._used[slot], Stream.LOAD)
            for target, source in copies:
                self._gpu.copy(target, source, Stream.LOAD)
            self._gpu.record(loaded, Stream.LOAD)
            self._loaded[slot] = loaded

    def replay(self, count: int) -> None:
        """Queue a forward over what the first lane holds, with no copy; nobody else may run anything."""
        self._gpu.replay(self.lanes[0].graphs[self._size(count)])

    def _size(self, count: int) -> int:
        return next(size for size in self.sizes if size >= count)

    def _give_back(self, lane: Lane) -> None:
        """Free a lane after an error, but not while a copy from or to it may be under way."""
        try:
            self._gpu.settle()
        finally:
            self._free.put(lane)

    def _stage(self, lane: Lane, images: Sequence[Image], slots: Sequence[int]) -> None:
        staged = lane.staged.numpy()
        for place, image in enumerate(images):
            staged[place] = image
        lane.staged_slots[: len(slots)] = torch.tensor(slots, dtype=torch.int32)
        lane.staged_slots[len(slots) :] = IDENTITY

    def _queue(self, lane: Lane, count: int, slots: Sequence[int]) -> None:
        gpu, size = self._gpu, self._size(count)
        gpu.copy(lane.images[:count], lane.staged[:count], Stream.IN)
        gpu.copy(lane.slots[:size], lane.staged_slots[:size], Stream.IN)
        gpu.record(lane.uploaded, Stream.IN)
        gpu.wait(lane.uploaded, Stream.COMPUTE)
        for loaded in {self._loaded[slot] for slot in slots if slot in self._loaded}:
            gpu.wait(loaded, Stream.COMPUTE)
        gpu.replay(lane.graphs[size])
        gpu.record(lane.computed, Stream.COMPUTE)
        self._used |= dict.fromkeys(slots, lane.computed)
        gpu.wait(lane.computed, Stream.OUT)
        gpu.copy(lane.answers[:count], lane.logits[:count], Stream.OUT)
        gpu.record(lane.done, Stream.OUT)


def _bound(forward: Forward, lane: Lane, size: int) -> Graph:
    def run() -> None:
        lane.logits[:size].copy_(forward(lane.images[:size], lane.slots[:size]))

    return run
