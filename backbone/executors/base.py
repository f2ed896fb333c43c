"""What every executor is, and what it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from backbone.heads import Head
from backbone.load import Backbone

Image = NDArray[np.uint8]  # [3, H, W]
Logits = NDArray[np.float32]  # [K] of the image's adapter


@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """An adapter ready for the bank, in host memory: row [2, P] fp32 and its head."""

    row: Tensor
    head: Head

    @property
    def nbytes(self) -> int:
        return int(self.row.nbytes) + self.head.nbytes


class Executor(Protocol):
    """Runs batches of any mix of tasks.

    Safe from several threads; `load` must not write a slot that a running `run` uses.

    Attributes:
        lanes: Calls of `run` that gain from being under way at once; more wait.
        max_classes: Of one adapter; None for any number.
        memory: Device memory that was set aside at start, in bytes by part; empty where none is.
    """

    lanes: int
    max_classes: int | None

    @property
    def memory(self) -> Mapping[str, int]: ...

    @property
    def name(self) -> str: ...

    @property
    def backbone(self) -> Backbone: ...

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str:
        """Of the products and activations."""
        ...

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        """Copy an adapter into a slot.

        Raises:
            ShapeMismatch: If it does not fit the backbone.
        """
        ...

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        """Return logits [K of its adapter] of each image [3, H, W]."""
        ...

    def run_beside_bank(self, image: Image, adapter: FoldedAdapter) -> Logits:
        """Return the logits [K] of one image [3, H, W] with an adapter that is in no slot."""
        ...
