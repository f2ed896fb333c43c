"""`scaled_linear_affine`: `linear_affine` on fp8 operands; the scales of both are in its epilogue."""

import torch
from torch import Tensor
from torch.library import custom_op

from backbone.errors import ShapeMismatch
from backbone.kernels.activations import check_activation
from backbone.kernels.checks import check_activation_dtype, check_bank, check_like
from backbone.kernels.quantize.reference import FP8
from backbone.kernels.scaled_linear_affine.reference import scaled_linear_affine_reference


def scaled_linear_affine(
    x: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    *,
    act: str = "none",
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Return `act((x @ weightᵀ) · row_scale · scale[slot] + shift[slot]) + residual` in `dtype`, contiguous.

    Args:
        x: Activations [.., C_in] of B images in e4m3, images outermost, from `quantize`.
        row_scale: What a row's values are worth, [rows], fp32, from `quantize`.
        weight: The frozen weight, [C_out, C_in], e4m3; what a channel's values are worth is in `scale`.
        scale: γ' of the bank at this site, [S, C_out], fp32; rows may be strided.
        shift: β' of the bank at this site, like `scale`.
        slots: Bank row of each image, [B], int32. The caller keeps them below S: a check would sync.
        act: none, gelu, gelu_tanh, silu, relu or relu6.
        residual: [.., C_out] in `dtype`; added after the activation.
        dtype: fp32, fp16 or bf16.

    Raises:
        ShapeMismatch: If a tensor does not fit the shapes above.
        TypeError: If a dtype does not.
        ValueError: If there is no such activation.
    """
    check_activation_dtype("dtype", dtype)
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ShapeMismatch("weight", f"[C_out, {x.shape[-1]}]", str(list(weight.shape)))
    check_like("x", x, x.shape, FP8)
    check_like("weight", weight, weight.shape, FP8)
    check_like("row_scale", row_scale, [x.shape[:-1].numel()], torch.float32)
    check_bank(x, scale, shift, slots, width=weight.shape[0])
    check_activation(act)
    if residual is not None:
        check_like("residual", residual, [*x.shape[:-1], weight.shape[0]], dtype)
    out: Tensor = _scaled_linear_affine(
        x, row_scale, weight, scale, shift, slots, residual, act=act, dtype=dtype
    )
    return out


@custom_op("ssfserve::scaled_linear_affine", mutates_args=(), device_types="cpu")
def _scaled_linear_affine(
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
    return scaled_linear_affine_reference(
        x, row_scale, weight, scale, shift, slots, residual, act=act, dtype=dtype
    )


@_scaled_linear_affine.register_kernel("cuda")
def _on_cuda(
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
    from backbone.kernels.linear_affine import device_facts
    from backbone.kernels.linear_affine.triton_impl import linear_affine_triton
    from backbone.kernels.linear_affine.tuning import choose

    arch, processors = device_facts(x.device)
    per_image = x.shape[:-1].numel() // len(slots)
    tile = choose(arch, x.dtype, weight.shape[0], weight.shape[1], per_image).tile
    return linear_affine_triton(
        x, weight, scale, shift, slots, residual,
        act=act, tile=tile, programs=processors, row_scale=row_scale, dtype=dtype,
    )  # fmt: skip


@_scaled_linear_affine.register_fake
def _of_shape(
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
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)
