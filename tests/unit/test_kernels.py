"""The kernels' cases under Triton's interpreter, and what holds of the public ops on a CPU."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
import torch

from backbone.errors import ShapeMismatch
from backbone.heads import Head
from backbone.kernels.affine import affine
from backbone.kernels.heads import HeadPool, heads
from backbone.kernels.linear_affine import linear_affine
from backbone.kernels.norm_affine import add_norm_affine, norm_affine
from backbone.kernels.normalize import normalize, pixel_affine
from backbone.kernels.quantize import quantize
from backbone.kernels.scaled_linear_affine import scaled_linear_affine
from tests.kernel_cases import OPS, Outcomes, run_cases

ops = torch.ops.ssfserve


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, str]:
    return run_cases(tmp_path_factory.mktemp("cases"), interpret=True)


@pytest.mark.skipif(
    version("triton") < "3.9", reason="the interpreter of this Triton does not run on NumPy 2.4 and later"
)
@pytest.mark.parametrize("op", OPS)
def test_cases_pass_in_the_interpreter(op: str, interpreted: tuple[Outcomes, str]) -> None:
    outcomes, output = interpreted
    assert outcomes[op], output
    assert set(outcomes[op]) == {"ok"}, output


X = torch.randn(2, 3, 8)
GAMMA, BETA = torch.randn(4, 8), torch.randn(4, 8)
SLOTS = torch.tensor([3, 1], dtype=torch.int32)
HALF = X.bfloat16()
PIXELS = torch.randint(256, (2, 3, 4, 5)).byte()
ONES = torch.ones(3)
WEIGHT = torch.randn(5, 8)
X8, SCALES = quantize(X)
WEIGHT8, _ = quantize(WEIGHT)
POOL = HeadPool(8, slots=2, max_classes=20, pages=3)
POOL.write(0, Head(torch.randn(20, 8), torch.randn(20)))

CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "affine": (ops.affine, (X, GAMMA, BETA, SLOTS, None), {"act": "gelu"}),
    "affine, residual": (ops.affine, (HALF, GAMMA, BETA, SLOTS, HALF), {"act": "none"}),
    "norm_affine": (ops.norm_affine, (X, GAMMA, BETA, SLOTS), {"kind": "rms", "eps": 1e-6}),
    "add_norm_affine": (
        ops.add_norm_affine,
        (HALF, HALF, GAMMA, BETA, SLOTS),
        {"kind": "layer", "eps": 1e-6},
    ),
    "linear_affine": (
        ops.linear_affine,
        (X, WEIGHT, GAMMA[:, :5], BETA[:, :5], SLOTS, torch.randn(2, 3, 5)),
        {"act": "silu"},
    ),
    "quantize": (ops.quantize, (HALF,), {}),
    "normalize": (ops.normalize, (PIXELS, ONES, ONES), {"dtype": torch.float16, "channels_last": False}),
    "normalize, NHWC": (ops.normalize, (PIXELS, ONES, ONES), {"dtype": torch.half, "channels_last": True}),
    "heads": (
        ops.heads,
        (HALF[0], POOL.weight, POOL.bias, POOL.table, POOL.classes, torch.zeros(3, dtype=torch.int32)),
        {"top_k": 2},
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_is_a_lawful_custom_op(call: str) -> None:
    op, arguments, options = CALLS[call]
    torch.library.opcheck(op.default, arguments, options)


def test_scaled_linear_affine_is_a_lawful_custom_op() -> None:
    arguments = (X8, SCALES, WEIGHT8, GAMMA[:, :5], BETA[:, :5], SLOTS, torch.randn(2, 3, 5).bfloat16())
    options = {"act": "gelu", "dtype": torch.bfloat16}
    # the other checks multiply their inputs, which PyTorch does not do in e4m3
    torch.library.opcheck(ops.scaled_linear_affine.default, arguments, options, test_utils="test_faketensor")


ROWS: dict[str, Any] = {"x": X, "scale": GAMMA, "shift": BETA, "slots": SLOTS}
ROWS_REFUSED: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"x": torch.zeros(3, 3, 8)}, ShapeMismatch),  # 9 rows of 2 images
    ({"x": torch.zeros(2, 3, 7)}, ShapeMismatch),
    ({"x": torch.zeros(2, 0, 8)}, ShapeMismatch),
    ({"x": X.int()}, TypeError),
    ({"scale": torch.zeros(4, 7)}, ShapeMismatch),
    ({"shift": BETA.half()}, TypeError),
    ({"slots": SLOTS.long()}, TypeError),
    ({"slots": SLOTS[:0]}, ShapeMismatch),
]


@pytest.mark.parametrize("op", [affine, norm_affine, partial(add_norm_affine, delta=X)])
@pytest.mark.parametrize(("change", "error"), ROWS_REFUSED)
def test_refuses_rows_that_do_not_fit(
    op: Callable[..., object], change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        op(**ROWS | change)


REFUSED: list[tuple[Callable[..., object], dict[str, Any], type[Exception]]] = [
    (affine, {"residual": X[:, :, :1]}, ShapeMismatch),
    (affine, {"residual": HALF}, TypeError),
    (affine, {"act": "softplus"}, ValueError),
    (norm_affine, {"kind": "batch"}, ValueError),
    (
        norm_affine,
        {"x": torch.zeros(2, 1, 8193), **dict.fromkeys(("scale", "shift"), torch.zeros(1, 8193))},
        ShapeMismatch,
    ),
    (add_norm_affine, {"delta": HALF}, TypeError),
]


@pytest.mark.parametrize(("op", "change", "error"), REFUSED)
def test_refuses(op: Callable[..., object], change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        op(**ROWS | change)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": PIXELS[0]}, ShapeMismatch),
        ({"images": PIXELS[:0]}, ShapeMismatch),
        ({"images": PIXELS.float()}, TypeError),
        ({"scale": torch.ones(4)}, ShapeMismatch),
        ({"shift": ONES.half()}, TypeError),
        ({"dtype": torch.float64}, TypeError),
    ],
)
def test_normalize_refuses(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        normalize(**{"images": PIXELS, "scale": ONES, "shift": ONES, "dtype": torch.float32} | change)


def test_pixel_affine_is_mean_and_standard_deviation() -> None:
    scale, shift = pixel_affine((0.4, 0.5), (0.2, 0.3))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 2, 1, 3)
    expected = torch.tensor([[-2.0, -1.0, 3.0], [-5 / 3, -1.0, 5 / 3]]).view(1, 2, 1, 3)
    torch.testing.assert_close(normalize(images, scale, shift, dtype=torch.float32), expected)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"features": torch.zeros(3, 7)}, ShapeMismatch),
        ({"features": torch.zeros(3, 8).double()}, TypeError),
        ({"slots": SLOTS}, ShapeMismatch),
        ({"slots": torch.zeros(3, dtype=torch.int64)}, TypeError),
        ({"top_k": 0}, ShapeMismatch),
    ],
)
def test_heads_refuses(change: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"features": X[0], "pool": POOL, "slots": torch.zeros(3, dtype=torch.int32), "top_k": 1}
    with pytest.raises(error):
        heads(**arguments | change)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"weight": torch.zeros(5, 7)}, ShapeMismatch),
        ({"weight": WEIGHT.half()}, TypeError),
        ({"scale": GAMMA}, ShapeMismatch),
        ({"residual": X}, ShapeMismatch),
        ({"act": "tanh"}, ValueError),
    ],
)
def test_linear_affine_refuses(change: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"x": X, "weight": WEIGHT, "scale": GAMMA[:, :5], "shift": BETA[:, :5], "slots": SLOTS}
    with pytest.raises(error):
        linear_affine(**arguments | change)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": X}, TypeError),
        ({"weight": WEIGHT}, TypeError),
        ({"weight": WEIGHT8[:, :7]}, ShapeMismatch),
        ({"row_scale": SCALES[:5]}, ShapeMismatch),
        ({"slots": SLOTS.long()}, TypeError),
        ({"residual": torch.zeros(2, 3, 5)}, TypeError),
        ({"act": "tanh"}, ValueError),
        ({"dtype": torch.float64}, TypeError),
    ],
)
def test_scaled_linear_affine_refuses(change: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"x": X8, "row_scale": SCALES, "weight": WEIGHT8, "slots": SLOTS}
    with pytest.raises(error):
        scaled_linear_affine(**arguments | {"scale": GAMMA[:, :5], "shift": BETA[:, :5]} | change)


@pytest.mark.parametrize(
    ("x", "error"),
    [(X.double(), TypeError), (X[0, 0], ShapeMismatch), (torch.zeros(1, 16385), ShapeMismatch)],
)
def test_quantize_refuses(x: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        quantize(x)


def test_quantised_rows_are_worth_what_they_were() -> None:
    x = torch.randn(4, 100) * torch.tensor([1e-6, 1.0, 1e4, 0.0])[:, None]
    values, scales = quantize(x)
    assert ((values.float() * scales[:, None] - x).abs() <= x.abs() / 16 + scales[:, None] * 2**-10).all()
    assert scales[3] == 1
