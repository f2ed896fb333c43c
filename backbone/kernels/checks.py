"""What the public ops check before they choose an implementation. No check reads a tensor's values."""

import torch
from torch import Tensor

from backbone.errors import ShapeMismatch

ACTIVATIONS = (torch.float32, torch.float16, torch.bfloat16)


def check_activation_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in ACTIVATIONS:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {dtype}")


def check_rows(x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, width: int) -> None:
    """Check activations [.., C] in B · m rows against bank views [S, width] and slots [B].

    Raises:
        ShapeMismatch: If a shape does not fit.
        TypeError: If a dtype does not.
    """
    check_activation_dtype("x", x.dtype)
    check_bank(x, scale, shift, slots, width=width)


def check_bank(x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, width: int) -> None:
    """Check the same, but for the dtype of the activations."""
    if slots.ndim != 1 or not len(slots):
        raise ShapeMismatch("slots", "[B], B > 0", str(list(slots.shape)))
    if slots.dtype != torch.int32:
        raise TypeError(f"slots: expected int32, got {slots.dtype}")
    if x.ndim < 2 or not x.numel() or x.shape[:-1].numel() % len(slots):
        raise ShapeMismatch("x", f"[.., C] in rows of {len(slots)} images", str(list(x.shape)))
    for name, vectors in (("scale", scale), ("shift", shift)):
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ShapeMismatch(name, f"[S, {width}]", str(list(vectors.shape)))
        if vectors.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32, got {vectors.dtype}")


def check_like(name: str, other: Tensor, shape: torch.Size | list[int], dtype: torch.dtype) -> None:
    """Raise unless a tensor has this shape and dtype."""
    if list(other.shape) != list(shape):
        raise ShapeMismatch(name, str(list(shape)), str(list(other.shape)))
    if other.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {other.dtype}")
