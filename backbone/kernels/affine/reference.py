"""Ground truth for `affine`, in plain PyTorch. Clear first, fast never."""

import torch
from torch import Tensor

from backbone.kernels.activations import ACTIVATIONS


def affine_reference(
    x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, residual: Tensor | None, *, act: str
) -> Tensor:
    """Compute in fp32 (fp64 for fp64) and round once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(wide).reshape(len(slots), -1, x.shape[-1])  # [B, m, C]
    gamma, beta = scale[slots.long()].unsqueeze(1), shift[slots.long()].unsqueeze(1)  # [B, 1, C]
    out = ACTIVATIONS[act](rows * gamma + beta).reshape(x.shape)
    return (out if residual is None else out + residual.to(wide)).to(x.dtype).contiguous()
