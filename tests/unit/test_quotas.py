"""Limits per key and per task: what is let in, what is refused, and what is kept in memory."""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.models import ApiKey
from server.auth import ANYBODY, Caller, hash_token
from server.errors import ConcurrencyLimited, RateLimited
from server.events import Refused
from server.quotas import SWEEP_AT, Limit, Meters, Quotas
from server.settings import Settings
from tests.fakes import FakeClock
from tests.unit.app_parts import JPEG, World, running

ONE = "/v1/tasks/pets/predict"
CALLER = Caller("ci", frozenset({"predict"}), ("*",))


class Bench:
    """Quotas on a clock that stands still, and what they refused."""

    def __init__(self, **settings: float) -> None:
        self.clock = FakeClock()
        self.refused: Counter[str] = Counter()
        self.quotas = Quotas(Settings.model_validate(settings), self._observe, clock=self.clock)

    def _observe(self, reason: Refused, images: int) -> None:
        self.refused[reason] += images

    def use(self, images: int = 1, caller: Caller = CALLER) -> bool:
        """Return whether a request that is over at once is let in."""
        try:
            with self.quotas.key(caller, images):
                return True
        except RateLimited:
            return False


def test_without_limits_everything_is_let_in_and_nothing_kept() -> None:
    bench = Bench()
    with ExitStack() as held:
        for number in range(1000):
            held.enter_context(bench.quotas.key(CALLER, 64))
            held.enter_context(bench.quotas.task(f"task-{number}", 64))
    assert not bench.refused


def test_a_rate_lets_its_burst_in_and_then_as_much_as_flows() -> None:
    bench = Bench(key_images_per_second=10, rate_burst_ms=500)
    assert [bench.use() for _ in range(6)] == [True] * 5 + [False]
    bench.clock.advance(0.1)
    assert [bench.use() for _ in range(2)] == [True, False]
    bench.clock.advance(3600)
    assert [bench.use() for _ in range(6)] == [True] * 5 + [False]
    assert bench.refused == {"key_rate": 3}


def test_waiting_as_told_is_enough() -> None:
    bench = Bench(key_images_per_second=3)
    assert bench.use(3)
    with pytest.raises(RateLimited) as caught, bench.quotas.key(CALLER, 2):
        pass
    bench.clock.advance(caught.value.retry_after_seconds + 1e-9)
    assert bench.use(2)


def test_more_than_a_burst_is_let_in_alone_and_paid_for() -> None:
    bench = Bench(key_images_per_second=10)
    assert bench.use(50)
    bench.clock.advance(4.0)
    assert not bench.use()
    bench.clock.advance(0.2)
    assert bench.use()


def test_a_slow_rate_lets_one_image_in() -> None:
    bench = Bench(key_images_per_second=0.01)
    assert [bench.use() for _ in range(2)] == [True, False]
    bench.clock.advance(100)
    assert bench.use()


def test_so_many_may_be_under_way_and_no_more() -> None:
    bench = Bench(task_max_concurrent=3)
    with bench.quotas.task("pets", 2):
        with bench.quotas.task("pets"), bench.quotas.task("cars", 3):
            refused = bench.quotas.task("pets")
            with pytest.raises(ConcurrencyLimited, match="task `pets` may have 3 images"):
                refused.__enter__()
        with pytest.raises(ConcurrencyLimited), bench.quotas.task("pets", 2):
            pass
    with bench.quotas.task("pets", 100), pytest.raises(ConcurrencyLimited), bench.quotas.task("pets"):
        pass
    assert bench.refused == {"task_concurrent": 4}


def test_a_request_that_fails_is_no_longer_under_way() -> None:
    bench = Bench(key_max_concurrent=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), bench.quotas.key(CALLER):
            1 / 0  # noqa: B018
    assert not bench.refused


def test_a_key_has_limits_of_its_own_or_none() -> None:
    bench = Bench(key_images_per_second=1)
    fast = Caller("fast", frozenset(), (), images_per_second=5)
    free = Caller("free", frozenset(), (), images_per_second=0)
    assert [sum(bench.use(caller=caller) for _ in range(9)) for caller in (CALLER, fast, free)] == [1, 5, 9]


def test_a_key_made_anew_has_its_new_limits_and_what_is_under_way() -> None:
    bench = Bench()
    before = Caller("ci", frozenset(), (), images_per_second=100, max_concurrent=9)
    after = Caller("ci", frozenset(), (), images_per_second=2, max_concurrent=2)
    with bench.quotas.key(before):
        with pytest.raises(ConcurrencyLimited):
            bench.use(2, caller=after)
        assert bench.use(caller=after)
    assert not bench.use(2, caller=after)


def test_nobody_is_counted_for_without_keys() -> None:
    bench = Bench(key_images_per_second=1, key_max_concurrent=1)
    with bench.quotas.key(ANYBODY, 9), bench.quotas.key(ANYBODY, 9):
        bench.quotas.refuse_spent(ANYBODY)


