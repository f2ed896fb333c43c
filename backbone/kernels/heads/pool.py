"""Heads in device memory: class rows in pages of one size, and a page table for each slot.

Tasks differ in their number of classes K. A head takes ceil(K / PAGE_ROWS) pages wherever they are free: no
slot reserves room for the widest, and memory does not fragment.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from backbone.errors import HeadPoolFull, ShapeMismatch
from backbone.heads import Head

PAGE_ROWS = 16
MAX_CLASSES = 8192  # the kernel keeps an image's logits in registers

Copy = Callable[[Tensor, Tensor], object]


class HeadPool:
    """The heads of the resident adapters.

    Not locked, like the bank: the caller writes no slot that a forward under way uses. The tensors keep their
    addresses, so captured CUDA graphs see what is written later.

    Attributes:
        weight: Class rows, [pages, PAGE_ROWS, D].
        bias: [pages, PAGE_ROWS], fp32.
        table: Pages of each slot in order, [S, pages per slot], int32.
        classes: K of each slot, [S], int32; 0 where there is no head.
    """

    def __init__(
        self,
        width: int,
        *,
        slots: int,
        max_classes: int,
        pages: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make room for `pages` pages; a head has at most `max_classes` rows, rounded up to pages."""
        if not 0 < max_classes <= MAX_CLASSES:
            raise ShapeMismatch("max_classes", f"1 to {MAX_CLASSES}", str(max_classes))
        self.weight = torch.zeros(pages, PAGE_ROWS, width, device=device, dtype=dtype)
        self.bias = torch.zeros(pages, PAGE_ROWS, device=device)
        self.table = torch.zeros(slots, pages_of(max_classes), device=device, dtype=torch.int32)
        self.classes = torch.zeros(slots, device=device, dtype=torch.int32)
        self._free = list(range(pages))
        self._held: dict[int, list[int]] = {}

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def write(self, slot: int, head: Head, copy: Copy = Tensor.copy_) -> None:
        """Put a head into a slot, in place of the one that was there.

        `copy(target, source)` writes the tensors; what a slot gave up may go to the next one written.

        Raises:
            ShapeMismatch: If the head is not [K, D] with K in range.
            HeadPoolFull: If too few pages are free; the slot then keeps what it had.
        """
        needed = self._pages_for(head)
        available = len(self._free) + len(self._held.get(slot, ()))
        if needed > available:
            raise HeadPoolFull(needed, available)
        self._release(slot)
        pages = self._held[slot] = [self._free.pop() for _ in range(needed)]
        rows = len(head.bias)
        for pool, values in ((self.weight, head.weight), (self.bias, head.bias)):
            padded = torch.zeros(needed * PAGE_ROWS, *values.shape[1:], dtype=pool.dtype)
            padded[:rows] = values
            for page, part in zip(pages, padded.split(PAGE_ROWS), strict=True):
                copy(pool[page], part)
        copy(self.table[slot, :needed], torch.tensor(pages, dtype=torch.int32))
        copy(self.classes[slot], torch.tensor(rows, dtype=torch.int32))

    def forget(self, slot: int) -> None:
        """Free the pages of a slot, if it has any."""
        self._release(slot)
        self.classes[slot] = 0

    def _release(self, slot: int) -> None:
        self._free += self._held.pop(slot, [])

    def _pages_for(self, head: Head) -> int:
        width, limit = self.weight.shape[2], self.table.shape[1]
        rows = head.weight.shape[0]
        if head.weight.shape != (rows, width) or not 0 < pages_of(rows) <= limit:
            expected = f"[K, {width}], K of 1 to {limit * PAGE_ROWS}"
            raise ShapeMismatch("head.weight", expected, str(list(head.weight.shape)))
        if head.bias.shape != (rows,):
            raise ShapeMismatch("head.bias", f"[{rows}]", str(list(head.bias.shape)))
        return pages_of(rows)


def pages_of(classes: int) -> int:
    return -(-classes // PAGE_ROWS)
