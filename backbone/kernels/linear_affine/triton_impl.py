"""A frozen linear layer with the slot's affine in its epilogue: a persistent GEMM on the tensor cores.

    out = act((x @ weight.T) * scale[slot] + shift[slot]) + residual

Shapes (strides in elements, channels side by side):
    x             [B * m, C_in]   fp32 | fp16 | bf16 | e4m3
    weight        [C_out, C_in]   like x
    row_scale     [B * m]         fp32, with e4m3 only: what the values of a row are worth
    residual, out [B * m, C_out]  like x (any but e4m3), out contiguous
    scale, shift  [S, C_out]      fp32, rows of the bank at any stride
    slots         [B]             int32

Numerics: fp32 sums in the order of C_in (no tf32 for fp32), fp32 epilogue, one rounding at the store. The
tile does not depend on the batch, so neither do a row's bits.
Cost: compute bound: 2 * B * m * C_in * C_out operations.
Source: SSF, arXiv:2210.08823. Ground truth: reference.py. Tests: tests/unit/kernels/linear_affine_cases.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from backbone.kernels.activations_triton import activate
from backbone.kernels.linear_affine.tuning import Tile
from backbone.kernels.rows import ALIGNMENT, bank_rows, matrix

GROUP_M = 8  # row blocks that go through the weights together, so that these stay in L2


@triton.jit
def _tile_of(index, row_blocks, col_blocks, GROUP_M: tl.constexpr):
    """Return the row block and the column block of a tile: down a group of rows, then one column on."""
    per_group = GROUP_M * col_blocks
    first = (index // per_group) * GROUP_M
    height = tl.minimum(row_blocks - first, GROUP_M)
    return first + (index % per_group) % height, (index % per_group) // height


@triton.jit
def _load(source, row_stride, first_row, n_rows, first_col, n_cols, TMA: tl.constexpr,
          ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """Load a [ROWS, COLS] block; what lies outside is 0."""
    if TMA:
        block = source.load([first_row, first_col])
    else:
        rows = first_row + tl.arange(0, ROWS)
        cols = first_col + tl.arange(0, COLS)
        at = source + rows.to(tl.int64)[:, None] * row_stride + cols[None, :]
        block = tl.load(at, mask=(rows < n_rows)[:, None] & (cols < n_cols)[None, :], other=0.0)
    return block


@triton.jit
def _bank_values(
    bank_ptr, slot_stride, slots_ptr, rows, cols, n_rows, n_cols, per_image, first_row,
    ONE_BORDER: tl.constexpr,
):  # fmt: skip
    """Return the bank's values for a block [rows, cols]."""
    in_row = cols < n_cols
    if ONE_BORDER:
        # an image is at least as long as the block, so the block meets two images at most
        first = first_row // per_image
        last = tl.minimum(first + 1, (n_rows - 1) // per_image)
        upper = bank_ptr + tl.load(slots_ptr + first).to(tl.int64) * slot_stride
        lower = bank_ptr + tl.load(slots_ptr + last).to(tl.int64) * slot_stride
        above = tl.load(upper + cols, mask=in_row, other=0.0)
        below = tl.load(lower + cols, mask=in_row, other=0.0)
        values = tl.where((rows < (first + 1) * per_image)[:, None], above[None, :], below[None, :])
    else:
        slots = tl.load(slots_ptr + rows // per_image, mask=rows < n_rows, other=0).to(tl.int64)
        at = bank_ptr + slots[:, None] * slot_stride + cols[None, :]
        values = tl.load(at, mask=(rows < n_rows)[:, None] & in_row[None, :], other=0.0)
    return values


@triton.jit
def _finish(
    sums, row_scale_ptr, scale_ptr, shift_ptr, slots_ptr, residual_ptr, out_ptr,
    first_row, first_col, n_rows, n_out, per_image, residual_row, scale_slot, shift_slot,
    ACT: tl.constexpr, ONE_BORDER: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Turn a block of products [ROWS, COLS] into the output."""
    rows, cols = first_row + tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
    if row_scale_ptr is not None:
        sums *= tl.load(row_scale_ptr + rows, mask=rows < n_rows, other=0.0)[:, None]
    gamma = _bank_values(
        scale_ptr, scale_slot, slots_ptr, rows, cols, n_rows, n_out, per_image, first_row, ONE_BORDER
    )
    beta = _bank_values(
        shift_ptr, shift_slot, slots_ptr, rows, cols, n_rows, n_out, per_image, first_row, ONE_BORDER
    )
    out = activate(tl.fma(sums, gamma, beta), ACT)
    mask = (rows < n_rows)[:, None] & (cols < n_out)[None, :]
    rows = rows.to(tl.int64)[:, None]
    if residual_ptr is not None:
        at = residual_ptr + rows * residual_row + cols[None, :]
        out += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows * n_out + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def _linear_affine_kernel(
    x, weight, row_scale_ptr, scale_ptr, shift_ptr, slots_ptr, residual_ptr, out_ptr,
    n_rows, n_out, n_in, per_image,
    x_row, weight_row, residual_row, scale_slot, shift_slot,
    ACT: tl.constexpr, ONE_BORDER: tl.constexpr, TMA: tl.constexpr, FLATTEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    row_blocks, col_blocks = tl.cdiv(n_rows, BLOCK_M), tl.cdiv(n_out, BLOCK_N)
    for index in tl.range(tl.program_id(0), row_blocks * col_blocks, tl.num_programs(0), flatten=FLATTEN):
        row_block, col_block = _tile_of(index, row_blocks, col_blocks, GROUP_M)
        first_row, first_col = row_block * BLOCK_M, col_block * BLOCK_N
        sums = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for k in tl.range(0, n_in, BLOCK_K):
            left = _load(x, x_row, first_row, n_rows, k, n_in, TMA, BLOCK_M, BLOCK_K)
            right = _load(weight, weight_row, first_col, n_out, k, n_in, TMA, BLOCK_N, BLOCK_K)
            sums = tl.dot(left, right.T, sums, input_precision="ieee")

        if BLOCK_N <= 128:
            _finish(
                sums, row_scale_ptr, scale_ptr, shift_ptr, slots_ptr, residual_ptr, out_ptr,
                first_row, first_col, n_rows, n_out, per_image, residual_row, scale_slot, shift_slot,
                ACT, ONE_BORDER, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        else:
            # a wide block is finished in halves, else its epilogue does not fit beside it in the registers
            halves = sums.reshape([BLOCK_M, 2, BLOCK_N // 2]).permute([0, 2, 1]).split()
            for half in tl.static_range(2):
                _finish(
                    halves[half], row_scale_ptr, scale_ptr, shift_ptr, slots_ptr, residual_ptr, out_ptr,
                    first_row, first_col + half * (BLOCK_N // 2), n_rows, n_out, per_image,
                    residual_row, scale_slot, shift_slot, ACT, ONE_BORDER, BLOCK_M, BLOCK_N // 2,
                )  # fmt: skip


def linear_affine_triton(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    residual: Tensor | None,
    *,
    act: str,
    tile: Tile,
    programs: int,
    row_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Run on `programs` programs, one a multiprocessor; the result is in `dtype`, by default that of x."""
    rows, weight = matrix(x), matrix(weight)
    beside = None if residual is None else matrix(residual)
    scale, scale_slot = bank_rows(scale)
    shift, shift_slot = bank_rows(shift)
    n_rows, (n_out, n_in) = rows.shape[0], weight.shape
    per_image = n_rows // len(slots)
    out = torch.empty((*x.shape[:-1], n_out), dtype=dtype or x.dtype, device=x.device)
    tma = tile.tma and _fits_tma(rows) and _fits_tma(weight)
    tiles = triton.cdiv(n_rows, tile.block_m) * triton.cdiv(n_out, tile.block_n)
    with torch.cuda.device_of(x):
        _linear_affine_kernel[(min(programs, tiles),)](
            _described(rows, tile.block_m, tile.block_k) if tma else rows,
            _described(weight, tile.block_n, tile.block_k) if tma else weight,
            row_scale, scale, shift, slots, beside, out,
            n_rows, n_out, n_in, per_image,
            rows.stride(0), weight.stride(0), 0 if beside is None else beside.stride(0),
            scale_slot, shift_slot,
            ACT=act, ONE_BORDER=per_image >= tile.block_m, TMA=tma, FLATTEN=tile.flatten,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=GROUP_M,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def _fits_tma(matrix: Tensor) -> bool:
    row_bytes: int = matrix.stride(0) * matrix.element_size()
    return matrix.stride(1) == 1 and row_bytes % ALIGNMENT == 0


def _described(matrix: Tensor, rows: int, cols: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, [rows, cols])
