"""The Lua scripts of the Redis backend: each runs alone on the server, so what it does is all or nothing."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DIRECTORY = Path(__file__).with_name("lua")


@dataclass(frozen=True, slots=True)
class Script:
    """`digest` is the name under which a server remembers the text: sha1, by its protocol."""

    text: str
    digest: str


@cache
def script(name: str) -> Script:
    """Return `lua/<name>.lua` behind `lua/common.lua`."""
    parts = [(_DIRECTORY / f"{part}.lua").read_text(encoding="utf-8") for part in ("common", name)]
    text = "\n".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
