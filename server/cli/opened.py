"""The registry, opened by verbs that need no server."""

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from registry.models import Actor
    from registry.upkeep import KeptRegistry

T = TypeVar("T")

RegistryUrl = Annotated[
    str | None, typer.Option("--registry", help="Registry URL; SSFSERVE_REGISTRY if left out.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Data directory; SSFSERVE_DATA_DIR if left out.", file_okay=False)
]


def with_registry(
    url: str | None, data_dir: Path | None, action: "Callable[[KeptRegistry], Awaitable[T]]"
) -> T:
    """Run `action` on the registry that the options, or else the settings, name."""

    async def run() -> T:
        async with opened(url, data_dir) as found:
            return await action(found)

    return asyncio.run(run())


def local_actor() -> "Actor":
    """Return who runs this command: the user of this host, whatever the environment says."""
    from registry.models import Actor

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user need not have a name
        name = str(os.getuid())
    return Actor(kind="local", name=name)


@asynccontextmanager
async def opened(url: str | None, data_dir: Path | None) -> "AsyncIterator[KeptRegistry]":
    from registry.open import open_registry
    from server.settings import Settings

    given = {"registry": url, "data_dir": data_dir}
    settings = Settings.load({name: value for name, value in given.items() if value is not None})
    found = open_registry(settings.registry, settings.data_dir)
    try:
        yield found
    finally:
        await found.close()
