"""JSON as strangers send it: what Python's reader lets pass silently is refused here."""

import json
import reprlib
from collections.abc import Sequence
from typing import Any

MAX_CONTAINERS = 100_000  # an empty list is two bytes there and sixty here

_shown = reprlib.Repr()
_shown.maxstring = 120


class DuplicateKey(ValueError):
    """An object names a key twice; readers disagree about which one counts."""


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON.

    Raises:
        DuplicateKey: If an object, at any depth, names a key twice.
        ValueError: If it is not JSON, not UTF-8, has NaN or an infinity, is nested too deeply, or has more
            lists and objects than any adapter needs.
    """
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise ValueError(f"it has more than {MAX_CONTAINERS} brackets")
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def shown(value: object) -> str:
    """Return a stranger's value for a message: escaped, and short whatever its length."""
    return _shown.repr(value)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKey(f"{shown(twice)} is named twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
