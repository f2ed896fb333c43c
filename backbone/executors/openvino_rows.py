"""How the rows of a piece lie in memory: site after site, so that the graph splits them without a copy.

For B images: γ' of the first site [B, C], γ' of the second, …, then β' likewise; 2 · P · B numbers. Rows that
lie image after image have to be cut by columns, which costs a copy of every vector in every forward.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbone.executors.quiet_openvino import openvino
from backbone.sites import SiteList
from backbone.traced import TracedRows

_TYPES = {torch.float32: openvino.Type.f32, torch.bfloat16: openvino.Type.bf16}


class RowsBySite(TracedRows):
    """Takes a piece's rows as they lie in `PieceRows`."""

    def __init__(self, sites: SiteList) -> None:
        super().__init__(sites)
        self._row_width = sites.total_width

    def set(self, rows: Tensor) -> None:
        """Take rows [2 · P · B]."""
        self.batch = rows.shape[0] // (2 * self._row_width)
        widths = self._widths * 2
        # at the end, so that bfloat16 rows are split as such
        parts = rows.float().split([width * self.batch for width in widths])
        vectors = [part.view(-1, width) for part, width in zip(parts, widths, strict=True)]
        self.scale, self.shift = vectors[: len(self._widths)], vectors[len(self._widths) :]


class PieceRows:
    """A buffer for the rows of one piece: `values`, and the `tensor` through which the graph reads them.

    One call gathers it, in blocks as wide as all widths allow: behind a forward, which leaves nothing of the
    host's own code and data in the caches, a call for each vector takes milliseconds.
    """

    def __init__(self, sites: SiteList, size: int, dtype: torch.dtype) -> None:
        widths = [site.width for site in sites] * 2
        self._block = math.gcd(*widths)
        self._in_a_row = sum(widths) // self._block
        self._images, self._places = _order([width // self._block for width in widths], size)
        self.values = torch.zeros(size * sum(widths), dtype=dtype)
        self._blocks = _as_array(self.values).reshape(-1, self._block)
        flat = self._blocks.reshape(-1)
        self.tensor = openvino.Tensor(flat, openvino.Shape(list(flat.shape)), _TYPES[dtype])

    def gather(self, bank: Tensor, slots: Sequence[int]) -> None:
        """Copy the rows of slots, one an image, from a bank [S, 2, P]."""
        first = np.array(slots, np.intp) * self._in_a_row
        blocks = _as_array(bank).reshape(-1, self._block)
        # modes that check make a copy first
        np.take(blocks, first[self._images] + self._places, axis=0, out=self._blocks, mode="clip")

    def put(self, row: Tensor) -> None:
        """Copy one row [2, P], for a piece of one image."""
        self.values.copy_(row.flatten())


def _order(blocks: Sequence[int], size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return, for each block of a piece, whose image it is and its place in that image's row.

    Args:
        blocks: How many each vector of a row has.
        size: Images of the piece.
    """
    places = np.split(np.arange(sum(blocks)), np.cumsum(blocks)[:-1])
    images = [np.repeat(np.arange(size), count) for count in blocks]
    return np.concatenate(images), np.concatenate([np.tile(vector, size) for vector in places])


def _as_array(values: Tensor) -> NDArray[np.generic]:
    """Return the same memory as an array; numpy has no bfloat16, and copies need only its size."""
    array: NDArray[np.generic] = values.view(
        torch.int16 if values.dtype == torch.bfloat16 else values.dtype
    ).numpy()
    return array
