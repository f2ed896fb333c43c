import multiprocessing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from registry import Registry
from tests.contract.backends import BACKENDS

WORKERS = 4


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def registry(backend: str, tmp_path: Path) -> AsyncIterator[Registry]:
    made = BACKENDS[backend](tmp_path)
    yield made
    await made.close()


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Real other processes, started once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as made:
        yield made
