"""What the parts of a replica know of each other. This module loads no torch and no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.manifest import Manifest, Preprocessing
from registry.models import Version

Image = NDArray[np.uint8]  # [3, H, W], resized and cropped for the backbone
Logits = NDArray[np.float32]  # [K]


class Tier(StrEnum):
    """Where an adapter is, nearest first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STORED = "stored"


@dataclass(frozen=True, slots=True)
class Job:
    """One image for one version. `deadline` is a time of `time.monotonic()`, None for no limit."""

    version: Version
    image: Image
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The logits [K] of one job, and where its time went (seconds)."""

    logits: Logits
    queue_seconds: float
    compute_seconds: float
    batch_size: int
    batch_tasks: int


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """The resident backbone, as `/v1/backbone` shows it.

    Attributes:
        sites: Widths C by site, in forward order.
        lanes: Runs that may be under way at once.
        memory: Device memory set aside at start, in bytes by part; empty where none is.
    """

    name: str
    fingerprint: str
    source: str
    family: str
    executor: str
    device: str
    dtype: str
    parameters: int
    head_width: int
    preprocessing: Preprocessing
    sites: Mapping[str, int]
    slots: int
    lanes: int = 1
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterState:
    """An adapter in this replica. `last_used` is UTC seconds since 1970, None if never here."""

    tier: Tier
    pinned: bool
    last_used: float | None


class FoldedAdapter(Protocol):
    """An adapter ready for the bank: folded rows [2, P] and its head, in host memory."""

    @property
    def nbytes(self) -> int: ...


class Device(Protocol):
    """The bank and the mixed-task forward of one replica.

    Every method blocks and is called from worker threads: `run` from `info.lanes` at a time, `load` also
    while a `run` is under way, but never for a slot that this run uses.
    """

    @property
    def info(self) -> BackboneInfo:
        """Describe the backbone; rows 1 to `info.slots` may hold adapters, row 0 is the identity."""
        ...

    def memory(self) -> Mapping[str, int]:
        """Return its own memory in bytes, `used` by this process and in `total`; a CPU has none."""
        ...

    def fold(self, data: bytes) -> FoldedAdapter:
        """Read an adapter file strictly and fold it for this backbone.

        Raises:
            AdapterError: Any leaf of `adapters.errors` but ProbeMismatch.
        """
        ...

    def validate(self, data: bytes, *, new: bool = True) -> Manifest:
        """Check an adapter file, including its probe, without touching the bank.

        Args:
            data: The file.
            new: Compute the probe in fp32 too, by the plain reference: another second on a CPU. An adapter
                that a registry holds has been through it.

        Raises:
            AdapterError: Any leaf of `adapters.errors`.
        """
        ...

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        """Copy an adapter into a row of the bank. Costs one copy of about 0.4 MB."""
        ...

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        """Answer one batch: image i with the adapter in slots[i]. One forward, whatever the mix."""
        ...


class Engine(Protocol):
    """Answers jobs of any mix of tasks. One per replica; all methods run on its event loop."""

    @property
    def backbone(self) -> BackboneInfo: ...

    async def predict(self, job: Job) -> Outcome:
        """Wait for a place in a batch and return the logits.

        Cancelling the call drops the job. A failure of one job never fails another.

        Raises:
            QueueFull: If too many jobs wait already.
            DeadlineExceeded: If the deadline passed before its batch began.
            Draining: If the engine is shutting down.
            AdapterUnavailable: If the adapter could not be loaded (its bytes are gone, or the registry is).
            OutputInvalid: If the adapter gave logits that are not finite.
            ComputeFailed: If the forward failed for this job alone.
            EngineBroken: If no answer can be expected any more; see `check`.
        """
        ...

    async def validate(self, data: bytes, *, new: bool = True) -> Manifest:
        """Check an adapter file against this backbone; see `Device.validate`.

        Raises:
            AdapterError: Any leaf of `adapters.errors`.
        """
        ...

    async def prefetch(self, version: Version) -> Tier:
        """Bring an adapter to the device now; return the tier it was in.

        Raises:
            AdapterUnavailable
        """
        ...

    async def pin(self, version: Version) -> None:
        """Load an adapter and keep it on the device until `unpin`.

        Raises:
            AdapterUnavailable
            PinLimit: If as many adapters are pinned as settings allow.
        """
        ...

    async def unpin(self, version: Version) -> None:
        """Let the adapter be evicted again. Unknown digests are fine."""
        ...

    def state(self, digest: str) -> AdapterState:
        """Tell where an adapter is in this replica."""
        ...

    def forget(self, digest: str) -> None:
        """Drop the adapter's cached copies once no accepted job needs them: its version was deleted."""
        ...

    def check(self) -> None:
        """Raise EngineBroken if the engine can no longer answer (its batch loop died or hangs)."""
        ...

    async def drain(self) -> None:
        """Refuse new jobs, answer the accepted ones, then release the device."""
        ...
