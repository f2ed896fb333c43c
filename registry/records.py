"""Reads: SQL in, records out. Each function runs inside the caller's transaction."""

import sqlite3
from typing import Any

from adapters.errors import ManifestInvalid
from adapters.manifest import Manifest
from registry.errors import (
    AliasNotFound,
    CursorInvalid,
    RegistryUnavailable,
    TaskNotFound,
    VersionNotFound,
)
from registry.models import AliasMove, ApiKey, Event, Page, Task, Version

MAX_INTEGER = 2**63 - 1  # what SQLite can hold

_VERSION = "SELECT task, version, digest, size, created, manifest FROM versions"
_TASK = """
    SELECT task, created,
        (SELECT max(version) FROM versions v WHERE v.task = t.task) AS latest,
        (SELECT count(*) FROM versions v WHERE v.task = t.task) AS versions
    FROM tasks t"""


def require_task(db: sqlite3.Connection, task: str) -> None:
    if db.execute("SELECT 1 FROM tasks WHERE task = ?", (task,)).fetchone() is None:
        raise TaskNotFound(task)


def get_digest(db: sqlite3.Connection, task: str, version: int) -> str:
    return str(_find(db, "SELECT digest FROM versions", task, version)[0])


def get_version(db: sqlite3.Connection, task: str, version: int) -> Version:
    return _version(_find(db, _VERSION, task, version))


def find_digest(db: sqlite3.Connection, task: str, digest: str) -> Version | None:
    row = db.execute(f"{_VERSION} WHERE task = ? AND digest = ?", (task, digest)).fetchone()
    return None if row is None else _version(row)


def is_used(db: sqlite3.Connection, digest: str) -> bool:
    """Say whether any version of any task has these bytes."""
    return db.execute("SELECT 1 FROM versions WHERE digest = ? LIMIT 1", (digest,)).fetchone() is not None


def list_versions(db: sqlite3.Connection, task: str, after: int, limit: int) -> tuple[Version, ...]:
    require_task(db, task)
    rows = db.execute(
        f"{_VERSION} WHERE task = ? AND version > ? ORDER BY version LIMIT ?",
        (task, min(max(after, 0), MAX_INTEGER), limit),
    )
    return tuple(_version(row) for row in rows)


def get_task(db: sqlite3.Connection, task: str) -> Task:
    row = db.execute(f"{_TASK} WHERE task = ?", (task,)).fetchone()
    if row is None:
        raise TaskNotFound(task)
    return _task(row, _aliases(db, task, task).get(task, {}))


def list_tasks(db: sqlite3.Connection, after: str | None, limit: int) -> Page[Task]:
    # one row more than asked for says whether another page follows
    rows = db.execute(f"{_TASK} WHERE task > ? ORDER BY task LIMIT ?", (after or "", limit + 1)).fetchall()
    more, rows = len(rows) > limit, rows[:limit]
    if not rows:
        return Page(items=(), next_after=None)
    first, last = rows[0][0], rows[-1][0]
    aliases = _aliases(db, first, last)
    items = tuple(_task(row, aliases.get(row[0], {})) for row in rows)
    return Page(items=items, next_after=last if more else None)


def find_alias(db: sqlite3.Connection, task: str, alias: str) -> int | None:
    row = db.execute("SELECT version FROM aliases WHERE task = ? AND alias = ?", (task, alias)).fetchone()
    return None if row is None else int(row[0])


def aliases_of(db: sqlite3.Connection, task: str, version: int) -> tuple[str, ...]:
    rows = db.execute(
        "SELECT alias FROM aliases WHERE task = ? AND version = ? ORDER BY alias", (task, version)
    )
    return tuple(alias for (alias,) in rows)


def alias_history(db: sqlite3.Connection, task: str, alias: str, limit: int) -> tuple[AliasMove, ...]:
    require_task(db, task)
    rows = db.execute(
        "SELECT alias, version, previous, moved, kind FROM moves WHERE task = ? AND alias = ?"
        " ORDER BY id DESC LIMIT ?",
        (task, alias, limit),
    )
    moves = tuple(
        AliasMove(alias=name, version=version, previous=previous, moved=moved, kind=kind)
        for name, version, previous, moved, kind in rows
    )
    if not moves:
        raise AliasNotFound(task, alias)
    return moves


def last_event(db: sqlite3.Connection) -> int:
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    return int(last)


def events(db: sqlite3.Connection, after: str, limit: int) -> tuple[Event, ...]:
    position = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else MAX_INTEGER
    if position > last_event(db):
        raise CursorInvalid(after)
    rows = db.execute(
        "SELECT id, kind, task, version, alias, digest, at FROM events WHERE id > ? ORDER BY id LIMIT ?",
        (position, limit),
    )
    return tuple(
        Event(cursor=str(number), kind=kind, task=task, version=version, alias=alias, digest=digest, at=at)
        for number, kind, task, version, alias, digest, at in rows
    )


def list_keys(db: sqlite3.Connection) -> tuple[ApiKey, ...]:
    rows = db.execute("SELECT record FROM keys ORDER BY name")
    return tuple(ApiKey.model_validate_json(record) for (record,) in rows)


def _find(db: sqlite3.Connection, select: str, task: str, version: int) -> tuple[Any, ...]:
    require_task(db, task)
    row: tuple[Any, ...] | None = None
    if 0 < version <= MAX_INTEGER:
        row = db.execute(f"{select} WHERE task = ? AND version = ?", (task, version)).fetchone()
    if row is None:
        raise VersionNotFound(task, version)
    return row


def _aliases(db: sqlite3.Connection, first: str, last: str) -> dict[str, dict[str, int]]:
    """Return version by alias, by task, for the tasks from `first` to `last`."""
    found: dict[str, dict[str, int]] = {}
    for task, alias, version in db.execute(
        "SELECT task, alias, version FROM aliases WHERE task BETWEEN ? AND ?", (first, last)
    ):
        found.setdefault(task, {})[alias] = version
    return found


def _task(row: tuple[Any, ...], aliases: dict[str, int]) -> Task:
    task, created, latest, versions = row
    return Task(task=task, created=created, latest=latest, versions=versions, aliases=aliases)


def _version(row: tuple[Any, ...]) -> Version:
    task, version, digest, size, created, text = row
    try:
        manifest = Manifest.from_json(text)
    except ManifestInvalid as error:
        detail = f"the stored manifest of {task} version {version} cannot be read: {error.detail}"
        raise RegistryUnavailable("embedded", detail) from error
    return Version(task=task, version=version, digest=digest, size=size, created=created, manifest=manifest)
