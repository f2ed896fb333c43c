"""What can be known to be wrong before anything is started. Loads neither torch nor Ray."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from registry.open import open_registry
from registry.upkeep import KeptRegistry
from server import ports, tls
from server.errors import SettingsInvalid
from server.settings import Settings, check_exposure

T = TypeVar("T")


def check(settings: Settings) -> None:
    """Refuse settings with which a server cannot start.

    Raises:
        SettingsInvalid
        RegistryError: If the registry cannot be opened.
    """
    check_port(settings)
    tls.check(settings)
    check_data_dir(settings.data_dir)
    check_exposure(settings, has_keys=count_keys(settings) > 0)


def check_port(settings: Settings) -> None:
    """Refuse an address that is not this machine's or not free."""
    where = f"{settings.host}:{settings.port}"
    try:
        free = ports.is_free(settings.host, settings.port)
    except socket.gaierror:
        raise SettingsInvalid(f"SSFSERVE_HOST: {settings.host!r} is not a host that is known here") from None
    except OSError as error:
        raise SettingsInvalid(f"SSFSERVE_HOST: cannot listen on {where}: {error.strerror}") from None
    if not free:
        raise SettingsInvalid(
            f"SSFSERVE_PORT: {where} is in use; stop what listens there, or choose another port"
        )


def check_data_dir(data_dir: Path) -> None:
    """Make the data directory; refuse one that cannot be written."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsInvalid(f"SSFSERVE_DATA_DIR: {data_dir}: {error.strerror}") from None
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise SettingsInvalid(f"SSFSERVE_DATA_DIR: {data_dir} cannot be written by this user")


def count_keys(settings: Settings) -> int:
    """Open the registry and count its API keys.

    Raises:
        RegistryError
    """

    async def count(registry: KeptRegistry) -> int:
        return len(await registry.list_keys())

    return _ask_registry(settings, count)


def registry_risks(settings: Settings) -> tuple[str, ...]:
    """Return how the registry's server is set up so that it may lose what it has acknowledged.

    Raises:
        RegistryError
    """
    return _ask_registry(settings, lambda registry: registry.risks())


def _ask_registry(settings: Settings, question: Callable[[KeptRegistry], Awaitable[T]]) -> T:
    async def ask() -> T:
        registry = open_registry(settings.registry, settings.data_dir)
        try:
            return await question(registry)
        finally:
            await registry.close()

    return asyncio.run(ask())
