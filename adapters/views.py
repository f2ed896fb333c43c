"""The images of an epoch, as training sees them: changed at random, uint8, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from adapters.augment import augment


class Views(Protocol):
    """Where a training's images come from."""

    def epoch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield uint8 [B, 3, H, W] for each tensor of indices."""


class PixelViews:
    """Decoded images [n, 3, H, W], as serving would see them, with `adapters.augment` on top."""

    def __init__(self, pixels: Tensor, names: Sequence[str], generator: torch.Generator) -> None:
        self._pixels, self._names, self._generator = pixels, names, generator

    def epoch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for indices in batches:
            yield augment(self._pixels[indices], self._names, self._generator)
