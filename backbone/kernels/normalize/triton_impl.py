"""uint8 pixels to the model's dtype on the GPU: out = pixel * scale[channel] + shift[channel].

Shapes (strides in elements):
    images        [B, C, H, W]  uint8, pixels of a channel at one stride
    scale, shift  [C]           fp32
    out           [B, C, H, W]  fp32 | fp16 | bf16, contiguous or channels last

Numerics: one fp32 multiply-add, one rounding at the store.
Cost: memory bound: B * C * H * W * (1 + sizeof(out)) bytes.
Ground truth: reference.py. Tests: tests/unit/kernels/normalize_cases.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbone.kernels.normalize.reference import in_layout
from backbone.kernels.rows import aligned

BLOCK = 2048


@triton.jit
def _normalize_kernel(
    images_ptr, scale_ptr, shift_ptr, out_ptr,
    n_pixels, image_stride, channel_stride, pixel_stride,
    N_CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program per BLOCK values that lie side by side in the output: of one channel, or of all in turn
    if CHANNELS_LAST:
        blocks = tl.cdiv(n_pixels * N_CHANNELS, BLOCK)
        image = (tl.program_id(0) // blocks).to(tl.int64)
        inside = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        channel, pixel = inside % N_CHANNELS, inside // N_CHANNELS
    else:
        blocks = tl.cdiv(n_pixels, BLOCK)
        plane = tl.program_id(0) // blocks
        image, channel = (plane // N_CHANNELS).to(tl.int64), plane % N_CHANNELS
        pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        inside = channel * n_pixels + pixel
    mask = pixel < n_pixels

    at = images_ptr + image * image_stride + channel * channel_stride + pixel.to(tl.int64) * pixel_stride
    pixels = tl.load(at, mask=mask, other=0).to(tl.float32)
    out = tl.fma(pixels, tl.load(scale_ptr + channel), tl.load(shift_ptr + channel))
    at = out_ptr + image * n_pixels * N_CHANNELS + inside
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=mask)


def normalize_triton(
    images: Tensor, scale: Tensor, shift: Tensor, *, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    batch, channels, height, width = images.shape
    if min(height, width) > 1 and images.stride(2) != width * images.stride(3):
        images = images.contiguous()  # rows of pixels lie apart
    images = aligned(images)
    pixel_stride = images.stride(3 if width > 1 else 2)  # PyTorch reports any stride for an axis of length 1
    n_pixels = height * width
    image_stride = images.stride(0) if batch > 1 else channels * n_pixels
    shape = (batch, height, width, channels) if channels_last else (batch, channels, height, width)
    out = torch.empty(shape, dtype=dtype, device=images.device)
    blocks = (
        triton.cdiv(n_pixels * channels, BLOCK) if channels_last else channels * triton.cdiv(n_pixels, BLOCK)
    )
    with torch.cuda.device_of(images):
        _normalize_kernel[(batch * blocks,)](
            images, scale.contiguous(), shift.contiguous(), out,
            n_pixels, image_stride, images.stride(1), pixel_stride,
            N_CHANNELS=channels, CHANNELS_LAST=channels_last, BLOCK=BLOCK,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return in_layout(out, channels_last)
