"""What can be wrong inside a Redis registry, and with the server it is on."""

from collections.abc import Iterator, Mapping
from typing import Any

from registry.errors import RegistryUnavailable
from registry.redis_blobs import Server
from registry.redis_keys import Keys


async def faults(server: Server, keys: Keys) -> tuple[str, ...]:
    """Return where the parts of the registry disagree, task by task."""
    names = {*await server.ask("HKEYS", keys("tasks")), *await server.ask("ZRANGE", keys("names"), 0, -1)}
    found = []
    for name in sorted(name.decode() for name in names):
        reply = await server.run("faults", keys.all(name), name)
        found += [f"task `{name}`: {fault.decode()}" for fault in reply]
    return tuple(found)


async def risks(server: Server) -> tuple[str, ...]:
    """Judge the server by what it tells of itself; what it does not tell is not judged."""
    info = await server.ask("INFO")
    try:
        _, sync = await server.ask("CONFIG", "GET", "appendfsync")
    except (RegistryUnavailable, ValueError):  # managed servers allow no CONFIG
        sync = b"unknown"
    return tuple(_risks(info, sync.decode()))


def _risks(info: Mapping[str, Any], sync: str) -> Iterator[str]:
    if info.get("aof_enabled") == 0:
        yield "appendonly is off: what was acknowledged since the last snapshot is lost if the server ends"
    elif sync in {"everysec", "no"}:
        yield f"appendfsync is {sync}: a crash loses the last seconds of what was acknowledged; use always"
    if info.get("maxmemory_policy", "noeviction").startswith("allkeys"):
        yield f"maxmemory-policy is {info['maxmemory_policy']}: a full server drops keys; use noeviction"
    if info.get("aof_last_write_status", "ok") != "ok":
        yield "the last write to the append-only file failed"
    if info.get("role") == "slave":
        yield "this server is a replica: it takes no writes"
