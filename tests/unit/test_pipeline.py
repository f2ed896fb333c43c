"""Whatever the speed of the streams, a batch meets its own images and the adapters of its time."""

import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbone.executors.gpu import Stream
from backbone.executors.pipeline import LANES, Flight, Pipeline, sizes
from tests.fake_gpu import FakeGpu

SLOTS, WIDTH, BATCH, SIDE = 5, 3, 6, 2
SPEEDS = [None, *Stream]


class Rig:
    """A pipeline whose forward is `sum of the image · row of its slot`, and what it should answer."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.bank = gpu.zeros(SLOTS + 1, WIDTH, dtype=torch.float32)
        self.now = np.zeros((SLOTS + 1, WIDTH), np.float32)
        self.pipeline = Pipeline(gpu, (BATCH, 3, SIDE, SIDE), WIDTH)
        self.pipeline.capture(self.forward)
        self.flights: list[tuple[Flight, NDArray[np.float32]]] = []
        self.rng = np.random.default_rng(0)

    def forward(self, images: Tensor, slots: Tensor) -> Tensor:
        return images.float().sum((1, 2, 3))[:, None] * self.bank[slots.long()]

    def load(self, slot: int) -> None:
        row = self.rng.integers(1, 100, WIDTH).astype(np.float32)
        halves = torch.from_numpy(row).split([1, WIDTH - 1])
        targets = self.bank[slot].split([1, WIDTH - 1])
        self.pipeline.load(slot, [(t, self.gpu.pinned(h)) for t, h in zip(targets, halves, strict=True)])
        self.now[slot] = row

    def images(self, count: int) -> list[NDArray[np.uint8]]:
        return [self.rng.integers(1, 256, (3, SIDE, SIDE), dtype=np.uint8) for _ in range(count)]

    def submit(self, slots: Sequence[int]) -> None:
        images = self.images(len(slots))
        expected = np.stack(
            [i.sum(dtype=np.float32) * self.now[s] for i, s in zip(images, slots, strict=True)]
        )
        self.flights.append((self.pipeline.submit(images, slots), expected))

    def collect(self) -> bool:
        """Take the oldest batch out; tell whether it was answered right."""
        flight, expected = self.flights.pop(0)
        return np.array_equal(self.pipeline.collect(flight), expected)

    def storm(self, seed: int, steps: int = 60) -> bool:
        """Load, submit and collect at random, also into slots of batches under way; tell if all was right."""
        rng, right = random.Random(seed), True
        for _ in range(steps):
            if rng.random() < 0.4:
                self.load(rng.randrange(1, SLOTS + 1))
            elif len(self.flights) < LANES and rng.random() < 0.7:
                self.submit([rng.randrange(SLOTS + 1) for _ in range(rng.randrange(1, BATCH + 1))])
            elif self.flights:
                right &= self.collect()
        while self.flights:
            right &= self.collect()
        return right


@pytest.mark.parametrize("starved", SPEEDS)
def test_every_batch_meets_its_images_and_the_adapters_of_its_time(starved: Stream | None) -> None:
    assert all(Rig(FakeGpu(seed, starved=starved)).storm(seed) for seed in range(10))


@pytest.mark.parametrize("deaf", [Stream.LOAD, Stream.COMPUTE, Stream.OUT])
def test_a_stream_that_waits_for_nothing_is_noticed(deaf: Stream) -> None:
    right = [Rig(FakeGpu(s, starved=slow, deaf=deaf)).storm(s) for slow in SPEEDS for s in range(4)]
    assert not all(right)


def test_two_batches_are_queued_before_the_first_is_waited_for() -> None:
    rig = Rig(FakeGpu())
    before = rig.gpu.replays
    rig.submit([0, 0])
    rig.submit([0])
    assert rig.gpu.replays == before + LANES
    assert rig.collect() and rig.collect()


def test_more_images_than_the_largest_size_run_in_parts() -> None:
    rig = Rig(FakeGpu())
    rig.load(2)
    images = rig.images(2 * BATCH + 1)
    answers = rig.pipeline.run(images, [2] * len(images))
    np.testing.assert_array_equal(answers, [image.sum(dtype=np.float32) * rig.now[2] for image in images])


def test_padding_runs_with_the_identity() -> None:
    rig = Rig(FakeGpu())
    for _ in range(LANES):
        rig.submit([3] * BATCH)
    for _ in range(LANES):
        rig.collect()
    rig.submit([3, 3, 3])
    rig.gpu.settle()
    assert rig.flights[0][0].lane.slots.tolist() == [3, 3, 3, 0, 3, 3]  # a batch of 3 runs as 4
    assert rig.collect()


def test_a_batch_that_fails_gives_its_lane_back() -> None:
    rig = Rig(FakeGpu())
    wrong = [np.zeros((3, SIDE + 1, SIDE), np.uint8)]
    for _ in range(LANES + 1):
        with pytest.raises(ValueError, match="broadcast"):
            rig.pipeline.submit(wrong, [0])
    rig.submit([0])
    assert rig.collect()


def test_threads_share_the_lanes() -> None:
    rig = Rig(FakeGpu())
    for slot in range(1, SLOTS + 1):
        rig.load(slot)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            slots = rng.integers(1, SLOTS + 1, 4).tolist()
            images = [rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8) for _ in slots]
            expected = [i.sum(dtype=np.float32) * rig.now[s] for i, s in zip(images, slots, strict=True)]
            if not np.array_equal(rig.pipeline.run(images, slots), np.stack(expected)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 12, 16]), (20, [1, 2, 4, 8, 12, 16, 20])],
)
def test_sizes_waste_little(largest: int, expected: list[int]) -> None:
    assert sizes(largest) == expected
    for count in range(1, largest + 1):
        assert next(size for size in sizes(largest) if size >= count) < (2 if count < 8 else 1.5) * count


def test_largest_size_is_captured_first() -> None:
    captured: list[int] = []
    rig = Rig(FakeGpu())
    pipeline = Pipeline(rig.gpu, (BATCH, 3, SIDE, SIDE), WIDTH)

    def forward(images: Tensor, slots: Tensor) -> Tensor:
        captured.append(len(images))
        return rig.forward(images, slots)

    pipeline.capture(forward)
    assert captured == sorted(captured, reverse=True)
    assert set(captured) == set(sizes(BATCH))
