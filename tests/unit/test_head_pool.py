import pytest
import torch

from backbone.errors import HeadPoolFull, ShapeMismatch
from backbone.heads import Head
from backbone.kernels.heads.pool import MAX_CLASSES, PAGE_ROWS, HeadPool

WIDTH = 3


def head(classes: int, fill: float = 1.0) -> Head:
    return Head(torch.full((classes, WIDTH), fill), torch.full((classes,), fill))


def make_pool() -> HeadPool:
    return HeadPool(WIDTH, slots=4, max_classes=40, pages=5)


def rows_of(pool: HeadPool, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
    classes = int(pool.classes[slot])
    pages = pool.table[slot, : -(-classes // PAGE_ROWS)].long()
    return pool.weight[pages].flatten(0, 1)[:classes], pool.bias[pages].flatten()[:classes]


def test_every_head_is_found_by_its_pages() -> None:
    pool = make_pool()
    for slot, classes in ((2, 17), (0, 40)):
        pool.write(slot, head(classes, slot + 1.0))
    for slot, classes in ((2, 17), (0, 40)):
        weight, bias = rows_of(pool, slot)
        assert torch.equal(weight, torch.full((classes, WIDTH), slot + 1.0))
        assert torch.equal(bias, torch.full((classes,), slot + 1.0))
    assert pool.free_pages == 0
    assert pool.classes.tolist() == [40, 0, 17, 0]


def test_full_pool_refuses_and_keeps_what_it_has() -> None:
    pool = make_pool()
    pool.write(0, head(40))
    pool.write(1, head(16))
    with pytest.raises(HeadPoolFull) as caught:
        pool.write(1, head(40, 9.0))
    assert (caught.value.needed, caught.value.free) == (3, 2)
    assert torch.equal(rows_of(pool, 1)[0], head(16).weight)


def test_own_pages_may_be_taken_again() -> None:
    pool = make_pool()
    pool.write(0, head(40))
    pool.write(1, head(32))
    pool.write(0, head(33, 2.0))
    assert torch.equal(rows_of(pool, 0)[0], head(33, 2.0).weight)
    assert torch.equal(rows_of(pool, 1)[0], head(32).weight)


def test_pages_come_back_over_many_cycles() -> None:
    pool = make_pool()
    for cycle in range(100):
        pool.write(cycle % 4, head(1 + cycle % 16, float(cycle)))
        pool.forget((cycle + 1) % 4)
    for slot in range(4):
        pool.forget(slot)
    assert pool.free_pages == 5
    assert not pool.classes.any()


def test_tensors_keep_their_addresses() -> None:
    pool = make_pool()
    before = [t.data_ptr() for t in (pool.weight, pool.bias, pool.table, pool.classes)]
    pool.write(3, head(20))
    assert [t.data_ptr() for t in (pool.weight, pool.bias, pool.table, pool.classes)] == before


@pytest.mark.parametrize(
    "refused",
    [
        head(0),
        head(49),
        Head(torch.zeros(2, WIDTH + 1), torch.zeros(2)),
        Head(torch.zeros(2, WIDTH), torch.zeros(3)),
    ],
    ids=["no class", "too many classes", "too wide", "bias of another length"],
)
def test_head_that_does_not_fit_is_refused(refused: Head) -> None:
    with pytest.raises(ShapeMismatch):
        make_pool().write(0, refused)


@pytest.mark.parametrize("classes", [0, MAX_CLASSES + 1])
def test_limit_of_classes(classes: int) -> None:
    with pytest.raises(ShapeMismatch):
        HeadPool(WIDTH, slots=1, max_classes=classes, pages=1)
