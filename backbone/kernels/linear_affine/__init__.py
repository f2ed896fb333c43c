"""`linear_affine`: a frozen linear layer that ends in the slot's affine, an activation and a residual add."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from backbone.errors import ShapeMismatch
from backbone.kernels.activations import check_activation
from backbone.kernels.checks import check_like, check_rows
from backbone.kernels.linear_affine.reference import linear_affine_reference
from backbone.kernels.linear_affine.tuning import choose


def linear_affine(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    *,
    act: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return `act((x @ weightᵀ) · scale[slot] + shift[slot]) + residual`, contiguous.

    Args:
        x: Activations [.., C_in] of B images, images outermost.
        weight: The frozen weight, [C_out, C_in], in the dtype of x; its bias is in the bank's shift.
        scale: γ' of the bank at this site, [S, C_out], fp32; rows may be strided.
        shift: β' of the bank at this site, like `scale`.
        slots: Bank row of each image, [B], int32. The caller keeps them below S: a check would sync.
        act: none, gelu, gelu_tanh, silu, relu or relu6.
        residual: [.., C_out] like the result; added after the activation.

    Raises:
        ShapeMismatch: If a tensor does not fit the shapes above.
        TypeError: If a dtype does not.
        ValueError: If there is no such activation.
    """
    check_rows(x, scale, shift, slots, width=weight.shape[0])
    check_activation(act)
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ShapeMismatch("weight", f"[C_out, {x.shape[-1]}]", str(list(weight.shape)))
    check_like("weight", weight, weight.shape, x.dtype)
    if residual is not None:
        check_like("residual", residual, [*x.shape[:-1], weight.shape[0]], x.dtype)
    out: Tensor = _linear_affine(x, weight, scale, shift, slots, residual, act=act)
    return out


@custom_op("ssfserve::linear_affine", mutates_args=(), device_types="cpu")
def _linear_affine(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    residual: Tensor | None,
    *,
    act: str,
) -> Tensor:
    return linear_affine_reference(x, weight, scale, shift, slots, residual, act=act)


@_linear_affine.register_kernel("cuda")
def _on_cuda(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    residual: Tensor | None,
    *,
    act: str,
) -> Tensor:
    arch, processors = device_facts(x.device)
    per_image = x.shape[:-1].numel() // len(slots)
    choice = choose(arch, x.dtype, weight.shape[0], weight.shape[1], per_image)
    if choice.use == "cublas":
        from backbone.kernels.affine.triton_impl import affine_triton

        return affine_triton(F.linear(x, weight), scale, shift, slots, residual, act=act)
    from backbone.kernels.linear_affine.triton_impl import linear_affine_triton

    return linear_affine_triton(
        x, weight, scale, shift, slots, residual, act=act, tile=choice.tile, programs=processors
    )


@_linear_affine.register_fake
def _of_shape(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    residual: Tensor | None,
    *,
    act: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@lru_cache
def device_facts(device: torch.device) -> tuple[str, int]:
    """Return the architecture (`sm_90`) and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return f"sm_{properties.major}{properties.minor}", properties.multi_processor_count
