"""The slot's affine on the GPU: out = act(x * scale[slot] + shift[slot]) + residual.

Shapes (strides in elements, channels side by side):
    x, residual, out  [B, m, C]  fp32 | fp16 | bf16, out contiguous
    scale, shift      [S, C]     fp32, rows of the bank at any stride
    slots             [B]        int32

Numerics: fp32 inside, one rounding at the store. A row's bits depend on its image's slot and on nothing else.
Cost: memory bound: B * m * C * sizeof(x) bytes read and as many written, as many again for a residual.
Source: SSF, arXiv:2210.08823. Ground truth: reference.py. Tests: tests/unit/kernels/affine_cases.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbone.kernels.activations_triton import activate
from backbone.kernels.rows import bank_rows, block_of, rows_of

TILE = 4096  # elements; 32 a thread


@triton.jit
def _affine_kernel(
    x_ptr, scale_ptr, shift_ptr, slots_ptr, residual_ptr, out_ptr,
    n_rows, n_channels,
    x_image, x_row, residual_image, residual_row, scale_slot, shift_slot,
    ACT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # one program per [BLOCK_R, BLOCK_C] tile of one image, so that γ and β are loaded once a tile
    col_blocks = tl.cdiv(n_channels, BLOCK_C)
    row_blocks = tl.cdiv(n_rows, BLOCK_R)
    tile = tl.program_id(0) // col_blocks
    image = (tile // row_blocks).to(tl.int64)
    rows = ((tile % row_blocks) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    cols = (tl.program_id(0) % col_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_row = cols < n_channels
    mask = (rows < n_rows) & in_row[None, :]

    slot = tl.load(slots_ptr + image).to(tl.int64)
    gamma = tl.load(scale_ptr + slot * scale_slot + cols, mask=in_row, other=0.0)
    beta = tl.load(shift_ptr + slot * shift_slot + cols, mask=in_row, other=0.0)
    x = tl.load(x_ptr + image * x_image + rows * x_row + cols[None, :], mask=mask, other=0.0)
    out = activate(tl.fma(x.to(tl.float32), gamma[None, :], beta[None, :]), ACT)
    if residual_ptr is not None:
        at = residual_ptr + image * residual_image + rows * residual_row + cols[None, :]
        out += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    at = out_ptr + (image * n_rows + rows) * n_channels + cols[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=mask)


def affine_triton(
    x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, residual: Tensor | None, *, act: str
) -> Tensor:
    batch = len(slots)
    rows = rows_of(x, batch)
    beside = rows if residual is None else rows_of(residual, batch)
    scale, scale_slot = bank_rows(scale)
    shift, shift_slot = bank_rows(shift)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_c = block_of(rows.channels, largest=512)
    block_r = min(TILE // block_c, triton.next_power_of_2(rows.per_image))
    grid = (batch * triton.cdiv(rows.per_image, block_r) * triton.cdiv(rows.channels, block_c),)
    with torch.cuda.device_of(x):
        _affine_kernel[grid](
            rows.data, scale, shift, slots, None if residual is None else beside.data, out,
            rows.per_image, rows.channels,
            rows.image_stride, rows.row_stride, beside.image_stride, beside.row_stride,
            scale_slot, shift_slot,
            ACT=act, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
