"""The audit log of the embedded registry. Each function runs inside the caller's transaction."""

import sqlite3
import time

from registry.models import Actor, AuditAction, AuditEntry

_FIELDS = ("number", "at", "action", "actor", "task", "version", "alias", "previous", "digest", "key")


def note(
    db: sqlite3.Connection,
    by: Actor,
    action: AuditAction,
    *,
    task: str | None = None,
    version: int | None = None,
    alias: str | None = None,
    previous: int | None = None,
    digest: str | None = None,
    key: str | None = None,
) -> None:
    db.execute(
        "INSERT INTO audit (at, action, actor, task, version, alias, previous, digest, key)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            time.time(),
            action,
            by.model_dump_json(exclude_none=True),
            task,
            version,
            alias,
            previous,
            digest,
            key,
        ),
    )


def trim(db: sqlite3.Connection, kept: int) -> None:
    """Forget all but the last entries; costs nothing where there are fewer."""
    db.execute("DELETE FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?", (kept,))


def read(db: sqlite3.Connection, task: str | None, after: int | None, limit: int) -> tuple[AuditEntry, ...]:
    conditions, values = ["1"], list[object]()
    if task is not None:
        conditions.append("task = ?")
        values.append(task)
    if after is not None:
        conditions.append("number < ?")
        values.append(after)
    rows = db.execute(
        f"SELECT {', '.join(_FIELDS)} FROM audit WHERE {' AND '.join(conditions)}"  # noqa: S608  (ours)
        " ORDER BY number DESC LIMIT ?",
        (*values, limit),
    )
    return tuple(_entry(row) for row in rows)


def _entry(row: tuple[object, ...]) -> AuditEntry:
    fields = dict(zip(_FIELDS, row, strict=True))
    return AuditEntry.model_validate(fields | {"actor": Actor.model_validate_json(str(fields["actor"]))})
