"""Who may do what. Keys are in the registry, as sha256 of their token; the catalog keeps them at hand."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, Protocol
from urllib.parse import urlsplit

from registry.models import ApiKey
from server.errors import Forbidden, ForeignPage, Unauthorized
from server.settings import Settings, is_local

Scope = Literal["predict", "manage"]

ALL_SCOPES: frozenset[Scope] = frozenset({"predict", "manage"})


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request may do. `tasks` are fnmatch patterns; `name` is the key's, None without keys.

    The limits are the key's own, None where it has none; `key_id` tells keys of one name apart.
    """

    name: str | None
    scopes: frozenset[Scope]
    tasks: tuple[str, ...]
    key_id: str | None = None
    images_per_second: float | None = None
    max_concurrent: int | None = None

    @classmethod
    def of(cls, key: ApiKey) -> "Caller":
        return cls(key.name, key.scopes, key.tasks, key.id, key.images_per_second, key.max_concurrent)

    @property
    def covers_all(self) -> bool:
        return "*" in self.tasks

    def may_use(self, task: str) -> bool:
        return self.covers_all or any(fnmatchcase(task, pattern) for pattern in self.tasks)

    def check_task(self, task: str) -> None:
        """Pass if the key covers the task; whether the task exists is not told.

        Raises:
            Forbidden
        """
        if not self.may_use(task):
            raise Forbidden(f"task `{task}`")

    def check_scopes(self, any_of: frozenset[Scope]) -> None:
        """Pass if the key has one of the scopes.

        Raises:
            Forbidden
        """
        if self.scopes.isdisjoint(any_of):
            raise Forbidden("scope " + " or ".join(sorted(any_of)))


ANYBODY = Caller(None, ALL_SCOPES, ("*",))


class KnowsKeys(Protocol):
    @property
    def keys(self) -> Mapping[str, ApiKey]:
        """All keys by the hash of their secret."""
        ...


class Gate:
    """Tells callers by their keys. A key is needed as soon as one exists, or the host is not loopback."""

    def __init__(self, settings: Settings, known: KnowsKeys) -> None:
        self._known = known
        self._exposed = not settings.is_loopback and not settings.allow_unauthenticated
        self._trusts_any_page = settings.allow_unauthenticated

    def admit(
        self, authorization: str | None, *, host: str | None = None, origin: str | None = None
    ) -> Caller:
        """Return who sends these headers.

        Raises:
            Unauthorized: If a key is needed and this is none.
            ForeignPage: If no key is needed and a web page of another site sends it, through the browser of
                someone on this machine.
        """
        keys = self._known.keys
        if not keys and not self._exposed:
            if not self._trusts_any_page:
                _check_local(host)
                _check_local(origin)
            return ANYBODY
        scheme, _, token = (authorization or "").partition(" ")
        key = _find(keys, token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise Unauthorized
        return Caller.of(key)


def _check_local(named: str | None) -> None:
    """Pass if a `Host` or `Origin` names this machine: a browser cannot forge them.

    Raises:
        ForeignPage
    """
    if named is not None and not is_local(urlsplit(named if "://" in named else f"//{named}").hostname):
        raise ForeignPage(named)


def _find(keys: Mapping[str, ApiKey], token: str) -> ApiKey | None:
    """Look a token up by its hash, whose bytes a caller cannot choose: timing tells nothing of a secret."""
    hashed = hash_token(token)
    key = keys.get(hashed)
    return key if key is not None and hmac.compare_digest(key.secret_hash, hashed) else None


def hash_token(token: str) -> str:
    """Return what the registry stores of a token: its sha256, hex. Tokens are random and need no salt."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
