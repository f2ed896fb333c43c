import pytest
import torch

from backbone.kernels.linear_affine.triton_impl import linear_affine_triton
from backbone.kernels.linear_affine.tuning import Tile
from backbone.kernels.quantize.reference import quantize_reference
from backbone.kernels.scaled_linear_affine.reference import scaled_linear_affine_reference
from tests.unit.kernels.inputs import bank, every_mix, randn, slots_of

TILE = Tile(32, 32, 32, num_warps=4, num_stages=2)


def check(per_image: int, n_out: int, n_in: int, mix: str, act: str, device: torch.device) -> None:
    x, row_scale = quantize_reference(randn(3, per_image, n_in, dtype=torch.float32, device=device))
    weight, worth = quantize_reference(
        randn(n_out, n_in, dtype=torch.float32, device=device, seed=1) / n_in**0.5
    )
    scale, shift = bank(n_out, device)
    residual = randn(3, per_image, n_out, dtype=torch.float32, device=device, seed=2)
    inputs = (scale * worth, shift, slots_of(mix, 3, device), residual)
    actual = linear_affine_triton(
        x, weight, *inputs, act=act, tile=TILE, programs=3, row_scale=row_scale, dtype=torch.float32
    )
    expected = scaled_linear_affine_reference(x, row_scale, weight, *inputs, act=act, dtype=torch.float32)
    # the tensor cores of some GPUs add fp8 products with 14 bits
    tolerance = 1e-5 if device.type == "cpu" else 1e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@every_mix
def test_every_mix(mix: str, device: torch.device) -> None:
    check(9, 33, 40, mix, "none", device)


@pytest.mark.parametrize("per_image", [1, 37])
def test_lengths_of_images(per_image: int, device: torch.device) -> None:
    check(per_image, 40, 64, "distinct", "gelu", device)
