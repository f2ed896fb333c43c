"""Choose a backend by URL."""

from pathlib import Path

from registry.base import Registry
from registry.embedded import EmbeddedRegistry
from registry.errors import RegistryUrlInvalid

SUPPORTED = "supported are `embedded:` (the data directory) and `embedded:/absolute/path`"


def open_registry(url: str, data_dir: Path) -> Registry:
    """Return the registry that a URL names; nothing is connected or created before its first use.

    Raises:
        RegistryUrlInvalid
    """
    scheme, colon, path = url.partition(":")
    if not colon:
        raise RegistryUrlInvalid("", SUPPORTED)
    if scheme != "embedded" or path.startswith("//") or (path and not path.startswith("/")):
        raise RegistryUrlInvalid(f"{scheme}:", SUPPORTED)
    return EmbeddedRegistry(Path(path) if path else data_dir)
