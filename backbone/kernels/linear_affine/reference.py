"""Ground truth for `linear_affine`, in plain PyTorch. Clear first, fast never."""

import torch
from torch import Tensor

from backbone.kernels.activations import ACTIVATIONS


def linear_affine_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    residual: Tensor | None,
    *,
    act: str,
) -> Tensor:
    """Compute in fp32 (fp64 for fp64) and round once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    product = x.to(wide) @ weight.to(wide).T  # [.., C_out]
    rows = product.reshape(len(slots), -1, product.shape[-1])  # [B, m, C_out]
    gamma, beta = scale[slots.long()].unsqueeze(1), shift[slots.long()].unsqueeze(1)  # [B, 1, C_out]
    out = ACTIVATIONS[act](rows * gamma + beta).reshape(product.shape)
    return (out if residual is None else out + residual.to(wide)).to(x.dtype).contiguous()
