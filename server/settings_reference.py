"""Make `docs/configuration.md` from the settings: `python -m server.settings_reference`."""

import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from server.settings import PREFIX, Settings

INTRO = f"""# Configuration

Every setting is an environment variable, a key of a file (the name without `{PREFIX}`, in lower case), and
an option of `ssfserve serve`. Options win over the environment, which wins over the file. The file is YAML,
or TOML if its name ends so; `{PREFIX}CONFIG` names it. A name that is not known, or a value that is not
allowed, stops the start with the name and the reason. An empty variable counts as not set. Sizes may be
written `512MB` (10⁶) or `512MiB` (2²⁰).

| setting | default | allowed | what |
|---|---|---|---|
"""

KEYS = f"""
## Keys

A key is sent as `Authorization: Bearer <key>`. Keys are needed as soon as one exists, and always when
`{PREFIX}HOST` is not a loopback address, unless `{PREFIX}ALLOW_UNAUTHENTICATED` is set and no key exists. The
server does not start on such an address while there is no key. Without keys, and unless that setting is made,
only requests are answered whose `Host` and `Origin` name this machine: no web page can drive the server
through a browser.

A key has scopes (`predict`: predictions; `manage`: uploads, downloads, deletion, aliases, prefetch, pins and
the audit log; either shows tasks, the backbone and `/metrics`) and patterns of the tasks it covers.
`/metrics` names tasks whatever the patterns. `/healthz`, `/readyz`, `/docs` and `/openapi.json` need no key.
Limits of keys, TLS and the audit log are in [access.md](access.md).
"""


def reference() -> str:
    """Return the page."""
    return INTRO + "".join(_row(name, field) for name, field in Settings.model_fields.items()) + KEYS


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{PREFIX}{name.upper()}`", _default(field.default), _allowed(field), field.description or "")
    return f"| {' | '.join(cells)} |\n"


def _default(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(separator='').replace('.0', '')}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(field: FieldInfo) -> str:
    kind = next(iter(_without_none(field.annotation)))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    bounds = {
        name: getattr(item, name) for item in field.metadata for name in ("ge", "le") if hasattr(item, name)
    }
    low, high = (_bound(bounds.get(name), kind) for name in ("ge", "le"))
    if low and high:
        return f"{low} to {high}"
    return f"from {low}" if low else {bool: "`true`, `false`", Path: "a path"}.get(kind, "")


def _bound(value: int | None, kind: Any) -> str:
    if value is None:
        return ""
    return ByteSize(value).human_readable(separator="").replace(".0", "") if kind is ByteSize else str(value)


def _without_none(annotation: Any) -> list[Any]:
    if get_origin(annotation) in {Union, type(int | None)}:
        return [kind for kind in get_args(annotation) if kind is not NoneType]
    return [annotation]


if __name__ == "__main__":
    sys.stdout.write(reference())
