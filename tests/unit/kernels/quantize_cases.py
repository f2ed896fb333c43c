import pytest
import torch
from torch import Tensor

from backbone.kernels.quantize.reference import LARGEST, quantize_reference
from backbone.kernels.quantize.triton_impl import quantize_triton
from tests.unit.kernels.inputs import every_dtype, randn


@every_dtype
@pytest.mark.parametrize("channels", [1, 96, 200])
def test_values_and_scales(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    x = randn(3, 7, channels, dtype=dtype, device=device) * 50
    values, scales = quantize_triton(x)
    expected, expected_scales = quantize_reference(x)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    assert_near(values, expected, x)


def test_strided_rows(device: torch.device) -> None:
    x = randn(2, 8, 48, dtype=torch.float32, device=device)[:, 1:, 16:40]
    values, scales = quantize_triton(x)
    assert_near(values, quantize_reference(x)[0], x)
    assert torch.equal(scales, quantize_reference(x)[1])


def assert_near(actual: Tensor, expected: Tensor, x: Tensor) -> None:
    """Compare to within a step of 3 bits, with few that differ: quotients near the border of two values.

    Triton's interpreter rounds away from zero at every border, and loses the carry of what rounds up to a
    power of two; such values are left out there.
    """
    actual, expected = actual.float(), expected.float()
    distance = (actual - expected).abs()
    if not actual.is_cuda:
        quotient = x.float() / (x.float().abs().amax(-1, keepdim=True) / LARGEST)
        distance[(expected.frexp().mantissa.abs() == 0.5) & (quotient.abs() < expected.abs())] = 0
    assert (distance <= 1.01 * expected.abs().clamp(min=2**-6) / 8).all()
    assert (distance > 0).float().mean() < 0.02


def test_rows_do_not_depend_on_each_other(device: torch.device) -> None:
    x = randn(5, 40, dtype=torch.float32, device=device)
    together, scales = quantize_triton(x)
    x[1], x[3, 7] = 0.0, torch.nan
    values, others = quantize_triton(x)
    for row in (0, 2, 4):
        assert torch.equal(values[row].float(), together[row].float()) and others[row] == scales[row]
    assert others[1] == 1 and not values[1].float().any()
    assert others[3].isnan()
