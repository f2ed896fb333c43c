import hashlib
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from registry import KeptRegistry
from tests.contract.backends import BACKENDS, REDIS_URL
from tests.redis_servers import BINARY, MISSING, RedisServer, free_port, redis_server

WORKERS = 4


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """One server for all tests, in cluster mode: it refuses what touches keys of more than one slot."""
    if BINARY is None:
        pytest.skip(MISSING)
    with redis_server("--cluster-enabled", "yes", "--port", str(free_port())) as server:
        server.command("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
        server.until("CLUSTER", "INFO", answers=b"cluster_state:ok")
        yield server


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A backend's name; what leads to a place of its own for each test is in the test's directory."""
    name = str(request.param)
    if name.startswith("redis"):
        server: RedisServer = request.getfixturevalue("redis")
        prefix = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
        (tmp_path / REDIS_URL).write_text(f"{server.url}?prefix={prefix}")
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
