"""The connection to Redis or Valkey; the only module that knows redis-py.

Every call ends within the target's timeout, waiting for a connection and making one included. Connections are
looked at before they are used and made when needed, so a server that comes back, or another that takes over,
is used by the next call. Nothing is sent twice: where no answer came, the command may have been run.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as TookTooLong

from registry.errors import RegistryUnavailable
from registry.redis_url import RedisTarget
from registry.scripts import script

CONNECTIONS = 16


class Connection:
    """Sends commands; implements `registry.redis_blobs.Server`. Connects to nothing before the first one."""

    def __init__(self, target: RedisTarget) -> None:
        self._timeout = target.options.timeout
        self._sentinel = _sentinel(target) if target.service else None
        self._client = _client(target, self._sentinel)
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._closed = False

    async def ask(self, *command: Any) -> Any:
        """Send a command and return its answer."""
        return await self._bounded(lambda: self._client.execute_command(*command))  # type: ignore[no-untyped-call]

    async def run(self, name: str, keys: Sequence[str], *arguments: Any) -> list[Any]:
        """Run a script and return its answer."""
        found = script(name)

        async def send() -> Any:
            rest = (len(keys), *keys, *arguments)
            try:
                return await self._client.execute_command("EVALSHA", found.digest, *rest)  # type: ignore[no-untyped-call]
            except NoScriptError:  # a server that was restarted has forgotten it
                return await self._client.execute_command("EVAL", found.text, *rest)  # type: ignore[no-untyped-call]

        answer: list[Any] = await self._bounded(send)
        return answer

    async def close(self) -> None:
        """Let go of the connections; those in use end with their calls."""
        self._closed = True
        await self._client.aclose()
        if self._sentinel is not None:
            await asyncio.gather(*(sentinel.aclose() for sentinel in self._sentinel.sentinels))

    async def _bounded(self, send: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Turn what redis-py raises into the one error the contract allows, in time."""
        if self._closed:
            raise RegistryUnavailable("redis", "it was closed")
        try:
            async with asyncio.timeout(self._timeout), self._free:
                return await send()
        except (TimeoutError, TookTooLong) as error:
            raise RegistryUnavailable("redis", f"no answer within {self._timeout:g} s") from error
        except (RedisError, OSError) as error:
            raise RegistryUnavailable("redis", str(error) or type(error).__name__) from error


def _client(target: RedisTarget, sentinel: Sentinel | None) -> "redis.Redis":
    options = _common(target) | {
        "username": target.username,
        "password": target.password,
        "db": target.database,
    }
    if sentinel is not None and target.service is not None:
        client: redis.Redis = sentinel.master_for(target.service, **options)
        return client
    if target.path is not None:
        return redis.Redis(unix_socket_path=target.path, **options)
    (server,) = target.servers
    return redis.Redis(host=server.host, port=server.port, **options)


def _sentinel(target: RedisTarget) -> Sentinel:
    # several sentinels must be asked within one call's time
    share = target.options.timeout / (len(target.servers) + 1)
    options = _common(target) | {
        "socket_timeout": share,
        "socket_connect_timeout": share,
        "username": target.options.sentinel_username,
        "password": target.options.sentinel_password,
    }
    return Sentinel(target.servers, sentinel_kwargs=options)  # type: ignore[no-untyped-call]


def _common(target: RedisTarget) -> dict[str, Any]:
    options = target.options
    found = {
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if target.tls:
        found |= {"ssl": True, "ssl_ca_certs": _path(options.ssl_ca_certs)}
        found |= {"ssl_certfile": _path(options.ssl_certfile), "ssl_keyfile": _path(options.ssl_keyfile)}
    return found


def _path(path: object | None) -> str | None:
    return None if path is None else str(path)
