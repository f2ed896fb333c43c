"""Plain records of the registry. All are frozen and JSON-serialisable; times are UTC seconds since 1970."""

import re
from enum import StrEnum
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from adapters.manifest import Manifest
from registry.errors import InvalidName

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
PRODUCTION = "production"
START = "0"  # the cursor before the first event, in every backend
MAX_LIMIT = 2**31
MAX_AUDIT = 100_000  # entries of the audit log that are kept

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Version(Record):
    """An immutable adapter of a task. `digest` (sha256 of the file, hex) is its identity everywhere."""

    task: str
    version: int
    digest: str
    size: int
    created: float
    manifest: Manifest


class AliasMove(Record):
    """One step of an alias' history."""

    alias: str
    version: int
    previous: int | None
    moved: float
    kind: Literal["set", "rollback"]


class Task(Record):
    """A task with its aliases; its versions are listed separately, because there may be many."""

    task: str
    created: float
    latest: int | None
    versions: int
    aliases: dict[str, int]


class EventKind(StrEnum):
    VERSION_ADDED = "version_added"
    VERSION_DELETED = "version_deleted"
    TASK_DELETED = "task_deleted"
    ALIAS_SET = "alias_set"
    KEYS_CHANGED = "keys_changed"


class Event(Record):
    """Something that changed. `cursor` grows; readers keep the last one they have applied."""

    cursor: str
    kind: EventKind
    task: str | None = None
    version: int | None = None
    alias: str | None = None
    digest: str | None = None
    at: float


class ApiKey(Record):
    """An API key without its secret.

    `secret_hash` is sha256 (hex) of the token; `tasks` are fnmatch patterns. The limits are None where those
    of the server's settings hold, and 0 for none.
    """

    name: str
    secret_hash: str
    scopes: frozenset[Literal["predict", "manage"]]
    tasks: tuple[str, ...] = ("*",)
    created: float
    images_per_second: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    max_concurrent: Annotated[int | None, Field(ge=0)] = None

    @property
    def id(self) -> str:
        """Tells keys apart that had the same name one after the other; no secret."""
        return self.secret_hash[:12]


class Actor(Record):
    """Who makes a change: a key, anybody while there are none, the command line on a host, the server itself.

    `id` is the key's: names may be used again. `name` is the key's, or that of the host's user.
    """

    kind: Literal["key", "anybody", "local", "server", "unknown"]
    name: str | None = None
    id: str | None = None
    request_id: str | None = None


UNKNOWN = Actor(kind="unknown")


class AuditAction(StrEnum):
    VERSION_ADDED = "version_added"
    VERSION_DELETED = "version_deleted"
    TASK_DELETED = "task_deleted"
    ALIAS_SET = "alias_set"
    ALIAS_ROLLED_BACK = "alias_rolled_back"
    KEY_ADDED = "key_added"
    KEY_DELETED = "key_deleted"


class AuditEntry(Record):
    """A change and who made it. Numbers rise; `previous` is what an alias named before, `key` names a key."""

    number: int
    at: float
    action: AuditAction
    actor: Actor
    task: str | None = None
    version: int | None = None
    alias: str | None = None
    previous: int | None = None
    digest: str | None = None
    key: str | None = None


class Lease(Record):
    """What a replica told last: the cursor of the last event it has applied, START before it has read any.

    `beat` counts what it told, so that others see it live. After `seconds` without another beat it must be
    taken for gone, and it takes itself for cut off.
    """

    replica: str
    cursor: str
    beat: int
    seconds: float


class Page(Record, Generic[T]):
    """Items in name order; pass `next_after` as `after` for the following page; None at the end."""

    items: tuple[T, ...]
    next_after: str | None


def position(cursor: str) -> int:
    """Return the number of an event, by which the cursors of one registry are in order; 0 for START."""
    return int(cursor.partition("-")[0])


def check_name(what: str, name: str) -> str:
    """Return `name`.

    Raises:
        InvalidName: If it breaks the rule.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidName(what, name)
    return name


def check_limit(limit: int) -> int:
    """Return `limit`, or the largest that every backend takes.

    Raises:
        ValueError: If it is not positive; callers check what clients ask for.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return min(limit, MAX_LIMIT)
