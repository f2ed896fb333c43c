"""Activations to fp8 on the GPU, each row by its own largest value: value = x / scale, scale = max|x| / 448.

Shapes (channels side by side):
    x       [rows, C]  fp32 | fp16 | bf16, rows at one stride
    values  [rows, C]  e4m3, contiguous
    scales  [rows]     fp32; 1 for a row of zeros

Numerics: fp32 inside, one rounding. A row's bits depend on the row alone; a NaN or infinity makes it NaN.
Cost: memory bound: rows * C * (sizeof(x) + 1) bytes.
Ground truth: reference.py. Tests: tests/unit/kernels/quantize_cases.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbone.kernels.quantize.reference import FP8, LARGEST
from backbone.kernels.rows import matrix

TILE = 4096  # elements of a program; wider rows take a program each
ELEMENTS_PER_WARP = 1024


@triton.jit
def _quantize_kernel(
    x_ptr, values_ptr, scales_ptr, n_rows, n_channels, x_row,
    LARGEST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tl.arange(0, BLOCK_C)
    mask = (rows < n_rows)[:, None] & (cols < n_channels)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_row + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    most = tl.max(tl.abs(x), axis=1)
    # a maximum may pass over a NaN; the sum does not
    total = tl.sum(x, axis=1)
    scales = tl.where(most == 0.0, 1.0, most / LARGEST)
    scales = tl.where(total != total, total, scales)  # noqa: PLR0124 only a NaN differs from itself
    values = x / scales[:, None]
    values = tl.where(values > LARGEST, LARGEST, tl.where(values < -LARGEST, -LARGEST, values))
    at = values_ptr + rows[:, None] * n_channels + cols[None, :]
    tl.store(at, values.to(values_ptr.dtype.element_ty), mask=mask)
    tl.store(scales_ptr + rows, scales, mask=rows < n_rows)


def quantize_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    source = matrix(x)
    n_rows, channels = source.shape
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty((n_rows,), dtype=torch.float32, device=x.device)
    block_c = triton.next_power_of_2(channels)
    block_r = max(1, TILE // block_c)
    with torch.cuda.device_of(x):
        _quantize_kernel[(triton.cdiv(n_rows, block_r),)](
            source, values, scales, n_rows, channels, source.stride(0),
            LARGEST=LARGEST, BLOCK_R=block_r, BLOCK_C=block_c,
            num_warps=min(16, max(1, block_r * block_c // ELEMENTS_PER_WARP)), enable_fp_fusion=False,
        )  # fmt: skip
    return values, scales
