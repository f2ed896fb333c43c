"""Every image's own classifier, its softmax and its best classes, in one launch.

Shapes (contiguous):
    features       [B, D]     fp32 | fp16 | bf16
    weight         [G, R, D]  fp32 | fp16 | bf16, G pages of R class rows
    bias           [G, R]     fp32
    table          [S, T]     int32, the pages of each slot in order
    classes        [S]        int32, K of each slot
    slots          [B]        int32
    logits         [B, T*R]   fp32, -inf from K on
    probabilities  [B, k]     fp32, falling; 0 from K on
    indices        [B, k]     int32, of equals the smaller first; -1 from K on

Numerics: fp32 inside. One program answers one image, so its bits depend on nothing else.
Cost: memory bound: the head's K * D * sizeof(weight) bytes, read by one multiprocessor.
Ground truth: reference.py. Tests: tests/unit/kernels/heads_cases.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbone.kernels.rows import aligned, block_of

NO_CLASS = tl.constexpr(2**31 - 1)


@triton.jit
def _page_logits(features_ptr, weight_ptr, bias_ptr, width, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the logits [ROWS] of one page."""
    rows = tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    for start in tl.range(0, width, BLOCK_D, num_stages=3):
        cols = start + tl.arange(0, BLOCK_D)
        features = tl.load(features_ptr + cols, mask=cols < width, other=0.0).to(tl.float32)
        at = weight_ptr + rows[:, None] * width + cols[None, :]
        weight = tl.load(at, mask=(cols < width)[None, :], other=0.0).to(tl.float32)
        sums = tl.fma(weight, tl.broadcast_to(features[None, :], [ROWS, BLOCK_D]), sums)
    return tl.sum(sums, axis=1) + tl.load(bias_ptr + rows)


@triton.jit
def _heads_kernel(
    features_ptr, weight_ptr, bias_ptr, table_ptr, classes_ptr, slots_ptr,
    logits_ptr, probabilities_ptr, indices_ptr,
    width, n_pages,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + image).to(tl.int64)
    n_classes = tl.load(classes_ptr + slot)
    places = tl.arange(0, BLOCK_T)[:, None]
    index = places * ROWS + tl.arange(0, ROWS)[None, :]  # [BLOCK_T, ROWS]

    logits = tl.full([BLOCK_T, ROWS], float("-inf"), dtype=tl.float32)
    for place in range(tl.cdiv(n_classes, ROWS)):
        page = tl.load(table_ptr + slot * n_pages + place).to(tl.int64)
        own = _page_logits(
            features_ptr + image * width, weight_ptr + page * ROWS * width, bias_ptr + page * ROWS, width,
            ROWS, BLOCK_D,
        )  # fmt: skip
        logits = tl.where(places == place, own[None, :], logits)
    logits = tl.where(index < n_classes, logits, float("-inf"))
    tl.store(logits_ptr + image * n_pages * ROWS + index, logits, mask=places < n_pages)

    # a NaN ranks last, so that the order stays defined; the sum makes every probability NaN all the same
    is_nan = logits != logits  # noqa: PLR0124 only a NaN differs from itself
    rank = tl.where(is_nan, float("-inf"), logits)
    best = tl.max(rank)
    total = tl.sum(tl.where(index < n_classes, tl.exp(logits - best), 0.0))
    left = index < n_classes
    for k in range(TOP_K):
        highest = tl.max(tl.where(left, rank, float("-inf")))
        chosen = tl.min(tl.where(left & (rank == highest), index, NO_CLASS))
        found = chosen != NO_CLASS
        probability = tl.where(found, tl.exp(highest - best) / total, 0.0)
        tl.store(probabilities_ptr + image * TOP_K + k, probability)
        tl.store(indices_ptr + image * TOP_K + k, tl.where(found, chosen, -1))
        left = left & (index != chosen)


def heads_triton(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    classes: Tensor,
    slots: Tensor,
    *,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    features = aligned(features.contiguous())
    batch, width = features.shape
    rows, n_pages = weight.shape[1], table.shape[1]
    logits = torch.empty((batch, n_pages * rows), dtype=torch.float32, device=features.device)
    probabilities = torch.empty((batch, top_k), dtype=torch.float32, device=features.device)
    indices = torch.empty((batch, top_k), dtype=torch.int32, device=features.device)
    with torch.cuda.device_of(features):
        _heads_kernel[(batch,)](
            features, weight, bias, table, classes, slots, logits, probabilities, indices,
            width, n_pages,
            TOP_K=top_k, ROWS=rows, BLOCK_T=triton.next_power_of_2(n_pages),
            BLOCK_D=block_of(width, largest=256), num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
    return logits, probabilities, indices
