"""The verb `keys`: make, list and delete API keys, directly in the registry."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from server.cli.options import AsJson
from server.cli.output import show_json, show_table

if TYPE_CHECKING:
    from registry.base import Registry

T = TypeVar("T")

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True, help="Make, list and delete API keys.")
app.add_typer(keys, name="keys")


class Scope(StrEnum):
    PREDICT = "predict"
    MANAGE = "manage"


Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
RegistryUrl = Annotated[
    str | None, typer.Option("--registry", help="Registry URL; SSFSERVE_REGISTRY if left out.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Data directory; SSFSERVE_DATA_DIR if left out.", file_okay=False)
]


@keys.command()
def add(
    name: Name,
    scope: Annotated[list[Scope] | None, typer.Option(help="May be repeated; `predict` if left out.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Pattern of tasks; may be repeated; all if left out.")
    ] = None,
    registry: RegistryUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print its token, this once: only its sha256 is stored."""
    from registry.models import ApiKey, check_name

    token = f"ssf_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        name=check_name("key", name),
        secret_hash=hashlib.sha256(token.encode()).hexdigest(),
        scopes=frozenset(kind.value for kind in scope or [Scope.PREDICT]),
        tasks=tuple(task or ["*"]),
        created=time.time(),
    )
    _with_registry(registry, data_dir, lambda opened: opened.add_key(key))
    typer.echo(token)


@keys.command("list")
def list_(registry: RegistryUrl = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the keys; their tokens are not known to anyone but their holders."""
    found = _with_registry(registry, data_dir, lambda opened: opened.list_keys())
    if as_json:
        show_json([key.model_dump(mode="json", exclude={"secret_hash"}) for key in found])
        return
    rows = ((key.name, " ".join(sorted(key.scopes)), " ".join(key.tasks), _day(key.created)) for key in found)
    show_table(("NAME", "SCOPES", "TASKS", "CREATED"), rows)


@keys.command()
def delete(name: Name, registry: RegistryUrl = None, data_dir: DataDir = None) -> None:
    """Delete a key; running servers refuse it within seconds."""
    _with_registry(registry, data_dir, lambda opened: opened.delete_key(name))
    typer.echo(f"deleted key {name}")


def _with_registry(url: str | None, data_dir: Path | None, action: "Callable[[Registry], Awaitable[T]]") -> T:
    from registry.open import open_registry
    from server.settings import Settings

    given = {"registry": url, "data_dir": data_dir}
    settings = Settings.load({name: value for name, value in given.items() if value is not None})

    async def run() -> T:
        opened = open_registry(settings.registry, settings.data_dir)
        try:
            return await action(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
