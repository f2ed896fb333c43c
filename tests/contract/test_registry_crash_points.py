"""The embedded registry, killed before every single step of an operation that may touch the disk."""

import asyncio
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from registry import PRODUCTION, START, EmbeddedRegistry
from tests.contract.aftermath import check, check_database, resume
from tests.contract.model import Model, Operation, perform

# every C function through which the registry reaches the disk
STEPS = {
    "execute",
    "executescript",
    "fsync",
    "mkdir",
    "open",
    "rename",
    "replace",
    "unlink",
    "write",
    "flush",
}

HISTORY = [
    Operation("add", ("pets", 1, False)),
    Operation("add", ("pets", 2, True)),
    Operation("add", ("pets", 3, False)),
    Operation("add", ("cars", 1, False)),
]
OPERATIONS = {
    "new version": Operation("add", ("pets", 4, True)),
    "new task": Operation("add", ("toys", 4, False)),
    "bytes of another task": Operation("add", ("cars", 3, True)),
    "known bytes": Operation("add", ("pets", 3, True)),
    "set": Operation("set", ("pets", PRODUCTION, 3)),
    "rollback": Operation("rollback", ("pets", PRODUCTION)),
    "delete version": Operation("delete_version", ("pets", 3)),
    "delete version, bytes shared": Operation("delete_version", ("pets", 1)),
    "delete task": Operation("delete_task", ("pets",)),
}

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def suicide(step: int) -> Callable[[FrameType, str, Any], None]:
    """Return a profiler that kills its process at the given step."""
    passed = 0

    def profile(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal passed
        if event == "c_call" and function.__name__ in STEPS:
            if passed == step:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 1

    return profile


async def replay(place: Path, *operations: Operation) -> None:
    registry = EmbeddedRegistry(place)
    for operation in operations:
        await perform(registry, operation)
    await registry.close()


def run_until(step: int, place: Path, operation: Operation) -> None:
    threading.setprofile(suicide(step))  # the registry's threads begin after this
    asyncio.run(replay(place, operation))
    sys.exit(0)


def survives(step: int, place: Path, operation: Operation) -> bool:
    """Return whether the operation ends before it comes to that step."""
    child = processes.Process(target=run_until, args=(step, place, operation))
    child.start()
    child.join()
    assert child.exitcode in {0, -signal.SIGKILL}
    return child.exitcode == 0


async def look(place: Path, history: list[Operation], operation: Operation) -> bool:
    """Check the registry; return whether the operation happened."""
    registry, model = EmbeddedRegistry(place), Model()
    after = await resume(registry, START, model, history, operation)
    await check(place, registry, after)
    check_database(place)
    await registry.close()
    return after is not model


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_step_leaves_all_or_nothing(tmp_path: Path, name: str) -> None:
    origin, operation, step, happened = tmp_path / "origin", OPERATIONS[name], 0, [False]
    asyncio.run(replay(origin, *HISTORY))
    while True:
        place = shutil.copytree(origin, tmp_path / str(step))
        ended = survives(step, place, operation)
        happened.append(asyncio.run(look(place, HISTORY, operation)))
        if ended:
            break
        step += 1
    assert step > 4
    assert happened == sorted(happened) and happened[-1], "it happened at one step and stayed so"


def test_every_step_of_the_first_use(tmp_path: Path) -> None:
    operation, step, ended = Operation("add", ("pets", 1, False)), 0, False
    while not ended:
        place = tmp_path / str(step) / "data"
        ended = survives(step, place, operation)
        asyncio.run(look(place, [], operation))
        step += 1
    assert step > 20
