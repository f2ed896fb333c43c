import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from server.pixel_budget import PixelBudget

SECONDS = 10


class Holder:
    """A thread that holds pixels until told to let go."""

    def __init__(self, pool: ThreadPoolExecutor, budget: PixelBudget, pixels: int) -> None:
        self.holds, self._let_go = threading.Event(), threading.Event()
        self._done: Future[None] = pool.submit(self._run, budget, pixels)

    def _run(self, budget: PixelBudget, pixels: int) -> None:
        with budget.hold(pixels):
            self.holds.set()
            assert self._let_go.wait(SECONDS)

    def let_go(self) -> None:
        self._let_go.set()
        self._done.result(SECONDS)


def wait_for_line(budget: PixelBudget, length: int) -> None:
    """Return once so many wait: what they wait for cannot happen meanwhile."""
    done = threading.Event()
    for _ in range(10_000):
        if len(budget._waiting) == length:
            return
        done.wait(0.001)
    raise AssertionError(f"{len(budget._waiting)} wait")


def test_pixels_are_shared_first_come_first_served() -> None:
    budget = PixelBudget(10)
    with ThreadPoolExecutor(4) as pool:
        first = Holder(pool, budget, 6)
        assert first.holds.wait(SECONDS)
        large = Holder(pool, budget, 5)
        wait_for_line(budget, 1)
        small = Holder(pool, budget, 1)  # would fit, but came later
        wait_for_line(budget, 2)
        assert not large.holds.is_set()
        assert not small.holds.is_set()
        first.let_go()
        assert large.holds.wait(SECONDS)
        assert small.holds.wait(SECONDS)  # beside the large one
        large.let_go()
        small.let_go()
    assert budget._held == 0


def test_more_than_there_is_waits_to_be_alone() -> None:
    budget = PixelBudget(10)
    with ThreadPoolExecutor(2) as pool:
        small = Holder(pool, budget, 1)
        assert small.holds.wait(SECONDS)
        huge = Holder(pool, budget, 11)
        wait_for_line(budget, 1)
        small.let_go()
        assert huge.holds.wait(SECONDS)
        huge.let_go()


def test_the_time_of_the_wait_is_told() -> None:
    budget = PixelBudget(10)
    with budget.hold(10) as at_once:
        pass
    with ThreadPoolExecutor(2) as pool:
        first = Holder(pool, budget, 10)
        assert first.holds.wait(SECONDS)

        def wait_and_tell() -> float:
            with budget.hold(10) as seconds:
                return seconds

        telling = pool.submit(wait_and_tell)
        wait_for_line(budget, 1)
        first.let_go()
        assert at_once < telling.result(SECONDS)


def test_a_failure_gives_pixels_back() -> None:
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.hold(10):
            raise ZeroDivisionError
    with budget.hold(10):
        pass


def test_never_more_than_the_budget() -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    held, most = 0, 0

    def decode(pixels: int) -> None:
        nonlocal held, most
        with budget.hold(pixels):
            with lock:
                held += pixels
                most = max(most, held)
            with lock:
                held -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [1 + (i * 37) % 100 for i in range(2000)]))
    assert 0 < most <= 100
    assert held == 0
