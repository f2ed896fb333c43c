"""Writes. Each function runs inside the caller's write transaction, and adds events and audit entries."""

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from adapters.manifest import Manifest
from registry import auditing, records
from registry.base import Added
from registry.blobs import BlobStore
from registry.errors import AliasConflict, AliasNotFound, KeyConflict, KeyNotFound, VersionInUse
from registry.models import PRODUCTION, Actor, AliasMove, ApiKey, AuditAction, EventKind


@dataclass(frozen=True, slots=True)
class Upload:
    task: str
    data: bytes
    digest: str
    manifest: Manifest
    by: Actor


@dataclass(frozen=True, slots=True)
class Expectation:
    """What an alias must name before it is set; None: it must not exist."""

    version: int | None


def add_version(db: sqlite3.Connection, blobs: BlobStore, upload: Upload, promote: bool) -> Added:
    blobs.put(upload.digest, upload.data)
    version = records.find_digest(db, upload.task, upload.digest)
    created = version is None
    if version is None:
        number = _insert_version(db, upload)
        version = records.get_version(db, upload.task, number)
    if promote or records.find_alias(db, upload.task, PRODUCTION) is None:
        set_alias(db, upload.task, PRODUCTION, version.version, expectation=None, by=upload.by)
    return Added(version, created)


def delete_version(db: sqlite3.Connection, task: str, version: int, by: Actor) -> list[str]:
    """Return the digests whose bytes nobody may need any more."""
    digest = records.get_digest(db, task, version)
    if aliases := records.aliases_of(db, task, version):
        raise VersionInUse(task, version, aliases)
    db.execute("DELETE FROM versions WHERE task = ? AND version = ?", (task, version))
    emit(db, EventKind.VERSION_DELETED, task=task, version=version, digest=digest)
    auditing.note(db, by, AuditAction.VERSION_DELETED, task=task, version=version, digest=digest)
    return [digest]


def delete_task(db: sqlite3.Connection, task: str, by: Actor) -> list[str]:
    """Return the digests whose bytes nobody may need any more."""
    records.require_task(db, task)
    digests = [row[0] for row in db.execute("SELECT digest FROM versions WHERE task = ?", (task,))]
    for table in ("aliases", "moves", "versions", "tasks"):
        db.execute(f"DELETE FROM {table} WHERE task = ?", (task,))  # noqa: S608  names from the line above
    emit(db, EventKind.TASK_DELETED, task=task)
    auditing.note(db, by, AuditAction.TASK_DELETED, task=task)
    return digests


def remove_unused(db: sqlite3.Connection, blobs: BlobStore, digests: Iterable[str]) -> None:
    for digest in digests:
        if not records.is_used(db, digest):
            blobs.remove(digest)


def set_alias(
    db: sqlite3.Connection,
    task: str,
    alias: str,
    version: int,
    *,
    expectation: Expectation | None,
    by: Actor,
) -> AliasMove:
    records.get_digest(db, task, version)
    current = records.find_alias(db, task, alias)
    if expectation is not None and expectation.version != current:
        raise AliasConflict(task, alias, expectation.version, current)
    if current == version:
        return records.alias_history(db, task, alias, 1)[0]
    return _move(db, task, alias, version, kind="set", undo=_last_move(db, task, alias), by=by)


def rollback_alias(db: sqlite3.Connection, task: str, alias: str, by: Actor) -> AliasMove:
    records.require_task(db, task)
    target = db.execute(
        """
        WITH RECURSIVE back (id, version, undo) AS (
            SELECT m.id, m.version, m.undo FROM moves m
            WHERE m.id = (SELECT undo FROM moves WHERE id = :last)
            UNION ALL
            SELECT m.id, m.version, m.undo FROM moves m JOIN back ON m.id = back.undo
        )
        SELECT version, undo FROM back
        WHERE version <> :current
            AND EXISTS (SELECT 1 FROM versions v WHERE v.task = :task AND v.version = back.version)
        LIMIT 1
        """,
        {
            "task": task,
            "last": _last_move(db, task, alias),
            "current": records.find_alias(db, task, alias),
        },
    ).fetchone()
    if target is None:
        raise AliasNotFound(task, alias)
    version, undo = target
    return _move(db, task, alias, version, kind="rollback", undo=undo, by=by)


