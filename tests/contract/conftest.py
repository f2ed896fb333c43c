import multiprocessing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from registry import KeptRegistry
from tests.contract.backends import BACKENDS, REDIS_URL

WORKERS = 4


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A backend's name; what leads to a place of its own for each test is in the test's directory."""
    name = str(request.param)
    if name.startswith("redis"):
        (tmp_path / REDIS_URL).write_text(request.getfixturevalue("redis_url"))
    return name


@pytest_asyncio.fixture
async def registry(backend: str, tmp_path: Path) -> AsyncIterator[KeptRegistry]:
    made = BACKENDS[backend](tmp_path)
    yield made
    await made.close()


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Real other processes, started once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as made:
        yield made
