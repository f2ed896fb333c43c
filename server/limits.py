"""What an engine may use."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine.

    Attributes:
        max_batch: Images in one forward.
        max_queue: Jobs that may wait; the next gets QueueFull.
        max_queue_per_task: Jobs of one task that may wait.
        max_pinned: Adapters that may be pinned; at least one slot always stays free of pins.
        host_bytes: Host memory for folded adapters, besides at most 2 `max_loads` that are being loaded.
        disk_bytes: Disk space for adapter files.
        load_threads: Threads that read, fold and copy adapters.
        max_loads: Loads under way at a time; as many again may wait for the registry.
        fetch_seconds: Longest time for the registry to hand over an adapter.
        retry_seconds: After a failed load, jobs for this adapter fail at once for so long.
        max_batch_seconds: A batch that runs longer means that the device hangs.
        max_failed_runs: So many forwards in a row without an answer mean that the device is broken.
    """

    max_batch: int = 16
    max_queue: int = 1024
    max_queue_per_task: int = 256
    max_pinned: int = 8
    host_bytes: int = 1024 * MIB
    disk_bytes: int = 8192 * MIB
    load_threads: int = 2
    max_loads: int = 16
    fetch_seconds: float = 30.0
    retry_seconds: float = 1.0
    max_batch_seconds: float = 120.0
    max_failed_runs: int = 16
