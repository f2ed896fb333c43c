"""`normalize`: uint8 pixels to the model's dtype with mean and standard deviation, in the model's layout."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from backbone.errors import ShapeMismatch
from backbone.kernels.checks import check_activation_dtype
from backbone.kernels.normalize.reference import in_layout, normalize_reference


def pixel_affine(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return scale and shift [C], fp32, that take a pixel of 0 to 255 to `(pixel / 255 - mean) / std`."""
    means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * stds)).float(), (-means / stds).float()


def normalize(
    images: Tensor, scale: Tensor, shift: Tensor, *, dtype: torch.dtype, channels_last: bool = False
) -> Tensor:
    """Return `images · scale + shift`, [B, C, H, W] in `dtype`, contiguous or channels last in memory.

    Args:
        images: Pixels, [B, C, H, W], uint8, in any layout.
        scale: Factor by channel, [C], fp32.
        shift: Summand by channel, [C], fp32.
        dtype: fp32, fp16 or bf16.
        channels_last: Layout of the result.

    Raises:
        ShapeMismatch: If a tensor does not fit the shapes above.
        TypeError: If a dtype does not.
    """
    if images.ndim != 4 or not images.numel():
        raise ShapeMismatch("images", "[B, C, H, W], none of them 0", str(list(images.shape)))
    if images.dtype != torch.uint8:
        raise TypeError(f"images: expected uint8, got {images.dtype}")
    check_activation_dtype("dtype", dtype)
    for name, vector in (("scale", scale), ("shift", shift)):
        if vector.shape != images.shape[1:2]:
            raise ShapeMismatch(name, f"[{images.shape[1]}]", str(list(vector.shape)))
        if vector.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32, got {vector.dtype}")
    out: Tensor = _normalize(images, scale, shift, dtype=dtype, channels_last=channels_last)
    return out


@custom_op("ssfserve::normalize", mutates_args=(), device_types="cpu")
def _normalize(
    images: Tensor, scale: Tensor, shift: Tensor, *, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    return normalize_reference(images, scale, shift, dtype=dtype, channels_last=channels_last)


@_normalize.register_kernel("cuda")
def _on_cuda(
    images: Tensor, scale: Tensor, shift: Tensor, *, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    from backbone.kernels.normalize.triton_impl import normalize_triton

    return normalize_triton(images, scale, shift, dtype=dtype, channels_last=channels_last)


@_normalize.register_fake
def _of_shape(
    images: Tensor, scale: Tensor, shift: Tensor, *, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    batch, channels, height, width = images.shape
    shape = (batch, height, width, channels) if channels_last else images.shape
    return in_layout(images.new_empty(shape, dtype=dtype), channels_last)
