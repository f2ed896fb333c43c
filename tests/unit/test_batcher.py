"""What goes into a batch, what is refused or dropped, and that one job's failure stays its own."""

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from server.batcher import Throughput
from server.contracts import Image, Logits
from server.errors import ComputeFailed, DeadlineExceeded, EngineBroken, OutputInvalid, QueueFull
from server.events import Dropped, Refused
from server.limits import EngineLimits
from tests.engines import Recorder, assert_answers, bench
from tests.fakes import CRASHES, NOT_FINITE, FakeClock, FakeDevice, make_image, stopped

IMAGE = make_image(size=4)
FOUR = EngineLimits(max_batch=4)


async def test_jobs_of_different_tasks_share_a_batch() -> None:
    async with bench(limits=FOUR) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(4)]
        for version in versions:
            await b.engine.prefetch(version)
        images = [make_image(i) for i in range(4)]
        asked = [b.ask(version, image) for version, image in zip(versions, images, strict=True)]
        outcomes = await asyncio.gather(*asked)
        assert b.events.batches == [(4, 4)]
        for outcome, version, image in zip(outcomes, versions, images, strict=True):
            assert_answers(outcome, version, image)
            assert (outcome.batch_size, outcome.batch_tasks) == (4, 4)


async def test_a_lone_job_runs_at_once() -> None:
    async with bench(limits=FOUR, clock=FakeClock()) as b:
        await b.answer(b.blobs.add())
        assert b.events.batches == [(1, 1)]


async def test_a_batch_holds_at_most_max_batch() -> None:
    async with bench(limits=FOUR) as b:
        version = b.blobs.add()
        await asyncio.gather(*(b.ask(version) for _ in range(10)))
        assert [size for size, _ in b.events.batches] == [4, 4, 2]


async def test_a_task_with_few_jobs_does_not_wait_behind_one_with_many() -> None:
    async with bench(limits=FOUR, inline="all") as b:
        greedy, modest = b.blobs.add("greedy"), b.blobs.add("modest")
        for version in (greedy, modest):
            await b.engine.prefetch(version)
        many = [b.ask(greedy) for _ in range(40)]
        await asyncio.gather(*many, b.ask(modest))
        assert sorted(b.device.batches[0]) == [1, 1, 1, 2]


async def test_versions_of_one_task_take_turns() -> None:
    async with bench(limits=EngineLimits(max_batch=2), inline="all") as b:
        old, new = b.blobs.add("pets", 1), b.blobs.add("pets", 2)
        for version in (old, new):
            await b.engine.prefetch(version)
        many = [b.ask(old) for _ in range(20)]
        await asyncio.gather(*many, b.ask(new))
        assert set(b.device.batches[0]) == {1, 2}


async def test_the_next_batch_is_handed_over_early_only_if_it_is_full() -> None:
    async with bench(limits=FOUR) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            first = b.ask(version)
            await b.turns()
            others = [b.ask(version) for _ in range(3)]
            await b.turns()
            assert (b.engine.gauges().in_flight, b.engine.gauges().queued) == (1, 3)
            others += [b.ask(version) for _ in range(2)]
            await b.turns()
            assert (b.engine.gauges().in_flight, b.engine.gauges().queued) == (5, 1)
        await asyncio.gather(first, *others)
        assert [size for size, _ in b.events.batches] == [1, 4, 1]


async def test_a_device_with_two_lanes_takes_in_the_next_batch_while_it_computes() -> None:
    async with bench(limits=FOUR, device=FakeDevice(lanes=2), inline="nothing") as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            asked = [b.ask(version) for _ in range(14)]
            assert await asyncio.to_thread(b.device.full.wait, 10)
            assert (b.engine.gauges().in_flight, b.engine.gauges().queued) == (8, 6)
        await asyncio.gather(*asked)
        assert [size for size, _ in b.events.batches] == [4, 4, 4, 2]


async def test_a_second_lane_takes_no_batch_that_could_still_grow() -> None:
    async with bench(limits=FOUR, device=FakeDevice(lanes=2)) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            asked = [b.ask(version)]
            await b.turns()
            asked += [b.ask(version) for _ in range(3)]
            await b.turns()
            assert (b.engine.gauges().in_flight, b.engine.gauges().queued) == (1, 3)
        await asyncio.gather(*asked)


async def test_a_full_queue_refuses_and_recovers() -> None:
    limits = EngineLimits(max_batch=1, max_queue=3)
    async with bench(limits=limits) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(4)]
        for version in versions:
            await b.engine.prefetch(version)
        with stopped(b.device):
            accepted = [b.ask(versions[0]), b.ask(versions[1])]
            await b.turns()
            accepted += [b.ask(versions[i % 4]) for i in range(3)]
            await b.turns()
            with pytest.raises(QueueFull) as refused:
                await b.ask(versions[3])
            assert refused.value.limit == 3
            assert refused.value.retry_after_seconds >= 1
        await asyncio.gather(*accepted)
        await b.ask(versions[3])
        assert b.events.reasons == [Refused.QUEUE_FULL]


