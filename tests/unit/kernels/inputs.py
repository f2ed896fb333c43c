"""Inputs of the kernel cases: task mixes by name, banks with strided rows, tensors with NaN all around."""

import pytest
import torch
from torch import Tensor

SLOTS = 7

# one unit in the last place of the output's dtype (Triton's interpreter cuts to bf16 where a GPU rounds to
# nearest); the arithmetic itself is fp32 on both sides
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

MIXES = {
    "identical": lambda b: [1] * b,
    "distinct": lambda b: [(i + 1) % SLOTS for i in range(b)],
    "uniform": lambda b: torch.randint(SLOTS, (b,), generator=torch.Generator().manual_seed(0)).tolist(),
    "skewed": lambda b: [2] + [5] * (b - 1),
    "identity": lambda b: [0] * b,
}

every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
every_mix = pytest.mark.parametrize("mix", MIXES)


def slots_of(mix: str, batch: int, device: torch.device) -> Tensor:
    return torch.tensor(MIXES[mix](batch), dtype=torch.int32, device=device)


def randn(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return amid_nan(torch.randn(shape, generator=generator).to(device, dtype))


def amid_nan(values: Tensor) -> Tensor:
    """Copy values into the middle of a buffer of NaN: a read out of bounds shows in the result."""
    around = torch.full((values.numel() + 512,), torch.nan, dtype=values.dtype, device=values.device)
    inside = around[256 : 256 + values.numel()].view(values.shape)
    return inside.copy_(values)


def bank(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scale and shift [S, C] as one site of an arena [S, 2, P]; row 0 is the identity."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.full((SLOTS, 2, channels + 24), torch.nan)
    site = rows[:, :, 8 : 8 + channels]
    site[:, 0] = 1 + 0.5 * torch.randn(SLOTS, channels, generator=generator)
    site[:, 1] = 0.5 * torch.randn(SLOTS, channels, generator=generator)
    site[0, 0], site[0, 1] = 1.0, 0.0
    site = rows.to(device)[:, :, 8 : 8 + channels]
    return site[:, 0], site[:, 1]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare to within a rounding of the dtype, relative to each value or to 1, whichever is larger."""
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
