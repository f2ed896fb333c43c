"""The kernels' cases under Triton's interpreter, and what holds of the public ops on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from backbone.errors import ShapeMismatch
from backbone.kernels.affine import affine
from tests.kernel_cases import OPS, Outcomes, run_cases


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, str]:
    return run_cases(tmp_path_factory.mktemp("cases"), interpret=True)


@pytest.mark.parametrize("op", OPS)
def test_cases_pass_in_the_interpreter(op: str, interpreted: tuple[Outcomes, str]) -> None:
    outcomes, output = interpreted
    assert outcomes[op], output
    assert set(outcomes[op]) == {"ok"}, output


def affine_arguments(dtype: torch.dtype) -> tuple[Tensor, ...]:
    x = torch.randn(2, 3, 8, dtype=dtype)
    return x, torch.randn(4, 8), torch.randn(4, 8), torch.tensor([3, 1], dtype=torch.int32)


@pytest.mark.parametrize("residual", [False, True])
def test_affine_is_a_lawful_custom_op(residual: bool) -> None:
    arguments = affine_arguments(torch.bfloat16)
    beside = arguments[0] if residual else None
    torch.library.opcheck(torch.ops.ssfserve.affine.default, (*arguments, beside), {"act": "gelu"})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": torch.zeros(3, 3, 8)}, ShapeMismatch),  # 9 rows of 2 images
        ({"x": torch.zeros(2, 3, 7)}, ShapeMismatch),
        ({"x": torch.zeros(2, 3, 8, dtype=torch.int32)}, TypeError),
        ({"scale": torch.zeros(4, 7)}, ShapeMismatch),
        ({"shift": torch.zeros(4, 8, dtype=torch.float16)}, TypeError),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, TypeError),
        ({"slots": torch.zeros(0, dtype=torch.int32)}, ShapeMismatch),
        ({"residual": torch.zeros(2, 3, 1)}, ShapeMismatch),
        ({"residual": torch.zeros(2, 3, 8).bfloat16()}, TypeError),
        ({"act": "softplus"}, ValueError),
    ],
)
def test_affine_refuses_what_does_not_fit(change: dict[str, Any], error: type[Exception]) -> None:
    x, scale, shift, slots = affine_arguments(torch.float32)
    with pytest.raises(error, match=next(iter(change))):
        affine(**{"x": x, "scale": scale, "shift": shift, "slots": slots} | change)
