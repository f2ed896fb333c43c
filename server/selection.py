"""How a row of `/v1/predict` names what it wants."""

import re

from registry.models import check_name
from server.errors import ValueInvalid
from server.queries import MAX_NUMBER

_REF = re.compile(r"(?P<task>[^@:]+)(?:@(?P<alias>[^@:]+)|:(?P<version>[0-9]{1,10}))?")


def parse_ref(ref: str) -> tuple[str, int | None, str | None]:
    """Split `task`, `task@alias` or `task:version` into task, version and alias.

    Raises:
        ValueInvalid, InvalidName
    """
    match = _REF.fullmatch(ref)
    if match is None:
        raise ValueInvalid(repr(ref[:80]), "must be task, task@alias or task:version")
    alias, number = match["alias"], int(match["version"]) if match["version"] else None
    if number is not None and not 1 <= number <= MAX_NUMBER:
        raise ValueInvalid(repr(ref[:80]), f"the version must be from 1 to {MAX_NUMBER}")
    check_name("task", match["task"])
    if alias is not None:
        check_name("alias", alias)
    return match["task"], number, alias
