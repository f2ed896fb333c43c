import pytest
import torch
import triton
from torch import Tensor

from backbone.kernels.activations import ACTIVATIONS
from backbone.kernels.linear_affine.reference import linear_affine_reference
from backbone.kernels.linear_affine.triton_impl import linear_affine_triton
from backbone.kernels.linear_affine.tuning import Tile
from tests.unit.kernels.inputs import TOLERANCE, bank, every_mix, randn, slots_of

# Triton's interpreter multiplies the bit patterns of bf16 operands in a dot
DTYPES = [dtype for dtype in TOLERANCE if dtype != torch.bfloat16 or not triton.knobs.runtime.interpret]

TILES = {
    "plain": Tile(16, 32, 16, num_warps=4, num_stages=2),
    "loads run ahead": Tile(16, 32, 16, num_warps=4, num_stages=2, flatten=True),
    "TMA": Tile(16, 32, 16, num_warps=4, num_stages=2, tma=True),
    "in halves": Tile(16, 256, 16, num_warps=4, num_stages=2),
}


def run(
    x: Tensor, weight: Tensor, slots: Tensor, residual: Tensor | None = None, *, act: str, tile: str
) -> Tensor:
    """Run on 3 programs, so that each has several tiles."""
    inputs = (x, weight, *bank(len(weight), x.device), slots, residual)
    return linear_affine_triton(*inputs, act=act, tile=TILES[tile], programs=3)


def check(
    x: Tensor,
    weight: Tensor,
    slots: Tensor,
    residual: Tensor | None = None,
    *,
    act: str = "none",
    tile: str = "plain",
) -> None:
    inputs = (x, weight, *bank(len(weight), x.device), slots, residual)
    actual = run(x, weight, slots, residual, act=act, tile=tile)
    # sums of as many terms as C_in, each of about 1, in another order
    tolerance = 4 * TOLERANCE[x.dtype]
    expected = linear_affine_reference(*inputs, act=act)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_mix
def test_every_mix(mix: str, dtype: torch.dtype, device: torch.device) -> None:
    x = randn(4, 9, 24, dtype=dtype, device=device)
    weight = randn(33, 24, dtype=dtype, device=device, seed=1) / 5
    check(x, weight, slots_of(mix, 4, device))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("per_image", [1, 5, 37])
def test_tiles_and_lengths_of_images(per_image: int, tile: str, device: torch.device) -> None:
    x = randn(3, per_image, 24, dtype=torch.float32, device=device)
    weight = randn(40, 24, dtype=torch.float32, device=device, seed=1) / 5
    check(x, weight, slots_of("distinct", 3, device), tile=tile)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (33, 17), (70, 50)])
def test_odd_widths(n_out: int, n_in: int, tile: str, device: torch.device) -> None:
    x = randn(2, 19, n_in, dtype=torch.float32, device=device)
    weight = randn(n_out, n_in, dtype=torch.float32, device=device, seed=1) / n_in**0.5
    check(x, weight, slots_of("distinct", 2, device), tile=tile)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("tile", ["plain", "in halves"])
def test_activation_and_residual(act: str, tile: str, device: torch.device) -> None:
    x = randn(2, 20, 32, dtype=torch.float16, device=device)
    weight = randn(40, 32, dtype=torch.float16, device=device, seed=1) / 6
    residual = randn(2, 20, 40, dtype=torch.float16, device=device, seed=2)
    check(x, weight, slots_of("distinct", 2, device), residual, act=act, tile=tile)


@pytest.mark.parametrize("tile", ["plain", "TMA"])
@pytest.mark.parametrize("view", ["transposed", "part of wider rows", "all but the first token", "odd start"])
def test_strided_input(view: str, tile: str, device: torch.device) -> None:
    wide = randn(2, 24, 48, dtype=torch.float32, device=device)
    x = {
        "transposed": wide.transpose(1, 2)[:, :, :20],
        "part of wider rows": wide[:, :, 16:36],
        "all but the first token": wide[:, 1:, :20],
        "odd start": wide.flatten()[1 : 1 + 2 * 8 * 20].view(2, 8, 20),
    }[view]
    weight = randn(20, 30, dtype=torch.float32, device=device, seed=1).T / 5
    residual = randn(2, x.shape[1], 64, dtype=torch.float32, device=device, seed=2)[:, :, 32:62]
    check(x, weight, slots_of("distinct", 2, device), residual, tile=tile)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", ["plain", "in halves"])
def test_result_does_not_depend_on_neighbours(tile: str, dtype: torch.dtype, device: torch.device) -> None:
    x, slots = randn(3, 19, 24, dtype=dtype, device=device), slots_of("distinct", 3, device)
    weight = randn(40, 24, dtype=dtype, device=device, seed=1)
    together = run(x, weight, slots, act="gelu", tile=tile)
    for i in range(3):
        alone = run(x[i : i + 1], weight, slots[i : i + 1], act="gelu", tile=tile)
        assert torch.equal(alone[0], together[i])


def test_poisoned_image_changes_only_itself(device: torch.device) -> None:
    x, slots = randn(3, 19, 24, dtype=torch.float32, device=device), slots_of("identical", 3, device)
    weight = randn(40, 24, dtype=torch.float32, device=device, seed=1)
    clean = run(x, weight, slots, act="relu", tile="plain")
    x[1] = torch.nan
    poisoned = run(x, weight, slots, act="relu", tile="plain")
    assert torch.equal(poisoned[[0, 2]], clean[[0, 2]])
    assert poisoned[1].isnan().all()
