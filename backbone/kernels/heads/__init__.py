"""`heads`: each image meets the classifier of its own slot, whatever its number of classes, in one launch."""

import torch
from torch import Tensor
from torch.library import custom_op

from backbone.errors import ShapeMismatch
from backbone.kernels.checks import check_activation_dtype
from backbone.kernels.heads.pool import HeadPool
from backbone.kernels.heads.reference import heads_reference

__all__ = ["HeadPool", "heads"]


def heads(features: Tensor, pool: HeadPool, slots: Tensor, *, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Classify each image with the head of its slot.

    Args:
        features: Pooled features, [B, D], fp32, fp16 or bf16.
        pool: The heads, on the same device.
        slots: Slot of each image, [B], int32. The caller keeps them below S: a check would sync.
        top_k: How many of the best classes to name.

    Returns:
        Logits [B, widest K in whole pages], fp32, -inf from the slot's K on; probabilities [B, top_k], fp32,
        falling, 0 from K on; their class indices [B, top_k], int32, the smaller of equals first, -1 from K
        on. A NaN among an image's logits ranks last and makes its probabilities NaN.

    Raises:
        ShapeMismatch: If a tensor does not fit the shapes above, or top_k is not 1 or more.
        TypeError: If a dtype does not.
    """
    width = pool.weight.shape[2]
    check_activation_dtype("features", features.dtype)
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        raise ShapeMismatch("features", f"[B, {width}], B > 0", str(list(features.shape)))
    if slots.shape != features.shape[:1]:
        raise ShapeMismatch("slots", f"[{len(features)}]", str(list(slots.shape)))
    if slots.dtype != torch.int32:
        raise TypeError(f"slots: expected int32, got {slots.dtype}")
    if top_k < 1:
        raise ShapeMismatch("top_k", "1 or more", str(top_k))
    tensors = (features, pool.weight, pool.bias, pool.table, pool.classes, slots)
    logits, probabilities, indices = _heads(*tensors, top_k=top_k)
    return logits, probabilities, indices


@custom_op("ssfserve::heads", mutates_args=(), device_types="cpu")
def _heads(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    classes: Tensor,
    slots: Tensor,
    *,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return heads_reference(features, weight, bias, table, classes, slots, top_k=top_k)


@_heads.register_kernel("cuda")
def _on_cuda(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    classes: Tensor,
    slots: Tensor,
    *,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from backbone.kernels.heads.triton_impl import heads_triton

    return heads_triton(features, weight, bias, table, classes, slots, top_k=top_k)


@_heads.register_fake
def _of_shapes(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    classes: Tensor,
    slots: Tensor,
    *,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = features.shape[0]
    logits = features.new_empty((batch, table.shape[1] * weight.shape[1]), dtype=torch.float32)
    probabilities = features.new_empty((batch, top_k), dtype=torch.float32)
    return logits, probabilities, features.new_empty((batch, top_k), dtype=torch.int32)
