import pytest
import torch
from torch import Tensor

from backbone.kernels.activations import ACTIVATIONS
from backbone.kernels.affine.reference import affine_reference
from backbone.kernels.affine.triton_impl import affine_triton
from tests.unit.kernels.inputs import assert_close, bank, every_dtype, every_mix, randn, slots_of


def check(x: Tensor, slots: Tensor, *, act: str = "none", residual: Tensor | None = None) -> None:
    inputs = (x, *bank(x.shape[-1], x.device), slots)
    actual = affine_triton(*inputs, residual, act=act)
    assert_close(actual, affine_reference(*inputs, residual, act=act))


@every_dtype
@every_mix
def test_every_mix(mix: str, dtype: torch.dtype, device: torch.device) -> None:
    check(randn(4, 5, 33, dtype=dtype, device=device), slots_of(mix, 4, device))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1025), (3, 2, 96), (2, 37, 129), (1, 197, 40)], ids=str)
def test_odd_shapes(shape: tuple[int, ...], device: torch.device) -> None:
    check(randn(*shape, dtype=torch.float32, device=device), slots_of("distinct", shape[0], device))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_activation_and_residual(act: str, residual: bool, device: torch.device) -> None:
    x = 4 * randn(2, 9, 33, dtype=torch.float32, device=device)
    beside = randn(2, 9, 33, dtype=torch.float32, device=device, seed=3) if residual else None
    check(x, slots_of("distinct", 2, device), act=act, residual=beside)


@pytest.mark.parametrize("shape", [(3, 4, 5, 24), (12, 5, 24)], ids=["NHWC", "4 windows an image"])
def test_rows_of_an_image_in_several_axes(shape: tuple[int, ...], device: torch.device) -> None:
    check(randn(*shape, dtype=torch.float32, device=device), slots_of("distinct", 3, device))


@pytest.mark.parametrize("view", ["transposed", "part of wider rows", "every second token", "odd start"])
def test_strided_input(view: str, device: torch.device) -> None:
    wide = randn(2, 64, 96, dtype=torch.float32, device=device)
    x = {
        "transposed": wide.transpose(1, 2)[:, :, :40],
        "part of wider rows": wide[:, :, 16:56],
        "every second token": wide[:, ::2, :40],
        "odd start": wide.flatten()[1 : 1 + 2 * 8 * 40].view(2, 8, 40),
    }[view]
    check(x, slots_of("distinct", 2, device), act="gelu", residual=x)


def test_bank_with_channels_apart(device: torch.device) -> None:
    x, slots = randn(2, 3, 24, dtype=torch.float32, device=device), slots_of("distinct", 2, device)
    together = bank(24, device)
    apart = [vectors.T.contiguous().T for vectors in together]
    expected = affine_triton(x, *together, slots, None, act="none")
    assert torch.equal(affine_triton(x, *apart, slots, None, act="none"), expected)


@every_dtype
def test_identity_slot_leaves_the_input_unchanged(dtype: torch.dtype, device: torch.device) -> None:
    x, slots = randn(2, 3, 64, dtype=dtype, device=device), slots_of("identity", 2, device)
    assert torch.equal(affine_triton(x, *bank(64, device), slots, None, act="none"), x)


@every_dtype
def test_result_does_not_depend_on_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    x, slots = randn(4, 19, 65, dtype=dtype, device=device), slots_of("distinct", 4, device)
    together = affine_triton(x, *bank(65, device), slots, x, act="gelu")
    for i in range(4):
        one = slice(i, i + 1)
        alone = affine_triton(x[one], *bank(65, device), slots[one], x[one], act="gelu")
        assert torch.equal(alone[0], together[i])


def test_poisoned_slot_changes_only_its_own_rows(device: torch.device) -> None:
    x, slots = randn(3, 5, 48, dtype=torch.float32, device=device), slots_of("distinct", 3, device)
    scale, shift = bank(48, device)
    clean = affine_triton(x, scale, shift, slots, None, act="relu")
    scale[2] = torch.nan
    poisoned = affine_triton(x, scale, shift, slots, None, act="relu")
    assert torch.equal(poisoned[[0, 2]], clean[[0, 2]])
    assert poisoned[1].isnan().all()
