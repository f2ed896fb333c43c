"""The bank: one arena [S, 2, P] that holds the folded vectors of resident adapters, one row a slot.

Slot 0 is the identity: γ=1, β=0 at every site, that is the plain frozen model. Loading an adapter is one copy
of one row; evicting is forgetting a row.
"""

import torch
from torch import Tensor

from backbone.errors import ShapeMismatch
from backbone.fold import Fold

IDENTITY = 0


class Bank:
    """Rows of (γ', β') on one device.

    Not locked: the caller writes no slot that a forward under way uses (residency pins it).
    """

    def __init__(
        self, fold: Fold, slots: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Make room for `slots` adapters beside the identity: (slots + 1) · 2 · P numbers of `dtype`."""
        self.sites = fold.sites
        self.rows = torch.zeros(slots + 1, 2, fold.sites.total_width, device=device, dtype=dtype)
        self.rows[IDENTITY].copy_(fold.row({}, {}))

    def write(self, slot: int, row: Tensor) -> None:
        """Copy a folded adapter [2, P] into a slot, rounded once to the bank's dtype."""
        if row.shape != self.rows.shape[1:]:
            raise ShapeMismatch("row", str(list(self.rows.shape[1:])), str(list(row.shape)))
        self.rows[slot].copy_(row)

    def site(self, name: str) -> Tensor:
        """Return the strided view [S, 2, C] of one site."""
        return self.rows[:, :, self.sites.slices[name]]

    def gather(self, slots: Tensor) -> Tensor:
        """Return the rows [B, 2, P] of a batch. `slots` is [B], int64."""
        return self.rows.index_select(0, slots)
