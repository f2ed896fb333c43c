"""How many cores this process may use, and how replicas share cores and GPUs."""

import math
import os
from pathlib import Path

from server.settings import Settings

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cores(cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """Return the cores of the affinity mask, fewer where a container's CPU quota allows fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(cpu_max)))


def with_threads(settings: Settings) -> Settings:
    """Return the settings with threads counted out: cores shared by all replicas there may be."""
    fair_share = max(1, available_cores() // settings.most_replicas)
    return settings.model_copy(
        update={
            "threads": settings.threads or fair_share,
            "decode_threads": settings.decode_threads or fair_share,
        }
    )


def gpu_share(settings: Settings, gpus: float) -> float:
    """Return how much of a GPU each replica gets: all of one or 1/n, so that none straddles two."""
    if settings.device == "cpu" or gpus < 1:
        return 0.0
    return 1.0 / math.ceil(settings.most_replicas / gpus)


def _quota(cpu_max: Path) -> int:
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return 2**31
