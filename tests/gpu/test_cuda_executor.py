"""The cuda executor on a GPU: the invariants, graphs, order and memory. Run with `make test-gpu`."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters.folding import fold_adapter
from backbone.errors import DeviceMemoryShort
from backbone.executors.base import FoldedAdapter
from backbone.executors.cuda_executor import CudaExecutor
from backbone.executors.device_memory import CudaLimits, in_use
from backbone.executors.gpu import CudaGpu
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone, load_backbone
from tests.models import KINDS, SIZE, make_adapter, make_backbone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this host has no CUDA device"),
]

SLOTS = 4
LIMITS = CudaLimits(max_batch=8, max_classes=16)
# fp32 sums in another order; half precision rounds every activation to 11 or 8 bits
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def fill(executor: CudaExecutor | TorchExecutor) -> list[FoldedAdapter]:
    backbone = executor.backbone
    adapters = [
        fold_adapter(backbone, make_adapter(backbone, seed=s, classes=2 + s)) for s in range(1, SLOTS + 1)
    ]
    for slot, adapter in enumerate(adapters, start=1):
        executor.load(slot, adapter)
    return adapters


def make_executor(
    backbone: Backbone, dtype: str = "float32", *, graphs: bool = True, limits: CudaLimits = LIMITS
) -> CudaExecutor:
    return CudaExecutor(backbone, CudaGpu(graphs=graphs), dtype=dtype, slots=SLOTS, limits=limits)


def make_images(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batch_equals_the_reference_on_the_cpu(kind: str, dtype: str) -> None:
    backbone = make_backbone(kind)
    executor = make_executor(backbone, dtype)
    reference = TorchExecutor(backbone, device="cpu", dtype="float32", slots=SLOTS)
    fill(executor)
    fill(reference)
    images, slots = make_images(7), [1, 2, 3, 4, 4, 2, 1]
    pairs = zip(executor.run(images, slots), reference.run(images, slots), strict=True)
    for actual, expected in pairs:
        tolerance = TOLERANCE[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["vit_layer_scale", "efficientnet"])
def test_graphs_answer_as_the_same_ops_without_them(kind: str, dtype: str) -> None:
    backbone, images = make_backbone(kind), make_images(8)
    answers = []
    for graphs in (True, False):
        executor = make_executor(backbone, dtype, graphs=graphs)
        fill(executor)
        answers.append([executor.run(images[:n], [1, 2, 3, 4, 1, 2, 3, 4][:n]) for n in (1, 3, 8)])
    for replayed, eager in zip(*answers, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(replayed, eager, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["vit_layer_scale", "efficientnet"])
def test_answer_depends_on_neither_neighbours_nor_place(kind: str, dtype: str) -> None:
    executor = make_executor(make_backbone(kind), dtype)
    fill(executor)
    images = make_images(4)
    first = executor.run(images, [1, 2, 3, 1])
    moved = executor.run(images[::-1], [1, 3, 2, 1])
    beside_others = executor.run([images[0], *make_images(3, seed=9)], [1, 4, 4, 4])
    assert all(np.array_equal(a, b) for a, b in zip(first, moved[::-1], strict=True))
    assert np.array_equal(first[0], beside_others[0])


@pytest.mark.parametrize("poison", [1e38, 0.0, float("nan")])
def test_poisoned_adapter_changes_no_other_answer(poison: float) -> None:
    executor = make_executor(make_backbone("vit_layer_scale"), "bfloat16")
    adapters, images = fill(executor), make_images(3)
    clean = executor.run(images, [1, 2, 3])
    executor.load(2, FoldedAdapter(torch.full_like(adapters[1].row, poison), adapters[1].head))
    poisoned = executor.run(images, [1, 2, 3])
    assert np.array_equal(poisoned[0], clean[0]) and np.array_equal(poisoned[2], clean[2])


def test_answer_beside_the_bank_equals_the_one_from_it() -> None:
    executor = make_executor(make_backbone("vit_layer_scale"), "bfloat16")
    adapters, image = fill(executor), make_images(1)[0]
    assert np.array_equal(executor.run_beside_bank(image, adapters[1]), executor.run([image], [2])[0])


def test_loads_while_batches_run_change_no_answer_under_way() -> None:
    executor = make_executor(make_backbone("vit_layer_scale"))
    adapters, images = fill(executor), make_images(8)
    expected = {index: executor.run_beside_bank(images[0], adapter) for index, adapter in enumerate(adapters)}
    wrong: list[str] = []

    def serve(slot: int) -> None:  # a slot each, as residency sees to
        for turn in range(100):
            chosen = (turn + slot) % SLOTS
            executor.load(slot, adapters[chosen])
            answers = executor.run([images[0], *images[1 : 1 + turn % 7]], [slot] * (1 + turn % 7))
            if not np.allclose(answers[0], expected[chosen], rtol=1e-3, atol=1e-3):
                wrong.append(f"slot {slot}, turn {turn}")

    threads = [threading.Thread(target=serve, args=(slot,)) for slot in range(1, SLOTS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_serving_takes_no_more_memory_and_makes_the_host_wait_for_nothing() -> None:
    executor = make_executor(make_backbone("vit_layer_scale"), "bfloat16")
    adapters, images = fill(executor), make_images(5)
    executor.run(images, [1] * 5)
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for turn in range(50):
            executor.load(1 + turn % SLOTS, adapters[turn % SLOTS])
            executor.run(images, [1 + (turn + 1) % SLOTS] * 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_allocated() == before


def test_budget_covers_what_is_taken() -> None:
    backbone = load_backbone("vit_small_patch16_224", source="random:0")
    before = torch.cuda.memory_reserved()
    executor = make_executor(backbone, "bfloat16", limits=CudaLimits(max_batch=64, max_classes=1000))
    taken = torch.cuda.memory_reserved() - before
    assert 0.5 * executor.budget.needed < taken <= executor.budget.needed
    assert in_use(executor.device)["used"] >= taken


def test_too_many_slots_are_refused_before_they_are_allocated() -> None:
    backbone, before = make_backbone("vit"), torch.cuda.memory_reserved()
    with pytest.raises(DeviceMemoryShort, match="slots would fit") as caught:
        CudaExecutor(backbone, CudaGpu(), dtype="float32", slots=10**9, limits=LIMITS)
    assert caught.value.slots > 1000
    assert torch.cuda.memory_reserved() - before < 2**30
