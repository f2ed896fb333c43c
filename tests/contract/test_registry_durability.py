"""The embedded registry under `kill -9`: what it acknowledged is there; the rest is there whole or not."""

import asyncio
import multiprocessing
import random
import signal
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from registry import START, EmbeddedRegistry
from tests.contract.aftermath import check, check_database, resume
from tests.contract.model import Model, Operation, perform

KILLS = 20
FIRST_USES = 10
LONGEST_DELAY = 0.02  # seconds, some operations long

# a server that has imported everything forks a child in milliseconds
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def churn(place: Path, model: Model, seed: int, reports: Connection) -> None:
    """Change the registry until killed; report each operation before it begins, and None when it is done."""

    async def main() -> None:
        registry, rng = EmbeddedRegistry(place), random.Random(seed)
        while True:
            operation = model.propose(rng)
            reports.send(operation)
            await perform(registry, operation)
            reports.send(None)
            model.apply(operation)

    asyncio.run(main())


class Victim:
    def __init__(self, place: Path, model: Model, seed: int) -> None:
        self._reports, theirs = processes.Pipe(duplex=False)
        self._process: BaseProcess = processes.Process(
            target=churn, args=(place, model, seed, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def kill_after(self, seconds: float, *, done: int) -> tuple[list[Operation], Operation | None]:
        """Let it finish `done` operations and live on for `seconds`; return what it did, and was doing."""
        reports = [self._reports.recv() for _ in range(2 * done)]
        self._process.join(seconds)
        assert self._process.is_alive(), f"it ended by itself with {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL
        reports += self._drain()
        self._process.close()
        operations = [report for report in reports if report is not None]
        finished = reports.count(None)
        return operations[:finished], (operations[finished:] or [None])[0]

    def _drain(self) -> Iterator[Operation | None]:
        with closing(self._reports):
            while True:
                try:
                    yield self._reports.recv()
                except (EOFError, OSError):  # the last report may be cut off
                    return


async def test_kills_lose_nothing_acknowledged_and_leave_nothing_half(tmp_path: Path) -> None:
    rng, model, cursor = random.Random(7), Model(), START
    for round_ in range(KILLS):
        victim = Victim(tmp_path, model, seed=round_)
        done, doing = victim.kill_after(rng.uniform(0, LONGEST_DELAY), done=rng.randint(1, 20))
        check_database(tmp_path)
        registry = EmbeddedRegistry(tmp_path)
        model = await resume(registry, cursor, model, done, doing)
        await check(tmp_path, registry, model)
        cursor = await registry.cursor()
        await registry.close()


@pytest.mark.parametrize("seed", range(FIRST_USES))
async def test_a_kill_during_the_first_use(tmp_path: Path, seed: int) -> None:
    place = tmp_path / "data"
    victim = Victim(place, Model(), seed)
    done, doing = victim.kill_after(random.Random(seed).uniform(0, 2 * LONGEST_DELAY), done=0)
    registry = EmbeddedRegistry(place)
    model = await resume(registry, START, Model(), done, doing)
    await check(place, registry, model)
    check_database(place)
    await registry.close()


async def test_a_kill_frees_the_write_lock(tmp_path: Path) -> None:
    registry = EmbeddedRegistry(tmp_path, busy_seconds=5)
    done, _ = Victim(tmp_path, Model(), seed=3).kill_after(0, done=3)
    await perform(registry, Operation("add", ("other", 1, False)))
    assert (await registry.get_task("other")).versions == 1
    assert len(done) >= 3
    await registry.close()
