"""How a device's memory is shared out at start, so that running out is an error then and never later."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from backbone.errors import DeviceMemoryShort

GRAPHS = 64 * 2**20  # launch parameters of all graphs, and what libraries take while they are captured
MARGIN = 1.1  # of the measured peak: the captured sizes share one pool, which does not pack perfectly


@dataclass(frozen=True, slots=True)
class CudaLimits:
    """What the cuda executor makes room for.

    Attributes:
        max_batch: Largest captured batch; longer ones run in parts.
        max_classes: Of one adapter; every slot has room for so many.
        memory_fraction: Share of the device's memory that this process may take.
    """

    max_batch: int = 64
    max_classes: int = 1024
    memory_fraction: float = 0.9


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes on the device by what takes them.

    Attributes:
        limit: What this process may take.
        weights: The frozen model.
        lanes: Buffers of the batches under way.
        graphs: Activations of the largest batch, and the captured graphs.
        slot: One resident adapter: its row of the bank and the pages of the widest head.
        fixed_slots: Rows that hold no adapter of a task: the identity, and the one for checks.
        slots: Adapters to hold.
    """

    limit: int
    weights: int
    lanes: int
    graphs: int
    slot: int
    fixed_slots: int
    slots: int

    @property
    def bank(self) -> int:
        return self.slot * (self.slots + self.fixed_slots)

    @property
    def needed(self) -> int:
        return self.weights + self.lanes + self.graphs + self.bank

    @property
    def most_slots(self) -> int:
        """How many adapters would fit."""
        return max(0, (self.limit - self.needed) // self.slot + self.slots)

    def check(self) -> None:
        """Refuse what does not fit.

        Raises:
            DeviceMemoryShort: With all the numbers.
        """
        if self.needed > self.limit:
            raise DeviceMemoryShort(self.needed, self.limit, str(self), self.most_slots)

    def parts(self) -> Mapping[str, int]:
        """Return the bytes of each part, and the limit."""
        return {
            "weights": self.weights,
            "batches": self.lanes,
            "graphs": self.graphs,
            "adapters": self.bank,
            "limit": self.limit,
        }

    def __str__(self) -> str:
        return ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in self.parts().items())


def graph_bytes(peak: int) -> int:
    """Return what to set aside for graphs whose largest forward took `peak` bytes."""
    return int(peak * MARGIN) + GRAPHS


def in_use(device: str) -> Mapping[str, int]:
    """Return a device's memory in bytes, `used` by this process and in `total`; a CPU has none."""
    if not device.startswith("cuda"):
        return {}
    return {
        "used": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }
