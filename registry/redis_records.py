"""What is stored in Redis, as records. Times are text there: Lua's numbers would round them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from adapters.errors import ManifestInvalid
from adapters.manifest import Manifest
from registry.errors import AliasNotFound, RegistryUnavailable, TaskNotFound, VersionNotFound
from registry.models import Actor, ApiKey, AuditEntry, Event, Lease, Task, Version
from registry.upkeep import Step, TaskPast


def payload(reply: Sequence[Any], task: str, *, version: int = 0, alias: str = "") -> Sequence[Any]:
    """Return what follows the status `ok` in a script's reply.

    Raises:
        TaskNotFound, VersionNotFound, AliasNotFound: As the status says.
    """
    status = reply[0].decode()
    if status == "no task":
        raise TaskNotFound(task)
    if status == "no version":
        raise VersionNotFound(task, version)
    if status == "no alias":
        raise AliasNotFound(task, alias)
    return reply[1:]


def encode_version(*, digest: str, size: int, created: float, manifest: Manifest) -> str:
    """Return a version's record; equal versions have equal records."""
    return json.dumps(
        {"digest": digest, "size": size, "created": repr(created), "manifest": manifest.to_json()}
    )


def decode_version(task: str, number: int, record: bytes) -> Version:
    with _readable(f"version {number} of task {task}"):
        fields = json.loads(record)
        return Version(
            task=task,
            version=number,
            digest=fields["digest"],
            size=fields["size"],
            created=float(fields["created"]),
            manifest=Manifest.from_json(fields["manifest"]),
        )


def decode_versions(task: str, reply: Sequence[bytes]) -> tuple[Version, ...]:
    """Read numbers and records in turn."""
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return tuple(decode_version(task, int(number), record) for number, record in pairs)


def decode_task(name: str, state: bytes) -> Task:
    with _readable(f"task {name}"):
        fields = json.loads(state)
        return Task(
            task=name,
            created=float(fields["created"]),
            latest=fields.get("latest"),
            versions=fields["versions"],
            aliases=fields["aliases"],
        )


def encode_step(step: Step) -> str:
    """Return a move as it is stored; equal steps have equal texts."""
    fields = step.model_dump(exclude={"alias", "moved"}, exclude_none=True)
    return json.dumps(fields | {"moved": repr(step.moved)})


def decode_step(alias: str, move: bytes) -> Step:
    with _readable(f"a move of alias {alias}"):
        fields = json.loads(move)
        return Step(
            alias=alias,
            version=fields["version"],
            previous=fields.get("previous"),
            moved=float(fields["moved"]),
            kind=fields["kind"],
            undo=fields.get("undo"),
        )


def encode_histories(past: TaskPast) -> str:
    return json.dumps(
        {alias: [encode_step(step) for step in steps] for alias, steps in past.histories.items()}
    )


def decode_past(task: str, reply: Sequence[Any]) -> TaskPast:
    created, last, histories = reply
    with _readable(f"task {task}"):
        return TaskPast(
            task=task,
            created=float(created),
            last=int(last),
            histories={
                alias.decode(): tuple(decode_step(alias.decode(), move) for move in moves)
                for alias, *moves in histories
            },
        )


def decode_event(cursor: bytes, fields: Sequence[bytes]) -> Event:
    with _readable("an event"):
        return Event.model_validate({"cursor": cursor.decode(), **_pairs(fields)})


def decode_audit(identity: bytes, fields: Sequence[bytes]) -> AuditEntry:
    with _readable("an entry of the audit log"):
        pairs = _pairs(fields)
        number = int(identity.partition(b"-")[0])
        actor = Actor.model_validate_json(pairs["actor"])
        return AuditEntry.model_validate({**pairs, "number": number, "actor": actor})


def decode_key(record: bytes) -> ApiKey:
    with _readable("an API key"):
        return ApiKey.model_validate_json(record)


def decode_lease(record: bytes) -> Lease:
    with _readable("a lease"):
        return Lease.model_validate_json(record)


def _pairs(fields: Sequence[bytes]) -> dict[str, str]:
    """Read a stream entry's names and values in turn."""
    return {name.decode(): value.decode() for name, value in zip(fields[::2], fields[1::2], strict=True)}


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what damaged text raises into the one error the contract allows."""
    try:
        yield
    except (ManifestInvalid, ValueError, KeyError, TypeError) as error:
        raise RegistryUnavailable("redis", f"what is stored as {what} cannot be read: {error}") from error
