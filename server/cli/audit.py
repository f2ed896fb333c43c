"""The verb `audit`: who changed what, from a running server or directly from the registry."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.opened import DataDir, RegistryUrl, with_registry
from server.cli.options import AsJson, Key, Url, connect
from server.cli.output import show_json, show_table

if TYPE_CHECKING:
    from registry.models import AuditEntry
    from registry.upkeep import KeptRegistry

PAGE = 1000

app = typer.Typer()


@app.command()
def audit(
    *,
    task: Annotated[str | None, typer.Option(help="Only changes of this task.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, latest first.")] = 50,
    local: Annotated[
        bool, typer.Option("--local", help="Read the registry itself, without a server or a key.")
    ] = False,
    registry: RegistryUrl = None,
    data_dir: DataDir = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed what: versions, aliases, tasks and keys."""
    if local or registry is not None or data_dir is not None:
        found = with_registry(registry, data_dir, lambda opened: _read(opened, task, limit))
        entries = [entry.model_dump(mode="json") for entry in found]
    else:
        with connect(url, key) as client:
            entries = list(client.audit(task=task, limit=limit))
    if as_json:
        show_json(entries)
        return
    rows = ((_when(e["at"]), _who(e["actor"]), e["action"], _what(e), e["digest"] or "") for e in entries)
    show_table(("WHEN", "WHO", "ACTION", "WHAT", "DIGEST"), rows)


async def _read(registry: "KeptRegistry", task: str | None, limit: int) -> "list[AuditEntry]":
    found: list[AuditEntry] = []
    after: int | None = None
    while len(found) < limit:
        page = await registry.audit(task=task, after=after, limit=min(PAGE, limit - len(found)))
        if not page:
            break
        found += page
        after = page[-1].number
    return found


def _who(actor: dict[str, Any]) -> str:
    named = f"{actor['kind']} {actor['name']}" if actor["name"] else str(actor["kind"])
    return f"{named} ({actor['id']})" if actor["id"] else named


def _what(entry: dict[str, Any]) -> str:
    if entry["key"]:
        return str(entry["key"])
    named = str(entry["task"])
    if entry["alias"]:
        before = "" if entry["previous"] is None else f" (was {entry['previous']})"
        return f"{named} {entry['alias']}={entry['version']}{before}"
    return named if entry["version"] is None else f"{named}:{entry['version']}"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
