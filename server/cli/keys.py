"""The verb `keys`: make, list and delete API keys, directly in the registry."""

import hashlib
import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.opened import DataDir, RegistryUrl, local_actor, with_registry
from server.cli.options import AsJson
from server.cli.output import show_json, show_table

if TYPE_CHECKING:
    from registry.base import Registry
    from registry.models import ApiKey

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True, help="Make, list and delete API keys.")
app.add_typer(keys, name="keys")


class Scope(StrEnum):
    PREDICT = "predict"
    MANAGE = "manage"


Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@keys.command()
def add(
    *,
    name: Name,
    scope: Annotated[list[Scope] | None, typer.Option(help="May be repeated; `predict` if left out.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Pattern of tasks; may be repeated; all if left out.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0, help="Images per second in each replica; 0: no limit.", show_default=False),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(min=0, help="Images under way in each replica; 0: no limit.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Write the token to this file instead. One that holds the key's token is left as it is; "
            "otherwise a key of this name is replaced.",
            dir_okay=False,
        ),
    ] = None,
    registry: RegistryUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print its token, this once: only its sha256 is stored."""
    from registry.models import ApiKey, check_name

    token = f"ssf_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        name=check_name("key", name),
        secret_hash=_hash(token),
        scopes=frozenset(kind.value for kind in scope or [Scope.PREDICT]),
        tasks=tuple(task or ["*"]),
        created=time.time(),
        images_per_second=rate,
        max_concurrent=concurrent,
    )
    if to is None:
        with_registry(registry, data_dir, lambda opened: opened.add_key(key, by=local_actor()))
        typer.echo(token)
    else:
        with_registry(registry, data_dir, lambda opened: _keep(opened, key, token, to))


@keys.command("list")
def list_(registry: RegistryUrl = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the keys; their tokens are not known to anyone but their holders."""
    found = with_registry(registry, data_dir, lambda opened: opened.list_keys())
    if as_json:
        show_json([{"id": key.id, **key.model_dump(mode="json", exclude={"secret_hash"})} for key in found])
        return
    rows = (
        (
            key.name,
            key.id,
            " ".join(sorted(key.scopes)),
            " ".join(key.tasks),
            _limit(key.images_per_second),
            _limit(key.max_concurrent),
            _day(key.created),
        )
        for key in found
    )
    show_table(("NAME", "ID", "SCOPES", "TASKS", "IMAGES/S", "CONCURRENT", "CREATED"), rows)


@keys.command()
def delete(name: Name, registry: RegistryUrl = None, data_dir: DataDir = None) -> None:
    """Delete a key; running servers refuse it within seconds."""
    with_registry(registry, data_dir, lambda opened: opened.delete_key(name, by=local_actor()))
    typer.echo(f"deleted key {name}")


async def _keep(registry: "Registry", key: "ApiKey", token: str, file: Path) -> None:
    """Have a file hold the token of the key of this name, whatever was there before."""
    found = next((known for known in await registry.list_keys() if known.name == key.name), None)
    if found is not None:
        if found.secret_hash == _hash_in(file):
            return
        await registry.delete_key(key.name, by=local_actor())
    _write(file, token)
    await registry.add_key(key, by=local_actor())


def _hash_in(file: Path) -> str | None:
    return _hash(file.read_text(encoding="utf-8").strip()) if file.is_file() else None


def _write(file: Path, token: str) -> None:
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    partial.write_text(f"{token}\n", encoding="utf-8")
    partial.replace(file)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _limit(value: float | None) -> str:
    return "default" if value is None else f"{value:g}" if value else "none"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
