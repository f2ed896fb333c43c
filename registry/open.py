"""Choose a backend by URL."""

from pathlib import Path

from registry.embedded import EmbeddedRegistry
from registry.errors import RegistryUrlInvalid
from registry.places import StoredOutside
from registry.redis_blobs import InRedis
from registry.redis_keys import Keys
from registry.redis_registry import RedisRegistry
from registry.redis_url import SCHEMES, RedisTarget
from registry.upkeep import KeptRegistry

SUPPORTED = (
    "supported are `embedded:` (the data directory), `embedded:/absolute/path`, and for Redis or Valkey "
    + ", ".join(f"`{scheme}://`" for scheme in SCHEMES)
)


def open_registry(url: str, data_dir: Path) -> KeptRegistry:
    """Return the registry that a URL names; nothing is connected or created before its first use.

    Raises:
        RegistryUrlInvalid
    """
    scheme, colon, path = url.partition(":")
    if scheme in SCHEMES and path.startswith("//"):
        return _open_redis(RedisTarget.parse(url))
    if not colon:
        raise RegistryUrlInvalid("", SUPPORTED)
    if scheme != "embedded" or path.startswith("//") or (path and not path.startswith("/")):
        raise RegistryUrlInvalid(f"{scheme}:", SUPPORTED)
    return EmbeddedRegistry(Path(path) if path else data_dir)


def _open_redis(target: RedisTarget) -> RedisRegistry:
    try:
        from registry.redis_backend import Connection  # redis-py is an optional extra
    except ImportError as error:
        raise RegistryUrlInvalid("redis:", "redis-py is missing: pip install 'ssfserve[redis]'") from error
    server, options = Connection(target), target.options
    outside = options.blobs is not None
    return RedisRegistry(
        server,
        prefix=options.prefix,
        place=StoredOutside(options.blobs) if options.blobs else InRedis(server, Keys(options.prefix)),
        outside=outside,
        max_events=options.max_events,
    )
