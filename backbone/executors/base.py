"""What every executor is, and what it is given."""

from collections.abc import Sequence
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

    Safe from several threads, one forward at a time; `load` must not write a slot that a running `run` uses.
    """

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