@settings(deadline=None)  # a busy host is no finding
@given(
    st.floats(0.1, 100),
    st.integers(1, 5000),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40)), min_size=1, max_size=60),
)
def test_over_any_time_no_more_is_let_in_than_burst_and_rate_allow(
    rate: float, burst_ms: int, calls: list[tuple[float, int]]
) -> None:
    bench = Bench(key_images_per_second=rate, rate_burst_ms=burst_ms)
    burst = max(1.0, rate * burst_ms / 1000)
    let_in: list[tuple[float, int]] = []
    for pause, images in calls:
        bench.clock.advance(pause)
        if bench.use(images):
            let_in.append((bench.clock.now, images))
    for first, (begun, _) in enumerate(let_in):
        total = 0
        for now, images in let_in[first:]:
            total += images
            assert total <= burst + rate * (now - begun) + max(0.0, images - burst) + 1e-6


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60), st.integers(1, 12))
def test_what_is_under_way_is_what_was_let_in_and_not_left(steps: list[tuple[bool, int]], most: int) -> None:
    bench = Bench(task_max_concurrent=most)
    held: list[tuple[ExitStack, int]] = []
    for arrives, images in steps:
        under_way = sum(count for _, count in held)
        if arrives:
            stack = ExitStack()
            fits = under_way + min(images, most) <= most
            try:
                stack.enter_context(bench.quotas.task("pets", images))
            except ConcurrencyLimited:
                assert not fits
            else:
                assert fits
                held.append((stack, images))
        elif held:
            held.pop()[0].close()


@pytest.mark.parametrize("rate", [0, 10])
def test_memory_is_bounded_by_what_is_in_use(rate: float) -> None:
    clock = FakeClock()
    meters = Meters("task", Refused.TASK_RATE, Refused.TASK_CONCURRENT, lambda *_: None, clock)
    limit = Limit(images_per_second=rate, max_concurrent=5)
    with meters.hold("busy", 1, limit):
        for number in range(10 * SWEEP_AT):
            clock.advance(0.01)
            with meters.hold(f"task-{number}", 1, limit):
                pass
            assert len(meters) <= SWEEP_AT
        with pytest.raises(ConcurrencyLimited):
            meters.check("busy", 5, limit)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two tasks; a key that may have two images answered an hour, and one with only the task's limits."""
    async with running(tmp_path, task_max_concurrent=2) as world:
        await world.add("pets")
        await world.add("cars")
        for name, rate in (("slow", 2 / 3600), ("free", 0)):
            await world.registry.add_key(
                ApiKey(
                    name=name,
                    secret_hash=hash_token(name),
                    scopes=frozenset({"predict", "manage"}),
                    created=1.0,
                    images_per_second=rate,
                )
            )
        await world.catalog.refresh()
        yield world


@pytest.fixture
def slow(world: World) -> dict[str, str]:
    return {"authorization": "Bearer slow"}


@pytest.fixture
def free(world: World) -> dict[str, str]:
    return {"authorization": "Bearer free"}


def images(count: int) -> dict[str, object]:
    return {"images": [base64.b64encode(JPEG).decode()] * count, "tasks": ["pets"]}


async def test_a_spent_key_is_told_when_to_come_back_before_anything_is_read(
    world: World, slow: dict[str, str]
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    assert (await world.client.post(ONE, content=JPEG, headers=slow)).status_code == 200
    for url in (ONE, "/v1/predict", "/v2/models/pets/infer"):
        response = await world.client.post(url, content=endless(), headers=slow)
        assert (response.status_code, response.json()["error_type"]) == (429, "rate_limited")
        assert 1700 < int(response.headers["retry-after"]) <= 1800
    assert len(world.decoder.decoded) == 1
    assert world.metrics.refusals == {"key_rate": 3}


async def test_an_unknown_task_counts_for_the_key(world: World, slow: dict[str, str]) -> None:
    answers = [
        await world.client.post("/v1/tasks/boats/predict", content=JPEG, headers=slow) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [404, 429]


@pytest.mark.parametrize("url", ["/v1/predict", "/v2/models/pets/infer"])
async def test_every_image_of_a_request_counts(world: World, url: str) -> None:
    await world.registry.add_key(
        ApiKey(
            name="three",
            secret_hash=hash_token("three"),
            scopes=frozenset({"predict"}),
            created=1.0,
            max_concurrent=0,
            images_per_second=3,
        )
    )
    await world.catalog.refresh()
    headers = {"authorization": "Bearer three"}
    data = [base64.b64encode(JPEG).decode()] * 2
    infer = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": data}]}
    body = images(2) if url == "/v1/predict" else infer
    answers = [await world.client.post(url, json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429], answers[0].text
    assert world.metrics.refusals == {"key_rate": 2}
    assert len(world.decoder.decoded) == 2


async def test_a_limit_of_a_task_refuses_its_rows_and_no_others(world: World, free: dict[str, str]) -> None:
    world.engine.gate.clear()
    under_way = [asyncio.create_task(world.client.post(ONE, content=JPEG, headers=free)) for _ in range(2)]
    async with asyncio.timeout(30):
        while len(world.engine.jobs) < 2:  # noqa: ASYNC110  (the engine's list, with no event to wait for)
            await asyncio.sleep(0)
    alone = await world.client.post(ONE, content=JPEG, headers=free)
    assert (alone.status_code, alone.json()["error_type"]) == (429, "concurrency_limited")
    both = {
        "images": [base64.b64encode(JPEG + bytes([i])).decode() for i in range(2)],
        "rows": [{"image": 0, "task": "pets"}, {"image": 0, "task": "pets:1"}, {"image": 1, "task": "cars"}],
    }
    asked = asyncio.create_task(world.client.post("/v1/predict", json=both, headers=free))
    async with asyncio.timeout(30):
        while len(world.engine.jobs) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    world.engine.gate.set()
    rows = (await asked).json()
    assert [row.get("status", 200) for row in rows] == [429, 429, 200]
    assert {row["error_type"] for row in rows[:2]} == {"concurrency_limited"}
    assert JPEG + b"\0" not in world.decoder.decoded, "an image that no row may have is not decoded"
    assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200, 200]
    assert world.metrics.refusals == {"task_concurrent": 3}
    assert world.metrics.failures == [("pets", 429)] * 3
    assert (await world.client.post(ONE, content=JPEG, headers=free)).status_code == 200
