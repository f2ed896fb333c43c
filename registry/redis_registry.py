"""Registry on Redis or Valkey, for several hosts. `registry/redis_keys.py` tells what is stored.

Why it is atomic. Every change is one Lua script (`registry/lua/`) with its events in it: Redis runs one at a
time, and readers see the state before or after it. `registry/redis_blobs.py` tells how bytes come and go.

Events are a stream. A cursor is the id of an event, and good only while that event is still in the stream. So
neither trimming (the last `max_events` are kept) nor a restore or a failover that lost events can leave a
reader with a gap: it gets CursorInvalid, and lists everything again.

What was acknowledged is as durable as the server makes it: see docs/registry.md.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from adapters.manifest import Manifest
from registry.base import Added
from registry.blobs import sha256
from registry.errors import (
    AliasConflict,
    CursorInvalid,
    KeyConflict,
    KeyNotFound,
    RegistryUnavailable,
    RestoreConflict,
    VersionInUse,
)
from registry.models import (
    MAX_AUDIT,
    START,
    UNKNOWN,
    Actor,
    AliasMove,
    ApiKey,
    AuditEntry,
    Event,
    Lease,
    Page,
    Task,
    Version,
    check_limit,
    check_name,
)
from registry.places import Place
from registry.redis_blobs import RedisBlobs, Server
from registry.redis_keys import Keys
from registry.redis_records import (
    decode_audit,
    decode_event,
    decode_key,
    decode_lease,
    decode_past,
    decode_step,
    decode_task,
    decode_version,
    decode_versions,
    encode_histories,
    encode_version,
    payload,
)
from registry.redis_upkeep import faults, risks
from registry.upkeep import KeptRegistry, TaskPast

SCHEMA = "1"
MAX_INTEGER = 2**53  # what Redis' scores and Lua's numbers hold exactly
AUDIT_AT_ONCE = 1000
MAX_UPLOADS = 5  # of the same bytes, if sweeps take them away

_CURSOR = re.compile(r"0|[1-9][0-9]{0,17}-[1-9][0-9]{0,17}")


class RedisRegistry(KeptRegistry):
    """Connects to nothing before the first call.

    Args:
        server: The connection; closed with the registry.
        prefix: Begins every key's name.
        place: Where adapter files are, closed with the registry.
        outside: The place is not Redis itself.
        max_events: How many events are kept.
        max_audit: How many entries of the audit log are kept.
    """

    def __init__(
        self,
        server: Server,
        *,
        prefix: str,
        place: Place,
        outside: bool,
        max_events: int = 100_000,
        max_audit: int = MAX_AUDIT,
    ) -> None:
        self._server = server
        self._keys = Keys(prefix)
        self._blobs = RedisBlobs(server, self._keys, place)
        self._outside = outside
        self._max_events, self._max_audit = max_events, max_audit
        self._identity: bytes | None = None

    async def add_version(
        self, task: str, data: bytes, manifest: Manifest, *, promote: bool = False, by: Actor = UNKNOWN
    ) -> Added:
        check_name("task", task)
        digest, created = await asyncio.to_thread(sha256, data), time.time()
        record = encode_version(digest=digest, size=len(data), created=created, manifest=manifest)
        number, stored, is_new = await self._store(task, digest, data, record, by, promote=promote)
        return Added(decode_version(task, int(number), stored), bool(is_new))

    async def get_version(self, task: str, version: int) -> Version:
        check_name("task", task)
        reply = await self._run("get_version", task, task, version)
        (record,) = payload(reply, task, version=version)
        return decode_version(task, version, record)

    async def get_task(self, task: str) -> Task:
        check_name("task", task)
        state = await self._ask("HGET", self._keys("tasks"), task)
        (state,) = payload([b"no task"] if state is None else [b"ok", state], task)
        return decode_task(task, state)

    async def list_tasks(self, *, after: str | None = None, limit: int = 100) -> Page[Task]:
        if after is not None:
            check_name("task", after)
        limit = check_limit(limit)
        # one more than asked for says whether another page follows
        reply = await self._run("list_tasks", None, after or "", limit + 1)
        found = [
            decode_task(name.decode(), state) for name, state in zip(reply[::2], reply[1::2], strict=True)
        ]
        items = tuple(found[:limit])
        return Page(items=items, next_after=items[-1].task if len(found) > limit else None)

    async def list_versions(self, task: str, *, after: int = 0, limit: int = 100) -> tuple[Version, ...]:
        check_name("task", task)
        limit, after = check_limit(limit), min(max(after, 0), MAX_INTEGER)
        reply = await self._run("list_versions", task, task, after, limit)
        return decode_versions(task, payload(reply, task))

    async def delete_version(self, task: str, version: int, *, by: Actor = UNKNOWN) -> None:
        check_name("task", task)
        reply = await self._write("delete_version", by, task, task, version)
        if reply[0] == b"in use":
            raise VersionInUse(task, version, tuple(sorted(name.decode() for name in reply[1:])))
        await self._blobs.discard(payload(reply, task, version=version))

    async def delete_task(self, task: str, *, by: Actor = UNKNOWN) -> None:
        check_name("task", task)
        reply = await self._write("delete_task", by, task, task)
        await self._blobs.discard(payload(reply, task))

    async def set_alias(
        self,
        task: str,
        alias: str,
        version: int,
        *,
        expected: int | None = None,
        check: bool = False,
        by: Actor = UNKNOWN,
    ) -> AliasMove:
        check_name("task", task)
        check_name("alias", alias)
        named = "" if expected is None else expected
        reply = await self._write("set_alias", by, task, task, alias, version, int(check), named)
        if reply[0] == b"conflict":
            raise AliasConflict(task, alias, expected, int(reply[1]) if reply[1] else None)
        (move,) = payload(reply, task, version=version)
        return decode_step(alias, move).move()

    async def rollback_alias(self, task: str, alias: str, *, by: Actor = UNKNOWN) -> AliasMove:
        check_name("task", task)
        check_name("alias", alias)
        reply = await self._write("rollback_alias", by, task, task, alias)
        (move,) = payload(reply, task, alias=alias)
        return decode_step(alias, move).move()

    async def alias_history(self, task: str, alias: str, *, limit: int = 100) -> tuple[AliasMove, ...]:
        check_name("task", task)
        check_name("alias", alias)
        reply = await self._run("alias_history", task, task, alias, check_limit(limit))
        moves = payload(reply, task) or payload([b"no alias"], task, alias=alias)
        return tuple(decode_step(alias, move).move() for move in moves)

    async def fetch(self, digest: str) -> bytes:
        await self._prepare()
        return await self._blobs.fetch(digest)

    async def cursor(self) -> str:
        last = await self._ask("HGET", self._keys("meta"), "last")
        return START if last is None else str(last.decode())

    async def events(self, after: str, *, limit: int = 1000) -> tuple[Event, ...]:
        limit = check_limit(limit)
        if _CURSOR.fullmatch(after) is None:
            raise CursorInvalid(after)
        status, *entries = await self._run("events", None, after, limit)
        if status == b"invalid":
            await self._refuse_another()
            raise CursorInvalid(after)
        return tuple(decode_event(cursor, fields) for cursor, fields in entries)

    async def put_lease(self, lease: Lease) -> None:
        check_name("replica", lease.replica)
        await self._ask("HSET", self._keys("leases"), lease.replica, lease.model_dump_json())

    async def leases(self) -> tuple[Lease, ...]:
        found = await self._ask("HGETALL", self._keys("leases"))
        return tuple(sorted(map(decode_lease, found.values()), key=lambda lease: lease.replica))

    async def drop_lease(self, lease: Lease) -> bool:
        check_name("replica", lease.replica)
        await self._prepare()
        told = (lease.replica, lease.model_dump_json())
        (dropped,) = await self._server.run("drop_lease", [self._keys("leases")], *told)
        return bool(dropped)

    async def add_key(self, key: ApiKey, *, by: Actor = UNKNOWN) -> None:
        check_name("key", key.name)
        reply = await self._write("add_key", by, None, key.name, key.model_dump_json())
        if reply[0] == b"conflict":
            raise KeyConflict(key.name)

    async def list_keys(self) -> tuple[ApiKey, ...]:
        keys = [decode_key(record) for record in await self._ask("HVALS", self._keys("keys"))]
        return tuple(sorted(keys, key=lambda key: key.name))

    async def delete_key(self, name: str, *, by: Actor = UNKNOWN) -> None:
        check_name("key", name)
        reply = await self._write("delete_key", by, None, name)
        if reply[0] == b"no key":
            raise KeyNotFound(name)

    async def audit(
        self, *, task: str | None = None, after: int | None = None, limit: int = 100
    ) -> tuple[AuditEntry, ...]:
        if task is not None:
            check_name("task", task)
        found: list[AuditEntry] = []
        limit, before = check_limit(limit), MAX_INTEGER if after is None else min(after, MAX_INTEGER)
        at_once = AUDIT_AT_ONCE if task is not None else min(limit, AUDIT_AT_ONCE)
        while len(found) < limit and before > 1:
            page = await self._run("audit", None, before, at_once)
            entries = [decode_audit(*entry) for entry in page]
            if not entries:
                break
            found += [entry for entry in entries if task in {None, entry.task}]
            before = entries[-1].number
        return tuple(found[:limit])

    async def close(self) -> None:
        await self._server.close()
        await self._blobs.close()

    async def numbers(self) -> Mapping[str, int]:
        found = await self._ask("HGETALL", self._keys("numbers"))
        return {task.decode(): int(number) for task, number in found.items()}

    async def past(self, task: str) -> TaskPast:
        check_name("task", task)
        return decode_past(task, payload(await self._run("dump_task", task, task), task))

    async def restore_version(self, version: Version, data: bytes, *, by: Actor = UNKNOWN) -> None:
        fields = version.model_dump(include={"digest", "size", "created"})
        record = encode_version(manifest=version.manifest, **fields)
        await self._store(version.task, version.digest, data, record, by, number=version.version)

    async def restore_past(self, past: TaskPast, *, by: Actor = UNKNOWN) -> None:
        histories = encode_histories(past)
        reply = await self._write(
            "restore_task", by, past.task, past.task, repr(past.created), past.last, histories
        )
        if reply[0] == b"conflict":
            raise RestoreConflict(past.task, f"alias `{reply[1].decode()}` has another history")
        payload(reply, past.task)

    async def restore_numbers(self, numbers: Mapping[str, int]) -> None:
        pairs = [item for pair in numbers.items() for item in pair]
        await self._run("restore_numbers", None, *pairs)

    async def reclaim(self, *, older_than: float = 0.0) -> int:
        await self._prepare()
        return await self._blobs.sweep(older_than)

    async def faults(self) -> tuple[str, ...]:
        await self._prepare()
        return await faults(self._server, self._keys)

    async def risks(self) -> tuple[str, ...]:
        await self._prepare()
        return await risks(self._server)

    async def _store(
        self,
        task: str,
        digest: str,
        data: bytes,
        record: str,
        by: Actor,
        *,
        promote: bool = False,
        number: int | None = None,
    ) -> list[Any]:
        """Store bytes and record; return the version's number, its record and whether it is new."""
        await self._prepare()
        for attempt in range(MAX_UPLOADS):
            held = await self._blobs.held(digest) if attempt == 0 else None
            name = held or await self._blobs.upload(digest, data)
            rest = (int(promote), name, int(held is None), "" if number is None else number)
            status, *found = await self._write("add_version", by, task, task, digest, record, *rest)
            if status == b"ok":
                await self._blobs.discard(found[3:])
                return found[:3]
            if held is None:
                await self._blobs.discard([name.encode()])
            if status == b"conflict":
                raise RestoreConflict(task, f"version {number} or its bytes")
        raise RegistryUnavailable("redis", "the bytes were swept away while they were stored; try again")

    async def _ask(self, *command: Any) -> Any:
        await self._prepare()
        return await self._server.ask(*command)

    async def _run(self, script: str, task: str | None, *arguments: Any) -> list[Any]:
        await self._prepare()
        return await self._server.run(script, self._keys.all(task), *arguments)

    async def _write(self, script: str, by: Actor, task: str | None, *arguments: Any) -> list[Any]:
        tag, actor = secrets.randbelow(MAX_INTEGER) + 1, by.model_dump_json(exclude_none=True)
        common = (repr(time.time()), tag, self._max_events, self._max_audit, actor)
        return await self._run(script, task, *common, *arguments)

    async def _prepare(self) -> None:
        """Claim the place at the first use, or see that it is one this program can use."""
        if self._identity is not None:
            return
        where = "outside" if self._outside else "redis"
        schema, identity, place, blobs = await self._server.run(
            "prepare", self._keys.all(), SCHEMA, secrets.token_hex(16), where
        )
        if schema.decode() != SCHEMA:
            detail = f"it has schema {schema.decode()}, this program knows {SCHEMA}; upgrade ssfserve"
            raise RegistryUnavailable("redis", detail)
        if place.decode() != where:
            has = "outside of Redis: add `blobs=` to its URL" if where == "redis" else "in Redis itself"
            raise RegistryUnavailable("redis", f"its blobs are {has}")
        if self._outside:
            await self._blobs.check_place(identity.decode(), in_use=blobs > 0)
        self._identity = identity

    async def _refuse_another(self) -> None:
        """Keep a reader from taking an emptied server for one whose tasks were all deleted.

        Raises:
            RegistryUnavailable: If this is not the registry that was found at the first use.
        """
        if await self._server.ask("HGET", self._keys("meta"), "identity") != self._identity:
            detail = (
                "this is another registry than at the first use: restore it, or restart to take it as it is"
            )
            raise RegistryUnavailable("redis", detail)