async def test_one_task_cannot_fill_the_queue() -> None:
    limits = EngineLimits(max_batch=1, max_queue=10, max_queue_per_task=2)
    async with bench(limits=limits) as b:
        greedy, modest = b.blobs.add("greedy"), b.blobs.add("modest")
        for version in (greedy, modest):
            await b.engine.prefetch(version)
        with stopped(b.device):
            accepted = [b.ask(greedy), b.ask(greedy)]
            await b.turns()
            accepted += [b.ask(greedy), b.ask(greedy)]
            await b.turns()
            with pytest.raises(QueueFull):
                await b.ask(greedy)
            accepted.append(b.ask(modest))
            await b.turns()
        await asyncio.gather(*accepted)
        assert b.events.reasons == [Refused.TASK_QUEUE_FULL]


def test_retry_after_follows_what_was_measured() -> None:
    throughput = Throughput()
    assert throughput.seconds_for(1000) == 1
    for _ in range(50):
        throughput.add(16, 1.6)
    assert throughput.seconds_for(100) == pytest.approx(10)
    assert throughput.seconds_for(1) == 1
    for _ in range(50):
        throughput.add(16, 3.2)
    assert throughput.seconds_for(100) == pytest.approx(20, rel=0.05)
    assert throughput.seconds_for(10**6) == 60


async def test_a_cancelled_job_never_runs() -> None:
    async with bench(limits=EngineLimits(max_batch=1)) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            asked = [b.ask(version) for _ in range(4)]
            await b.turns()
            asked[3].cancel()
            await b.turns()
            assert b.engine.gauges().queued == 1
        await asyncio.gather(*asked[:3])
        assert len(b.device.batches) == 3
        assert b.events.reasons == [Dropped.CANCELLED]


async def test_cancelling_a_running_job_leaves_its_neighbours_alone() -> None:
    async with bench(limits=FOUR) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(2)]
        for version in versions:
            await b.engine.prefetch(version)
        with stopped(b.device):
            gone, kept = b.ask(versions[0]), b.ask(versions[1])
            await b.turns()
            gone.cancel()
            await b.turns()
        assert_answers(await kept, versions[1], IMAGE)
        assert b.events.batches == [(2, 2)]


async def test_a_job_whose_deadline_passes_in_the_queue_is_dropped() -> None:
    async with bench(limits=EngineLimits(max_batch=1)) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            running = [b.ask(version), b.ask(version)]
            await b.turns()
            with pytest.raises(DeadlineExceeded):
                await b.ask(version, deadline=time.monotonic() + 0.01)
        await asyncio.gather(*running)
        assert len(b.device.batches) == 2
        assert b.events.reasons == [Dropped.DEADLINE]


async def test_a_job_that_is_late_when_its_turn_comes_is_dropped() -> None:
    clock = FakeClock()
    async with bench(limits=EngineLimits(max_batch=1), clock=clock) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            running = [b.ask(version), b.ask(version)]
            await b.turns()
            late = b.ask(version, deadline=clock.now + 60)
            fine = b.ask(version, deadline=clock.now + 3600)
            await b.turns()
            clock.advance(61)
        await asyncio.gather(*running, fine)
        with pytest.raises(DeadlineExceeded):
            await late
        assert len(b.device.batches) == 3


async def test_a_job_that_comes_late_is_refused() -> None:
    clock = FakeClock()
    async with bench(clock=clock) as b:
        with pytest.raises(DeadlineExceeded):
            await b.ask(b.blobs.add(), deadline=clock.now)
        assert b.blobs.fetched.total() == 0


async def test_a_deadline_in_time_does_not_matter() -> None:
    async with bench() as b:
        version = b.blobs.add()
        assert_answers(await b.ask(version, deadline=time.monotonic() + 60), version, IMAGE)


async def test_only_the_guilty_fails_with_its_batch() -> None:
    async with bench(limits=FOUR) as b:
        good = [b.blobs.add(f"t{i}") for i in range(3)]
        bad = b.blobs.add("bad", payload=CRASHES)
        for version in (*good, bad):
            await b.engine.prefetch(version)
        asked = [b.ask(version) for version in (good[0], bad, *good[1:])]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        failure = outcomes.pop(1)
        assert isinstance(failure, ComputeFailed)
        assert (failure.task, failure.version) == ("bad", 1)
        for outcome, version in zip(outcomes, good, strict=True):
            assert not isinstance(outcome, BaseException)
            assert_answers(outcome, version, IMAGE)
        assert len(b.device.batches) == 5
        b.engine.check()