def add_key(db: sqlite3.Connection, key: ApiKey, by: Actor) -> None:
    added = db.execute(
        "INSERT INTO keys (name, record) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (key.name, key.model_dump_json()),
    )
    if added.rowcount == 0:
        raise KeyConflict(key.name)
    emit(db, EventKind.KEYS_CHANGED)
    auditing.note(db, by, AuditAction.KEY_ADDED, key=key.name)


def delete_key(db: sqlite3.Connection, name: str, by: Actor) -> None:
    if db.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount == 0:
        raise KeyNotFound(name)
    emit(db, EventKind.KEYS_CHANGED)
    auditing.note(db, by, AuditAction.KEY_DELETED, key=name)


def _insert_version(db: sqlite3.Connection, upload: Upload) -> int:
    """Create the task if needed, take the next number and insert the row; return the number."""
    now = time.time()
    db.execute("INSERT INTO tasks (task, created) VALUES (?, ?) ON CONFLICT DO NOTHING", (upload.task, now))
    (number,) = db.execute(
        "INSERT INTO numbers (task, last) VALUES (?, 1)"
        " ON CONFLICT (task) DO UPDATE SET last = last + 1 RETURNING last",
        (upload.task,),
    ).fetchone()
    db.execute(
        "INSERT INTO versions (task, version, digest, size, created, manifest) VALUES (?, ?, ?, ?, ?, ?)",
        (upload.task, number, upload.digest, len(upload.data), now, upload.manifest.to_json()),
    )
    added = {"task": upload.task, "version": number, "digest": upload.digest}
    emit(db, EventKind.VERSION_ADDED, **added)
    auditing.note(db, upload.by, AuditAction.VERSION_ADDED, **added)
    return int(number)


def _last_move(db: sqlite3.Connection, task: str, alias: str) -> int | None:
    (last,) = db.execute("SELECT max(id) FROM moves WHERE task = ? AND alias = ?", (task, alias)).fetchone()
    return None if last is None else int(last)


def _move(
    db: sqlite3.Connection,
    task: str,
    alias: str,
    version: int,
    *,
    kind: Literal["set", "rollback"],
    undo: int | None,
    by: Actor,
) -> AliasMove:
    move = AliasMove(
        alias=alias,
        version=version,
        previous=records.find_alias(db, task, alias),
        moved=time.time(),
        kind=kind,
    )
    db.execute(
        "INSERT INTO aliases (task, alias, version) VALUES (?, ?, ?)"
        " ON CONFLICT (task, alias) DO UPDATE SET version = excluded.version",
        (task, alias, version),
    )
    db.execute(
        "INSERT INTO moves (task, alias, version, previous, moved, kind, undo) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (task, alias, version, move.previous, move.moved, kind, undo),
    )
    tell_alias(db, by, task, move)
    return move


def tell_alias(db: sqlite3.Connection, by: Actor, task: str, move: AliasMove) -> None:
    """Add the event and the audit entry of an alias that was moved."""
    digest = records.get_digest(db, task, move.version)
    emit(db, EventKind.ALIAS_SET, task=task, version=move.version, alias=move.alias, digest=digest)
    action = AuditAction.ALIAS_SET if move.kind == "set" else AuditAction.ALIAS_ROLLED_BACK
    auditing.note(
        db,
        by,
        action,
        task=task,
        version=move.version,
        alias=move.alias,
        previous=move.previous,
        digest=digest,
    )


def emit(
    db: sqlite3.Connection,
    kind: EventKind,
    *,
    task: str | None = None,
    version: int | None = None,
    alias: str | None = None,
    digest: str | None = None,
) -> None:
    db.execute(
        "INSERT INTO events (kind, task, version, alias, digest, at) VALUES (?, ?, ?, ?, ?, ?)",
        (kind, task, version, alias, digest, time.time()),
    )
