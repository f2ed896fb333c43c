"""Where a registry's bytes may be, outside of Redis: a shared directory, or an object store by fsspec.

Names are given by the caller. Nobody reads an object before `put` has returned, so that need not be atomic;
when it has, the bytes are durable.
"""

import asyncio
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from registry.errors import RegistryUnavailable, RegistryUrlInvalid
from registry.files import make_directory, sync_directory

T = TypeVar("T")

THREADS = 8
SECONDS = 30.0  # longest time for one object, its bytes included


class Place(Protocol):
    """Holds objects by name. Methods raise RegistryUnavailable."""

    async def put(self, name: str, data: bytes) -> None: ...

    async def replace(self, name: str, data: bytes) -> None:
        """Put an object that others may read at the same time: they see all of it, or what was there."""
        ...

    async def get(self, name: str) -> bytes | None: ...

    async def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        ...

    async def names(self) -> list[str]:
        """Return the names of all objects, or nothing where none can be lost from sight."""
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """A place that blocks, and raises whatever it likes; FileNotFoundError for what is not there."""

    def put(self, name: str, data: bytes) -> None: ...

    def replace(self, name: str, data: bytes) -> None: ...

    def get(self, name: str) -> bytes: ...

    def remove(self, name: str) -> None: ...

    def names(self) -> list[str]: ...


class Directory:
    """Files in one directory, which several hosts may share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, data: bytes) -> None:
        make_directory(self._directory)
        with (self._directory / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._directory)

    def replace(self, name: str, data: bytes) -> None:
        temporary = f"{name}.{secrets.token_hex(4)}"
        self.put(temporary, data)
        (self._directory / temporary).replace(self._directory / name)
        sync_directory(self._directory)

    def get(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def remove(self, name: str) -> None:
        (self._directory / name).unlink()

    def names(self) -> list[str]:
        return [path.name for path in self._directory.iterdir()] if self._directory.is_dir() else []


class ObjectStore:
    """Objects under a prefix of anything that fsspec reaches."""

    def __init__(self, url: str) -> None:
        import fsspec.core  # an optional extra; costs 0.1 s

        try:
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise RegistryUrlInvalid(f"{url.partition('://')[0]}:", str(error)) from error

    def put(self, name: str, data: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{name}", data)

    def replace(self, name: str, data: bytes) -> None:
        self.put(name, data)

    def get(self, name: str) -> bytes:
        data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def remove(self, name: str) -> None:
        self._files.rm_file(f"{self._root}/{name}")

    def names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [path.rpartition("/")[2] for path in self._files.find(self._root)]
        return []


class StoredOutside:
    """A Store, off the event loop and within a time; `url` is shown in errors.

    Opens the store at its first use: that may import much, or reach out.
    """

    def __init__(self, url: str, *, seconds: float = SECONDS) -> None:
        self._url = url
        self._seconds = seconds
        self._store: Store | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="registry-blobs")

    async def put(self, name: str, data: bytes) -> None:
        await self._run(lambda store: store.put(name, data))

    async def replace(self, name: str, data: bytes) -> None:
        await self._run(lambda store: store.replace(name, data))

    async def get(self, name: str) -> bytes | None:
        return await self._run(partial(_unless_missing, lambda store: store.get(name)))

    async def remove(self, name: str) -> None:
        await self._run(partial(_unless_missing, lambda store: store.remove(name)))

    async def names(self) -> list[str]:
        return await self._run(lambda store: store.names())

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[Store], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                return await loop.run_in_executor(self._threads, lambda: work(self._open()))
        except RegistryUrlInvalid as error:
            raise RegistryUnavailable("redis", str(error)) from error
        except TimeoutError as error:
            raise self._unavailable(f"no answer within {self._seconds:g} s") from error
        except Exception as error:  # every kind of store has errors of its own
            raise self._unavailable(f"{type(error).__name__}: {error}") from error

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._url)
        return self._store

    def _unavailable(self, detail: str) -> RegistryUnavailable:
        return RegistryUnavailable("redis", f"blobs at {shown(self._url)}: {detail}")


def open_store(url: str) -> Store:
    """Return the store that a URL names; `file:///path` is a directory.

    Raises:
        RegistryUrlInvalid: If fsspec, or what it needs for this kind of URL, is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Directory(Path(unquote(parts.path)))
    return ObjectStore(url)


def shown(url: str) -> str:
    """Return a URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _unless_missing(work: Callable[[Any], T], store: Store) -> T | None:
    try:
        return work(store)
    except FileNotFoundError:
        return None
