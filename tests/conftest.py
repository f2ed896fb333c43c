"""What tests of several packages share."""

import secrets
from collections.abc import Iterator

import pytest

from tests.redis_servers import BINARY, MISSING, RedisServer, free_port, redis_server


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small models run on one thread: more would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def needs_redis() -> None:
    if BINARY is None:
        pytest.skip(MISSING)


@pytest.fixture(scope="session")
def redis(needs_redis: None) -> Iterator[RedisServer]:
    """One server for all tests, in cluster mode: it refuses what touches keys of more than one slot."""
    with redis_server("--cluster-enabled", "yes", "--port", str(free_port()), "--appendonly", "no") as server:
        server.command("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
        server.until("CLUSTER", "INFO", answers=b"cluster_state:ok")
        yield server


@pytest.fixture
def redis_url(redis: RedisServer) -> str:
    """An empty registry on that server."""
    return f"{redis.url}?prefix={secrets.token_hex(8)}"


@pytest.fixture
def own_redis(needs_redis: None) -> Iterator[RedisServer]:
    """A server that a test may kill and pause."""
    with redis_server() as server:
        yield server
