"""Heads differ in their number of classes per task; each sample meets its own slot's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


class Heads:
    """The heads of the resident adapters, by slot. Slots are written under the same rules as the bank's."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._width, self._device = width, device
        self._by_slot: dict[int, Head] = {}

    def write(self, slot: int, head: Head) -> None:
        """Put a head into a slot."""
        if head.weight.ndim != 2 or head.weight.shape[1] != self._width:
            raise ShapeMismatch("head.weight", f"[K, {self._width}]", str(list(head.weight.shape)))
        if head.bias.shape != head.weight.shape[:1]:
            raise ShapeMismatch("head.bias", f"[{head.weight.shape[0]}]", str(list(head.bias.shape)))
        self._by_slot[slot] = Head(head.weight.to(self._device), head.bias.to(self._device))

    def apply(self, features: Tensor, slots: Sequence[int]) -> list[Tensor]:
        """Return each sample's logits [K of its slot], fp32, for features [B, D].

        One product per sample rather than per task, so that no result depends on its neighbours; it costs
        microseconds beside a forward of milliseconds.
        """
        heads = [self._by_slot[slot] for slot in slots]
        return [torch.addmv(h.bias, h.weight, f) for h, f in zip(heads, features.float(), strict=True)]
