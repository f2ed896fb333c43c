import pytest
import torch
from torch import Tensor

from backbone.heads import Head
from backbone.kernels.heads.pool import HeadPool
from backbone.kernels.heads.reference import heads_reference
from backbone.kernels.heads.triton_impl import heads_triton
from tests.unit.kernels.inputs import SLOTS, every_dtype, every_mix, randn, slots_of

Result = tuple[Tensor, Tensor, Tensor]

CLASSES = [0, 1, 2, 16, 17, 40, 5]  # slot 0 has no head


def make_pool(width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> HeadPool:
    """Return a pool whose free pages hold NaN, with one head a slot, its pages not in order."""
    pool = HeadPool(width, slots=SLOTS, max_classes=40, pages=12, device=device, dtype=dtype)
    pool.weight.fill_(torch.nan)
    generator = torch.Generator().manual_seed(0)
    for slot in (5, 1, 2, 3, 6, 4, 5):  # slot 5 twice: its pages are reused
        weight = torch.randn(CLASSES[slot], width, generator=generator)
        pool.write(slot, Head(weight / width**0.5, torch.randn(CLASSES[slot], generator=generator)))
    return pool


def run(features: Tensor, pool: HeadPool, slots: Tensor, top_k: int = 5) -> Result:
    return heads_triton(features, pool.weight, pool.bias, pool.table, pool.classes, slots, top_k=top_k)


def check(features: Tensor, pool: HeadPool, slots: Tensor, top_k: int = 5) -> None:
    pages = (pool.weight, pool.bias, pool.table, pool.classes)
    actual = run(features, pool, slots, top_k)
    expected = heads_reference(features, *pages, slots, top_k=top_k)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@every_dtype
@every_mix
def test_every_mix(mix: str, dtype: torch.dtype, device: torch.device) -> None:
    features = randn(6, 33, dtype=dtype, device=device)
    check(features, make_pool(33, device), slots_of(mix, 6, device))


@pytest.mark.parametrize("width", [1, 96, 300])
@pytest.mark.parametrize("top_k", [1, 50])
def test_odd_widths_and_more_places_than_classes(width: int, top_k: int, device: torch.device) -> None:
    features = randn(7, width, dtype=torch.float32, device=device)
    slots = torch.arange(7, dtype=torch.int32, device=device)
    check(features, make_pool(width, device), slots, top_k)


def test_half_precision_pages(device: torch.device) -> None:
    features = randn(7, 40, dtype=torch.float32, device=device)
    slots = torch.arange(7, dtype=torch.int32, device=device)
    check(features, make_pool(40, device, torch.float16), slots)


def test_strided_features(device: torch.device) -> None:
    tokens = randn(4, 5, 33, dtype=torch.float32, device=device)
    check(tokens[:, 0], make_pool(33, device), slots_of("distinct", 4, device))


def test_equal_logits_are_named_in_order(device: torch.device) -> None:
    pool = HeadPool(4, slots=1, max_classes=40, pages=3, device=device)
    pool.write(0, Head(torch.zeros(40, 4), torch.zeros(40)))
    features = randn(1, 4, dtype=torch.float32, device=device)
    _, probabilities, indices = run(features, pool, torch.zeros(1, dtype=torch.int32, device=device), 40)
    assert indices[0].tolist() == list(range(40))
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / 40))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e38])
def test_poisoned_head_changes_only_its_own_image(poison: float, device: torch.device) -> None:
    features, pool = randn(3, 33, dtype=torch.float32, device=device), make_pool(33, device)
    slots = torch.tensor([3, 4, 5], dtype=torch.int32, device=device)
    clean = run(features, pool, slots, top_k=20)
    pool.bias[pool.table[4, 0], 7] = poison
    poisoned = run(features, pool, slots, top_k=20)
    for before, after in zip(clean, poisoned, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (poisoned[2][1][0] == 7) == (poison == poison)
    check(features, pool, slots, top_k=20)  # the poisoned class has its place too


@every_dtype
def test_result_does_not_depend_on_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    features, pool = randn(7, 65, dtype=dtype, device=device), make_pool(65, device)
    slots = torch.arange(7, dtype=torch.int32, device=device)
    together = run(features, pool, slots)
    for i in range(7):
        alone = run(features[i : i + 1], pool, slots[i : i + 1])
        assert all(torch.equal(a[0], t[i]) for a, t in zip(alone, together, strict=True))
