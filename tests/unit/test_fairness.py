"""Order between tasks: equal shares, no credit for absence, no starvation, flat memory."""

import asyncio
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fairness import FairOrder, FairSemaphore

TASKS = [f"t{i}" for i in range(6)]


def serve(order: FairOrder) -> str:
    task = order.first()
    assert task is not None
    order.charge(task)
    return task


def test_an_empty_order_has_no_first() -> None:
    order = FairOrder()
    order.join("a")
    order.leave("a")
    assert order.first() is None
    assert len(order) == 0


def test_present_tasks_share_equally() -> None:
    order = FairOrder()
    for task in ("a", "b", "c"):
        order.join(task)
    assert Counter(serve(order) for _ in range(300)) == {"a": 100, "b": 100, "c": 100}


def test_absence_earns_no_credit() -> None:
    order = FairOrder()
    order.join("early")
    order.join("steady")
    order.leave("early")
    for _ in range(1000):
        serve(order)
    order.join("early")
    assert abs(Counter(serve(order) for _ in range(20))["early"] - 10) <= 1


def test_a_crowd_that_left_leaves_no_credit_to_who_comes_next() -> None:
    order = FairOrder()
    for task in ("steady", *(f"crowd{i}" for i in range(9))):
        order.join(task)
    assert serve(order) == "steady"
    for i in range(9):
        order.leave(f"crowd{i}")
    assert serve(order) == "steady"
    order.join("new")
    assert serve(order) == "steady"


@pytest.mark.parametrize("others", [1, 2, 7])
def test_leaving_and_returning_gains_nothing(others: int) -> None:
    order = FairOrder()
    for task in ("flighty", *(f"steady{i}" for i in range(others))):
        order.join(task)
    served: Counter[str] = Counter()
    for _ in range(100 * (others + 1)):
        served[serve(order)] += 1
        order.leave("flighty")
        order.join("flighty")
    assert abs(served["flighty"] - 100) <= 1


def test_a_stream_of_newcomers_does_not_hold_back_who_is_there() -> None:
    order = FairOrder()
    order.join("steady")
    serve(order)
    order.join("new0")
    for i in range(1, 10):
        order.join(f"new{i}")
        task = serve(order)
        if task == "steady":
            return
        order.leave(task)
    pytest.fail("newcomers were served for ever")


@given(st.lists(st.sampled_from(["serve", *TASKS]), max_size=300))
def test_who_stays_is_served_within_3n(steps: list[str]) -> None:
    """Each task name joins or leaves; `serve` serves. `steady` never leaves."""
    order = FairOrder()
    order.join("steady")
    waited, most = 0, 1
    for step in steps:
        if step != "serve":
            (order.leave if step in order else order.join)(step)
            most = max(most, len(order))
            continue
        waited += 1
        if serve(order) == "steady":
            waited, most = 0, len(order)
        assert waited <= 3 * most


@given(st.lists(st.sampled_from(["serve", *TASKS]), max_size=300))
def test_who_stays_equally_long_gets_the_same(steps: list[str]) -> None:
    order = FairOrder()
    order.join("one")
    order.join("other")
    served: Counter[str] = Counter()
    for step in steps:
        if step == "serve":
            served[serve(order)] += 1
        else:
            (order.leave if step in order else order.join)(step)
        assert abs(served["one"] - served["other"]) <= 1


def test_memory_is_flat_over_tasks_that_come_are_served_and_go() -> None:
    order = FairOrder()
    order.join("steady")

    def visit(first: int, last: int) -> int:
        for i in range(first, last):
            order.join(f"visitor{i}")
            serve(order)
            order.leave(f"visitor{i}")
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = visit(0, 1000)
        after = visit(1000, 21_000)
    finally:
        tracemalloc.stop()
    assert after - before < 20_000


def test_joining_without_service_keeps_memory_flat() -> None:
    order = FairOrder()
    tracemalloc.start()
    try:
        for i in range(20_000):
            order.join(f"visitor{i}")
            order.leave(f"visitor{i}")
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


class Crowd:
    """Holders of one semaphore: who got in, in order, and how to let each out."""

    def __init__(self, permits: int) -> None:
        self.semaphore = FairSemaphore(permits)
        self.inside: list[str] = []
        self.entered: list[str] = []
        self.exits: dict[str, asyncio.Event] = {}

    def send(self, task: str, name: str) -> "asyncio.Task[None]":
        self.exits[name] = asyncio.Event()
        return asyncio.create_task(self._visit(task, name))

    async def _visit(self, task: str, name: str) -> None:
        async with self.semaphore.hold(task):
            self.inside.append(name)
            self.entered.append(name)
            await self.exits[name].wait()
            self.inside.remove(name)

    async def let_out(self, name: str) -> None:
        self.exits[name].set()
        await turns()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_semaphore_lets_in_as_many_as_it_has_permits() -> None:
    crowd = Crowd(2)
    visits = [crowd.send("a", str(i)) for i in range(4)]
    await turns()
    assert crowd.inside == ["0", "1"]
    await crowd.let_out("0")
    assert crowd.inside == ["1", "2"]
    for name in ("1", "2", "3"):
        await crowd.let_out(name)
    await asyncio.gather(*visits)


async def test_semaphore_lets_tasks_in_by_turns() -> None:
    crowd = Crowd(1)
    visits = [crowd.send("greedy", f"g{i}") for i in range(5)]
    await turns()
    visits.append(crowd.send("modest", "m0"))
    for name in ("g0", "g1", "m0", "g2", "g3", "g4"):
        await turns()
        await crowd.let_out(name)
    await asyncio.gather(*visits)
    assert crowd.entered.index("m0") <= 2


async def test_semaphore_forgets_who_stopped_waiting() -> None:
    crowd = Crowd(1)
    first, second, third = (crowd.send("a", str(i)) for i in range(3))
    await turns()
    second.cancel()
    await turns()
    await crowd.let_out("0")
    assert crowd.inside == ["2"]
    await crowd.let_out("2")
    await asyncio.gather(first, third)
    assert second.cancelled()


async def test_semaphore_keeps_the_permit_of_who_is_let_in_and_cancelled_at_once() -> None:
    crowd = Crowd(1)
    async with crowd.semaphore.hold("a"):
        second, third = crowd.send("b", "b"), crowd.send("c", "c")
        await turns()
    second.cancel()
    await turns()
    assert crowd.inside == ["c"]
    await crowd.let_out("c")
    await third
