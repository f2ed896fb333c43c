"""The bytes of a Redis registry: in objects that never change, which Redis points to by digest.

An upload announces a new object in `uploads`, stores it, and gives it to the digest in the same script that
adds the version; that script refuses an object which is no longer announced. A sweep first ends the
announcement (the object's time becomes 0) and then removes the object. So neither can hurt the other, however
long either is stopped in between: an upload that lost its object stores the bytes again under another name.
An object that a digest has let go of is announced at time 0 by the same script, so none is lost from sight.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from registry.blobs import is_digest, sha256
from registry.errors import BlobCorrupt, BlobNotFound, RegistryUnavailable
from registry.places import Place
from registry.redis_keys import Keys

CHUNK = 2**21  # so much travels in one command, which bounds how long one takes
MARKER = "registry"  # names the registry whose bytes a place outside holds
AT_ONCE = 500

_log = logging.getLogger(__name__)


class Server(Protocol):
    """What is asked of a connection to Redis. It sends nothing twice; methods raise RegistryUnavailable."""

    async def ask(self, *command: Any) -> Any:
        """Send a command and return its answer."""
        ...

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> list[Any]:
        """Run a script and return its answer."""
        ...

    async def close(self) -> None: ...


class InRedis:
    """Objects as strings in Redis."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._keys = keys

    async def put(self, name: str, data: bytes) -> None:
        key = self._keys.object(name)
        for start in range(0, max(len(data), 1), CHUNK):
            await self._server.ask("SETRANGE", key, start, data[start : start + CHUNK])

    async def replace(self, name: str, data: bytes) -> None:
        await self._server.ask("SET", self._keys.object(name), data)

    async def get(self, name: str) -> bytes | None:
        key, parts = self._keys.object(name), list[bytes]()
        while not parts or len(parts[-1]) == CHUNK:
            start = CHUNK * len(parts)
            parts.append(await self._server.ask("GETRANGE", key, start, start + CHUNK - 1))
        return b"".join(parts) or None

    async def remove(self, name: str) -> None:
        await self._server.ask("UNLINK", self._keys.object(name))

    async def names(self) -> list[str]:
        return []  # each is announced, or some digest's

    async def close(self) -> None:
        pass


class RedisBlobs:
    def __init__(self, server: Server, keys: Keys, place: Place) -> None:
        self._server = server
        self._keys = keys
        self._place = place

    async def fetch(self, digest: str) -> bytes:
        """Return the bytes of a digest, verified.

        Raises:
            BlobNotFound
            BlobCorrupt
        """
        if not is_digest(digest):
            raise BlobNotFound(digest)
        looked_at: bytes | None = None
        data: bytes | None = None
        while True:
            found: bytes | None = await self._server.ask("HGET", self._keys("blobs"), digest)
            if found is None or (found == looked_at and data is None):
                raise BlobNotFound(digest)
            if found == looked_at:
                raise BlobCorrupt(digest)
            data = await self._place.get(found.decode())
            if data is not None and await asyncio.to_thread(sha256, data) == digest:
                return data
            looked_at = found  # unless it was replaced meanwhile, that is final

    async def held(self, digest: str) -> str | None:
        """Return the object that holds the digest's bytes, None if there is none that is whole."""
        found = await self._server.ask("HGET", self._keys("blobs"), digest)
        if found is None:
            return None
        data = await self._place.get(found.decode())
        whole = data is not None and await asyncio.to_thread(sha256, data) == digest
        return str(found.decode()) if whole else None

    async def upload(self, digest: str, data: bytes) -> str:
        """Store bytes in a new object, announced, and return its name."""
        name = f"{digest}.{secrets.token_hex(8)}"
        await self._server.ask("ZADD", self._keys("uploads"), repr(time.time()), name)
        await self._place.put(name, data)
        return name

    async def discard(self, names: Iterable[bytes]) -> None:
        """Remove objects that no digest has, if that is possible now; a sweep does it otherwise."""
        for name in filter(None, names):
            try:
                await self._remove(name)
            except RegistryUnavailable as error:
                _log.warning("unused bytes stay until they are reclaimed: %s", error)

    async def sweep(self, older_than: float) -> int:
        """Remove the objects that no digest has; return how many."""
        since, removed = repr(time.time() - older_than), 0
        seen = [name for name in await self._place.names() if is_digest(name.partition(".")[0])]
        for start in range(0, max(len(seen), 1), AT_ONCE):
            batch = seen[start : start + AT_ONCE]
            for name in await self._server.run("sweep", self._keys.all(), since, *batch):
                await self._remove(name)
                removed += 1
        return removed

    async def check_place(self, identity: str, *, in_use: bool) -> None:
        """Make sure that a place outside is this registry's, and mark it where nothing is there yet.

        Raises:
            RegistryUnavailable: Most likely a directory is not mounted.
        """
        found = await self._place.get(MARKER)
        if found is None and not in_use:
            await self._place.replace(MARKER, identity.encode())
        elif found is None or found.decode(errors="replace") != identity:
            whose = "another registry's" if found else "empty: is it mounted?"
            raise RegistryUnavailable("redis", f"where its blobs should be is {whose}")

    async def close(self) -> None:
        await self._place.close()

    async def _remove(self, name: bytes) -> None:
        await self._place.remove(name.decode())
        await self._server.ask("ZREM", self._keys("uploads"), name)
