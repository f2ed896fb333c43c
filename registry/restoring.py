"""What moves a task between registries, in SQL. Each function runs inside the caller's transaction."""

import sqlite3
from collections.abc import Mapping

from registry import auditing, records
from registry.blobs import BlobStore
from registry.changes import emit, tell_alias
from registry.errors import RestoreConflict
from registry.models import Actor, AliasMove, AuditAction, EventKind, Version
from registry.upkeep import Step, TaskPast


def numbers(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT task, last FROM numbers ORDER BY task"))


def past(db: sqlite3.Connection, task: str) -> TaskPast:
    aliases = records.get_task(db, task).aliases
    (created,) = db.execute("SELECT created FROM tasks WHERE task = ?", (task,)).fetchone()
    (last,) = db.execute("SELECT last FROM numbers WHERE task = ?", (task,)).fetchone()
    histories = {alias: _history(db, task, alias) for alias in sorted(aliases)}
    return TaskPast(task=task, created=created, last=last, histories=histories)


def restore_version(
    db: sqlite3.Connection, blobs: BlobStore, version: Version, data: bytes, by: Actor
) -> None:
    task, number, digest = version.task, version.version, version.digest
    found = db.execute(
        "SELECT version, digest FROM versions WHERE task = ? AND (version = ? OR digest = ?)",
        (task, number, digest),
    ).fetchall()
    if found not in ([], [(number, digest)]):
        raise RestoreConflict(task, f"version {number} or its bytes")
    blobs.put(digest, data)
    if found:
        return
    db.execute(
        "INSERT INTO tasks (task, created) VALUES (?, ?) ON CONFLICT DO NOTHING", (task, version.created)
    )
    restore_numbers(db, {task: number})
    db.execute(
        "INSERT INTO versions (task, version, digest, size, created, manifest) VALUES (?, ?, ?, ?, ?, ?)",
        (task, number, digest, version.size, version.created, version.manifest.to_json()),
    )
    emit(db, EventKind.VERSION_ADDED, task=task, version=number, digest=digest)
    auditing.note(db, by, AuditAction.VERSION_ADDED, task=task, version=number, digest=digest)


def restore_past(db: sqlite3.Connection, past: TaskPast, by: Actor) -> None:
    records.require_task(db, past.task)
    for (alias,) in db.execute("SELECT alias FROM aliases WHERE task = ?", (past.task,)).fetchall():
        known, given = _history(db, past.task, alias), past.histories.get(alias, ())
        if given[: len(known)] != known:
            raise RestoreConflict(past.task, f"alias `{alias}` has another history")
    db.execute("UPDATE tasks SET created = ? WHERE task = ?", (past.created, past.task))
    restore_numbers(db, {past.task: past.last})
    for alias, steps in past.histories.items():
        _restore_alias(db, past.task, alias, steps, by)


def restore_numbers(db: sqlite3.Connection, numbers: Mapping[str, int]) -> None:
    db.executemany(
        "INSERT INTO numbers (task, last) VALUES (?, ?)"
        " ON CONFLICT (task) DO UPDATE SET last = max(last, excluded.last)",
        numbers.items(),
    )


def faults(db: sqlite3.Connection) -> tuple[str, ...]:
    found = [str(text) for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
    broken = db.execute("PRAGMA foreign_key_check").fetchall()
    return (
        *found,
        *(f"a row of {table} refers to a row of {parent} that is gone" for table, _, parent, _ in broken),
    )


def _history(db: sqlite3.Connection, task: str, alias: str) -> tuple[Step, ...]:
    """Return all moves, oldest first; `undo` counts them from 1, where the table has row ids."""
    rows = db.execute(
        "SELECT id, version, previous, moved, kind, undo FROM moves WHERE task = ? AND alias = ? ORDER BY id",
        (task, alias),
    ).fetchall()
    places = {row[0]: place for place, row in enumerate(rows, start=1)}
    return tuple(
        Step(alias=alias, version=version, previous=previous, moved=moved, kind=kind, undo=places.get(undo))
        for _, version, previous, moved, kind, undo in rows
    )


def _restore_alias(db: sqlite3.Connection, task: str, alias: str, steps: tuple[Step, ...], by: Actor) -> None:
    known = db.execute(
        "SELECT id FROM moves WHERE task = ? AND alias = ? ORDER BY id", (task, alias)
    ).fetchall()
    rows = [row[0] for row in known]
    for step in steps[len(rows) :]:
        undo = None if step.undo is None else rows[step.undo - 1]
        made = db.execute(
            "INSERT INTO moves (task, alias, version, previous, moved, kind, undo)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (task, alias, step.version, step.previous, step.moved, step.kind, undo),
        )
        rows.append(made.lastrowid)
    if len(rows) > len(known):
        _point(db, task, steps[-1].move(), by)


def _point(db: sqlite3.Connection, task: str, move: AliasMove, by: Actor) -> None:
    db.execute(
        "INSERT INTO aliases (task, alias, version) VALUES (?, ?, ?)"
        " ON CONFLICT (task, alias) DO UPDATE SET version = excluded.version",
        (task, move.alias, move.version),
    )
    tell_alias(db, by, task, move)
