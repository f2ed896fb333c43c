"""Fixtures of the kernel cases: where they run, and outputs that start as NaN between guards."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton
from torch import Tensor

GUARD = 64


@pytest.fixture
def device() -> torch.device:
    """The CPU under Triton's interpreter, else the GPU."""
    return torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")


@pytest.fixture(autouse=True)
def floats_warn_of_nothing() -> Iterator[None]:
    """Let the interpreter's numpy come to infinity or NaN in silence, as a GPU does."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield


@pytest.fixture(autouse=True)
def guarded_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give `torch.empty` poisoned memory, and see afterwards that nobody wrote beside it."""
    buffers: list[Tensor] = []
    empty = torch.empty

    def poisoned(
        shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, **others: Any
    ) -> Tensor:
        if others:  # PyTorch's own use of it
            return empty(shape, dtype=dtype, device=device, **others)
        size = math.prod(shape)
        buffers.append(torch.full((size + 2 * GUARD,), poison_of(dtype), dtype=dtype, device=device))
        return buffers[-1][GUARD : GUARD + size].view(shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    yield
    for buffer in buffers:
        for guard in (buffer[:GUARD], buffer[-GUARD:]):
            poison = torch.full_like(guard, poison_of(guard.dtype))
            assert torch.equal(guard.view(torch.uint8), poison.view(torch.uint8)), "a write out of bounds"


def poison_of(dtype: torch.dtype) -> float | int:
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).min
