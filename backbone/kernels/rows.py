"""How a kernel sees an activation: B images of m rows of C channels, two strides, channels side by side."""

from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; the widest load of a thread


class Rows(NamedTuple):
    """A tensor [B, m, C] as a kernel addresses it; strides in elements."""

    data: Tensor
    image_stride: int
    row_stride: int
    per_image: int
    channels: int


def rows_of(x: Tensor, batch: int) -> Rows:
    """See [.., C] as [B, m, C], in place where the strides allow, else as a copy.

    What a kernel is compiled for must not depend on the batch, or a sample's bits would. So the start is
    aligned (PyTorch's own allocations are; only an odd slice pays a copy), and an axis of length 1 gets the
    stride it would have in a longer tensor, not the arbitrary one PyTorch reports.
    """
    data = x.reshape(batch, -1, x.shape[-1])
    if data.stride(2) != 1 and data.shape[2] > 1:
        data = data.contiguous()
    data = aligned(data)
    per_image, channels = data.shape[1:]
    row_stride = data.stride(1) if per_image > 1 else channels
    image_stride = data.stride(0) if batch > 1 else per_image * row_stride
    return Rows(data, image_stride, row_stride, per_image, channels)


def aligned(x: Tensor) -> Tensor:
    """Return x, or a copy of it if it does not start on a 16-byte boundary."""
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)


def matrix(x: Tensor) -> Tensor:
    """See [.., C] as [rows, C] at one stride, in place where the strides allow, else as a copy."""
    rows = x.reshape(-1, x.shape[-1])
    return aligned(rows if rows.stride(1) == 1 else rows.contiguous())


def bank_rows(vectors: Tensor) -> tuple[Tensor, int]:
    """Return bank vectors [S, C] with channels side by side, and the stride between slots."""
    vectors = vectors if vectors.stride(1) == 1 or vectors.shape[1] == 1 else vectors.contiguous()
    return vectors, vectors.stride(0)


def block_of(width: int, *, largest: int) -> int:
    """Return the largest power of two, 32 to `largest`, whose blocks cover `width` with little padding."""
    sizes = [2**i for i in range(5, largest.bit_length())]
    padded = {size: -(-width // size) * size for size in sizes}
    little: list[int] = [size for size in sizes if padded[size] <= 1.125 * width]
    return max(little) if little else min(sizes, key=padded.__getitem__)
