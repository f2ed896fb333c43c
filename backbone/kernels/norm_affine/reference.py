"""Ground truth for `norm_affine` and `add_norm_affine`, in plain PyTorch. Clear first, fast never."""

import torch
from torch import Tensor


def norm_affine_reference(
    x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float
) -> Tensor:
    """Compute in fp32 (fp64 for fp64) and round once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(wide).reshape(len(slots), -1, x.shape[-1])  # [B, m, C]
    if kind == "layer":
        rows = rows - rows.mean(dim=-1, keepdim=True)
    normal = rows * (rows.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    gamma, beta = scale[slots.long()].unsqueeze(1), shift[slots.long()].unsqueeze(1)  # [B, 1, C]
    return (normal * gamma + beta).reshape(x.shape).to(x.dtype).contiguous()


def add_norm_affine_reference(
    x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    """Add first, round to the dtype of x as the plain model does, then normalise what was rounded."""
    total = (x + delta).contiguous()
    return total, norm_affine_reference(total, scale, shift, slots, kind=kind, eps=eps)
