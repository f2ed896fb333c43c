"""Heads differ in their number of classes per task; each sample meets its own slot's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbone.errors import ShapeMismatch


@dataclass(frozen=True, slots=True)
class Head:
    """A linear classifier in fp32: weight [K, D], bias [K]."""

    weight: Tensor
    bias: Tensor

    @property
    def nbytes(self) -> int:
        return int(self.weight.nbytes + self.bias.nbytes)

    def check(self, width: int) -> None:
        """Raise `ShapeMismatch` unless this is a classifier of features of some width."""
        if self.weight.ndim != 2 or self.weight.shape[1] != width:
            raise ShapeMismatch("head.weight", f"[K, {width}]", str(list(self.weight.shape)))
        if self.bias.shape != self.weight.shape[:1]:
            raise ShapeMismatch("head.bias", f"[{self.weight.shape[0]}]", str(list(self.bias.shape)))


class Heads:
    """The heads of the resident adapters, by slot. Slots are written under the same rules as the bank's."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._width, self._device = width, device
        self._by_slot: dict[int, Head] = {}

    def write(self, slot: int, head: Head) -> None:
        """Put a head into a slot.

        Raises:
            ShapeMismatch: If it does not fit the features.
        """
        head.check(self._width)
        self._by_slot[slot] = Head(head.weight.to(self._device), head.bias.to(self._device))

    def apply(self, features: Tensor, slots: Sequence[int]) -> list[Tensor]:
        """Return each sample's logits [K of its slot], fp32, for features [B, D].

        One product per sample rather than per task, so that no result depends on its neighbours; it costs
        microseconds beside a forward of milliseconds.
        """
        heads = [self._by_slot[slot] for slot in slots]
        return [torch.addmv(h.bias, h.weight, f) for h, f in zip(heads, features.float(), strict=True)]


class HostHeads:
    """The same for features that lie in host memory, in numpy.

    Behind a forward, which leaves nothing of the host's own code in the caches, a call into PyTorch takes
    many times as long as by itself.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._by_slot: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def write(self, slot: int, head: Head) -> None:
        """Put a head into a slot.

        Raises:
            ShapeMismatch: If it does not fit the features.
        """
        head.check(self._width)
        self._by_slot[slot] = head.weight.numpy(), head.bias.numpy()

    def apply(self, features: NDArray[np.float32], slots: Sequence[int]) -> list[NDArray[np.float32]]:
        """Return each sample's logits [K of its slot] for features [B, D], one product per sample."""
        heads = [self._by_slot[slot] for slot in slots]
        return [weight @ sample + bias for (weight, bias), sample in zip(heads, features, strict=True)]
