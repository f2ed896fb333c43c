"""LayerNorm or RMSNorm with the slot's affine on the GPU, after a residual add if there is one.

    total = x + delta, rounded to the dtype of x
    out   = normal(total) * scale[slot] + shift[slot]

Shapes (strides in elements, channels side by side):
    x, delta, total, out  [B, m, C]  fp32 | fp16 | bf16, total and out contiguous
    scale, shift          [S, C]     fp32, rows of the bank at any stride
    slots                 [B]        int32

Numerics: fp32 inside; the variance is taken about the mean, in registers. A row is reduced by one program in
an order that the shape of an image decides, so its bits do not depend on the batch.
Cost: memory bound: 2 * B * m * C * sizeof(x) bytes, twice that with the add.
Source: SSF, arXiv:2210.08823. Ground truth: reference.py. Tests: tests/unit/kernels/norm_affine_cases.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbone.kernels.rows import bank_rows, rows_of

TILE = 4096  # elements of a program; wider rows take a program each
ELEMENTS_PER_WARP = 1024


@triton.jit
def _norm_affine_kernel(
    x_ptr, delta_ptr, scale_ptr, shift_ptr, slots_ptr, total_ptr, out_ptr,
    n_rows, n_channels,
    x_image, x_row, delta_image, delta_row, scale_slot, shift_slot,
    eps,
    CENTER: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per [BLOCK_R, C] tile of one image
    row_blocks = tl.cdiv(n_rows, BLOCK_R)
    image = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = ((tl.program_id(0) % row_blocks) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    cols = tl.arange(0, BLOCK_C)
    in_row = cols < n_channels
    mask = (rows < n_rows) & in_row[None, :]
    dense = (image * n_rows + rows) * n_channels + cols[None, :]

    slot = tl.load(slots_ptr + image).to(tl.int64)
    gamma = tl.load(scale_ptr + slot * scale_slot + cols, mask=in_row, other=0.0)
    beta = tl.load(shift_ptr + slot * shift_slot + cols, mask=in_row, other=0.0)
    x = tl.load(x_ptr + image * x_image + rows * x_row + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    if delta_ptr is not None:
        at = delta_ptr + image * delta_image + rows * delta_row + cols[None, :]
        total = (x + tl.load(at, mask=mask, other=0.0).to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + dense, total, mask=mask)
        x = total.to(tl.float32)
    if CENTER:
        x = tl.where(in_row[None, :], x - tl.sum(x, axis=1, keep_dims=True) / n_channels, 0.0)
    normal = x * tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / n_channels + eps)
    out = tl.fma(normal, gamma[None, :], beta[None, :])
    tl.store(out_ptr + dense, out.to(out_ptr.dtype.element_ty), mask=mask)


def norm_affine_triton(
    x: Tensor, delta: Tensor | None, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float
) -> tuple[Tensor | None, Tensor]:
    """Return the sum, if there is a delta, and its normalised value."""
    batch = len(slots)
    rows = rows_of(x, batch)
    added = rows if delta is None else rows_of(delta, batch)
    scale, scale_slot = bank_rows(scale)
    shift, shift_slot = bank_rows(shift)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if delta is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_c = triton.next_power_of_2(rows.channels)
    block_r = min(max(1, TILE // block_c), triton.next_power_of_2(rows.per_image))
    grid = (batch * triton.cdiv(rows.per_image, block_r),)
    with torch.cuda.device_of(x):
        _norm_affine_kernel[grid](
            rows.data, None if delta is None else added.data, scale, shift, slots, total, out,
            rows.per_image, rows.channels,
            rows.image_stride, rows.row_stride, added.image_stride, added.row_stride, scale_slot, shift_slot,
            eps,
            CENTER=kind == "layer", BLOCK_R=block_r, BLOCK_C=block_c,
            num_warps=min(16, max(1, block_r * block_c // ELEMENTS_PER_WARP)), enable_fp_fusion=False,
        )  # fmt: skip
    return total, out
