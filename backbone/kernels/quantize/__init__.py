"""`quantize`: activations to fp8 (e4m3), each row by its own largest value, for `scaled_linear_affine`."""

import torch
from torch import Tensor
from torch.library import custom_op

from backbone.errors import ShapeMismatch
from backbone.kernels.checks import check_activation_dtype
from backbone.kernels.quantize.reference import FP8, quantize_reference

MAX_CHANNELS = 16384  # a row stays in one program's registers


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return values like x in e4m3, contiguous, and the scale of each row, [rows], fp32: x ≈ value · scale.

    A row depends on nothing but itself.

    Args:
        x: Activations [.., C], C at most 16384; fp32, fp16 or bf16.

    Raises:
        ShapeMismatch: If x has no or too many channels.
        TypeError: If its dtype does not fit.
    """
    check_activation_dtype("x", x.dtype)
    if x.ndim < 2 or not x.numel() or x.shape[-1] > MAX_CHANNELS:
        raise ShapeMismatch("x", f"[.., C], C at most {MAX_CHANNELS}", str(list(x.shape)))
    values, scales = _quantize(x)
    return values, scales


@custom_op("ssfserve::quantize", mutates_args=(), device_types="cpu")
def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_reference(x)


@_quantize.register_kernel("cuda")
def _on_cuda(x: Tensor) -> tuple[Tensor, Tensor]:
    from backbone.kernels.quantize.triton_impl import quantize_triton

    return quantize_triton(x)


@_quantize.register_fake
def _of_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.shape[:-1].numel()
    return x.new_empty(x.shape, dtype=FP8), x.new_empty((rows,), dtype=torch.float32)