async def test_a_poisoned_adapter_fails_alone() -> None:
    async with bench(limits=FOUR) as b:
        good, bad = b.blobs.add("good"), b.blobs.add("bad", payload=NOT_FINITE)
        for version in (good, bad):
            await b.engine.prefetch(version)
        kept, poisoned = await asyncio.gather(b.ask(good), b.ask(bad), return_exceptions=True)
        assert isinstance(poisoned, OutputInvalid)
        assert not isinstance(kept, BaseException)
        assert_answers(kept, good, IMAGE)
        assert b.events.batches == [(2, 2)]
        assert b.events.reasons == [Dropped.OUTPUT_INVALID]


class Forgetful(FakeDevice):
    """Loses the last answer of every batch of more than one."""

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        outputs = super().run(images, slots)
        return outputs[:-1] if len(outputs) > 1 else outputs


async def test_a_device_that_loses_answers_cannot_shift_them() -> None:
    async with bench(limits=FOUR, device=Forgetful()) as b:
        versions = [b.blobs.add(f"t{i}") for i in range(3)]
        for version in versions:
            await b.engine.prefetch(version)
        outcomes = await asyncio.gather(*(b.ask(version) for version in versions))
        for outcome, version in zip(outcomes, versions, strict=True):
            assert_answers(outcome, version, IMAGE)


async def test_a_device_that_always_fails_breaks_the_engine() -> None:
    async with bench(limits=EngineLimits(max_batch=1, max_failed_runs=3)) as b:
        bad = b.blobs.add("bad", payload=CRASHES)
        for _ in range(3):
            b.engine.check()
            with pytest.raises(ComputeFailed):
                await b.ask(bad)
        with pytest.raises(EngineBroken, match="the last 3 forwards failed"):
            b.engine.check()
        with pytest.raises(EngineBroken):
            await b.ask(bad)


async def test_failures_among_successes_do_not_break_the_engine() -> None:
    async with bench(limits=EngineLimits(max_batch=1, max_failed_runs=3)) as b:
        good, bad = b.blobs.add("good"), b.blobs.add("bad", payload=CRASHES)
        for _ in range(6):
            with pytest.raises(ComputeFailed):
                await b.ask(bad)
            await b.ask(good)
        b.engine.check()


async def test_a_batch_that_hangs_breaks_the_engine() -> None:
    clock = FakeClock()
    async with bench(limits=EngineLimits(max_batch_seconds=10), clock=clock) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        with stopped(b.device):
            asked = b.ask(version)
            await b.turns()
            await asyncio.to_thread(b.device.entered.wait, 10)
            clock.advance(9)
            b.engine.check()
            clock.advance(2)
            with pytest.raises(EngineBroken, match="running for 11 s"):
                b.engine.check()
        await asked
        b.engine.check()


async def test_a_dead_batch_loop_fails_who_waits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(limits=EngineLimits(max_batch=1)) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)

        def die(*_: object) -> None:
            raise KeyError("a bug")

        with stopped(b.device):
            asked = [b.ask(version) for _ in range(4)]
            await b.turns()
            monkeypatch.setattr(b.events, "batch_done", die)
        for failure in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(failure, EngineBroken)
        with pytest.raises(EngineBroken, match="died"):
            b.engine.check()
        with pytest.raises(EngineBroken):
            await b.ask(version)


async def test_time_in_a_lane_behind_another_batch_is_queueing() -> None:
    clock, turns = FakeClock(), itertools.count()
    both, answered = threading.Event(), threading.Event()

    class Overlapping(FakeDevice):
        """Takes 3 s a batch, one after the other; the second is there before the first is done."""

        def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
            if next(turns) == 0:
                assert both.wait(10)
            else:
                both.set()
                assert answered.wait(10)
            clock.advance(3)
            return super().run(images, slots)

    class Answered(Recorder):
        def batch_done(self, *facts: Any) -> None:
            super().batch_done(*facts)
            answered.set()

    device, limits = Overlapping(lanes=2), EngineLimits(max_batch=1)
    async with bench(limits=limits, clock=clock, device=device, events=Answered()) as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        outcomes = await asyncio.gather(b.ask(version), b.ask(version))
        times = sorted((outcome.queue_seconds, outcome.compute_seconds) for outcome in outcomes)
        assert times == [(0, 3), (3, 3)]


async def test_times_add_up() -> None:
    clock = FakeClock()

    class Slow(FakeDevice):
        def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
            clock.advance(3)
            return super().run(images, slots)

    async with bench(limits=EngineLimits(max_batch=1), clock=clock, device=Slow(), inline="all") as b:
        version = b.blobs.add()
        await b.engine.prefetch(version)
        first, second = await asyncio.gather(b.ask(version), b.ask(version))
        assert (first.queue_seconds, first.compute_seconds) == (0, 3)
        assert (second.queue_seconds, second.compute_seconds) == (3, 3)
        assert first.logits.dtype == np.float32
