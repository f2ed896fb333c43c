"""Ground truth for `scaled_linear_affine`, in plain PyTorch. Clear first, fast never."""

import torch
from torch import Tensor

from backbone.kernels.linear_affine.reference import linear_affine_reference


def scaled_linear_affine_reference(
    x: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    residual: Tensor | None,
    *,
    act: str,
    dtype: torch.dtype,
) -> Tensor:
    """Compute in fp32 from what the 8 bits mean, and round once."""
    rows = x.float() * row_scale.view(*x.shape[:-1], 1)
    added = None if residual is None else residual.float()
    return linear_affine_reference(rows, weight.float(), scale, shift, slots, added, act=act).to(dtype)
