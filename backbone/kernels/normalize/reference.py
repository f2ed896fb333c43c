"""Ground truth for `normalize`, in plain PyTorch. Clear first, fast never."""

import torch
from torch import Tensor


def normalize_reference(
    images: Tensor, scale: Tensor, shift: Tensor, *, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """Compute in the dtype of `scale` and round once."""
    out = (images * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(dtype)
    return in_layout(
        out.permute(0, 2, 3, 1).contiguous() if channels_last else out.contiguous(), channels_last
    )


def in_layout(memory: Tensor, channels_last: bool) -> Tensor:
    """See [B, H, W, C] as [B, C, H, W] if channels come last in memory."""
    return memory.permute(0, 3, 1, 2) if channels_last else memory
