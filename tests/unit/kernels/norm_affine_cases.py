import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.kernels.norm_affine.reference import add_norm_affine_reference, norm_affine_reference
from backbone.kernels.norm_affine.triton_impl import norm_affine_triton
from tests.unit.kernels.inputs import assert_close, bank, every_dtype, every_mix, randn, slots_of

EPS = 1e-6


def normed(x: Tensor, slots: Tensor, *, kind: str = "layer") -> Tensor:
    return norm_affine_triton(x, None, *bank(x.shape[-1], x.device), slots, kind=kind, eps=EPS)[1]


def check(x: Tensor, slots: Tensor, *, kind: str = "layer") -> None:
    expected = norm_affine_reference(x, *bank(x.shape[-1], x.device), slots, kind=kind, eps=EPS)
    assert_close(normed(x, slots, kind=kind), expected)


@every_dtype
@every_mix
def test_every_mix(mix: str, dtype: torch.dtype, device: torch.device) -> None:
    check(randn(4, 5, 33, dtype=dtype, device=device), slots_of(mix, 4, device))


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1025), (3, 50, 96), (2, 3, 5, 129)], ids=str)
def test_odd_shapes(shape: tuple[int, ...], kind: str, device: torch.device) -> None:
    x = randn(*shape, dtype=torch.float32, device=device)
    check(x, slots_of("distinct", shape[0], device), kind=kind)


@every_dtype
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_residual_add_before(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    x, delta = (randn(3, 7, 40, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    inputs = (*bank(40, device), slots_of("distinct", 3, device))
    total, out = norm_affine_triton(x, delta, *inputs, kind=kind, eps=EPS)
    assert_close(total, add_norm_affine_reference(x, delta, *inputs, kind=kind, eps=EPS)[0])
    assert_close(out, norm_affine_reference(total, *inputs, kind=kind, eps=EPS))


def test_residual_of_another_layout(device: torch.device) -> None:
    x = randn(2, 7, 40, dtype=torch.float32, device=device)
    delta = randn(2, 14, 96, dtype=torch.float32, device=device, seed=1)[:, ::2, 16:56]
    slots = slots_of("distinct", 2, device)
    for pair in ((x, delta), (delta, x)):
        total, out = norm_affine_triton(*pair, *bank(40, device), slots, kind="layer", eps=EPS)
        assert torch.equal(total, x + delta)
        assert torch.equal(out, normed(x + delta, slots))


def test_slot_zero_is_the_plain_norm(device: torch.device) -> None:
    x = 3 + randn(2, 5, 48, dtype=torch.float32, device=device)
    assert_close(normed(x, slots_of("identity", 2, device)), F.layer_norm(x, (48,), eps=EPS))


def test_large_mean_does_not_cancel(device: torch.device) -> None:
    x = 1000 + randn(2, 3, 64, dtype=torch.float32, device=device)
    # the input itself is rounded to 6e-5; E[x²] - E[x]² would be off by 0.06
    exact = F.layer_norm(x.double(), (64,), eps=EPS).float()
    torch.testing.assert_close(normed(x, slots_of("identity", 2, device)), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("view", ["transposed", "part of wider rows", "every second token", "odd start"])
def test_strided_input(view: str, device: torch.device) -> None:
    wide = randn(2, 64, 96, dtype=torch.float32, device=device)
    x = {
        "transposed": wide.transpose(1, 2)[:, :, :40],
        "part of wider rows": wide[:, :, 16:56],
        "every second token": wide[:, ::2, :40],
        "odd start": wide.flatten()[1 : 1 + 2 * 8 * 40].view(2, 8, 40),
    }[view]
    check(x, slots_of("distinct", 2, device))


@every_dtype
def test_result_does_not_depend_on_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    x, slots = randn(4, 19, 65, dtype=dtype, device=device), slots_of("distinct", 4, device)
    together = normed(x, slots)
    for i in range(4):
        assert torch.equal(normed(x[i : i + 1], slots[i : i + 1])[0], together[i])


def test_poisoned_image_changes_only_itself(device: torch.device) -> None:
    x, slots = randn(3, 5, 48, dtype=torch.float32, device=device), slots_of("identical", 3, device)
    clean = normed(x, slots)
    x[1, 2] = torch.nan
    poisoned = normed(x, slots)
    assert poisoned[1, 2].isnan().all()
    poisoned[1, 2] = clean[1, 2]
    assert torch.equal(poisoned, clean)
