"""The cuda executor on a device that is not there: memory, failures, and what goes on side by side."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from adapters.folding import fold_adapter
from backbone.bank import IDENTITY
from backbone.errors import DeviceMemoryShort, DeviceUnavailable, ShapeMismatch
from backbone.executors.base import FoldedAdapter
from backbone.executors.cuda_executor import CudaExecutor
from backbone.executors.device_memory import CudaLimits
from backbone.executors.gpu import Stream
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone
from tests.fake_gpu import PLENTY, FakeGpu
from tests.models import SIZE, make_adapter, make_backbone

MIB = 2**20


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone("vit_layer_scale")


def adapters_of(backbone: Backbone, count: int) -> list[FoldedAdapter]:
    return [fold_adapter(backbone, make_adapter(backbone, seed=s, classes=3 + s)) for s in range(count)]


def images_of(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8) for _ in range(count)]


def make_executor(backbone: Backbone, gpu: FakeGpu, slots: int = 3, **limits: float) -> CudaExecutor:
    chosen = CudaLimits(**{"max_batch": 4, "max_classes": 16} | limits)
    return CudaExecutor(backbone, gpu, dtype="float32", slots=slots, limits=chosen)


@pytest.mark.parametrize("starved", [None, *Stream])
def test_loads_and_batches_side_by_side_answer_as_the_reference(
    backbone: Backbone, starved: Stream | None
) -> None:
    adapters, images = adapters_of(backbone, 6), images_of(4)
    reference = TorchExecutor(backbone, device="cpu", dtype="float32", slots=6)
    for slot, adapter in enumerate(adapters, start=1):
        reference.load(slot, adapter)
    executor = make_executor(backbone, FakeGpu(starved=starved))
    wrong: list[str] = []

    def serve(slot: int) -> None:  # each thread has a slot, as residency sees to
        for turn in range(4):
            chosen = (turn + slot) % len(adapters)
            executor.load(slot, adapters[chosen])
            answers = executor.run(images, [slot, IDENTITY, slot, slot])
            expected = reference.run(images, [chosen + 1] * 4)
            for place in (0, 2, 3):
                if answers[place].shape != expected[place].shape:
                    wrong.append(f"{answers[place].shape} for {expected[place].shape}")
                elif not np.allclose(answers[place], expected[place], rtol=1e-4, atol=1e-4):
                    wrong.append(f"slot {slot}, turn {turn}, image {place}")

    threads = [threading.Thread(target=serve, args=(slot,)) for slot in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_is_counted_to_the_byte(backbone: Backbone) -> None:
    executor = make_executor(backbone, FakeGpu(peak_bytes=MIB))
    total, rows = backbone.sites.total_width, 3 + 2
    pages = (rows - 1) * (16 * backbone.head_width + 16) * 4
    assert executor.bank.rows.nbytes == rows * 2 * total * 4
    budget = executor.budget
    assert budget.bank >= executor.bank.rows.nbytes + pages
    assert budget.bank <= executor.bank.rows.nbytes + pages * rows / (rows - 1) + rows * 8
    assert budget.lanes == 2 * (4 * 3 * SIZE * SIZE + 4 * 4 + 4 * 16 * 4)
    assert budget.graphs > MIB
    assert budget.weights >= sum(p.nbytes for p in backbone.model.parameters()) * 0.9
    assert executor.memory["adapters"] == budget.bank
    assert executor.memory["limit"] == int(0.9 * PLENTY)


def test_too_many_slots_are_refused_with_what_would_fit(backbone: Backbone) -> None:
    budget = make_executor(backbone, FakeGpu()).budget
    room = budget.needed - budget.bank + 7 * budget.slot
    with pytest.raises(DeviceMemoryShort) as caught:
        make_executor(backbone, FakeGpu(total=room), slots=1000, memory_fraction=1.0)
    assert caught.value.slots == 7 - 2
    assert "5 slots would fit" in str(caught.value)
    for part in ("weights", "graphs", "adapters", "limit"):
        assert part in str(caught.value)
    make_executor(backbone, FakeGpu(total=room), slots=5, memory_fraction=1.0)


def test_what_others_have_and_the_fraction_both_limit(backbone: Backbone) -> None:
    total = 2**30
    assert make_executor(backbone, FakeGpu(total=total), memory_fraction=0.5).budget.limit == total // 2
    busy = FakeGpu(total=total, taken=3 * total // 4)
    assert make_executor(backbone, busy, memory_fraction=0.5).budget.limit == total // 4
    with pytest.raises(DeviceMemoryShort, match="no number of slots fits"):
        make_executor(backbone, FakeGpu(total=total, taken=total - MIB))


@pytest.mark.parametrize("runs_before", [0, 3])
def test_a_kernel_that_fails_at_warm_up_stops_the_start(backbone: Backbone, runs_before: int) -> None:
    left = [runs_before]

    def fail() -> None:
        if not left[0]:
            raise RuntimeError("illegal instruction")
        left[0] -= 1

    with pytest.raises(DeviceUnavailable, match=r"warm-up .* failed: illegal instruction"):
        make_executor(backbone, FakeGpu(before_run=fail))


def test_a_head_that_is_too_wide_is_named_and_changes_nothing(backbone: Backbone) -> None:
    executor = make_executor(backbone, FakeGpu())
    good = adapters_of(backbone, 1)[0]
    executor.load(1, good)
    before = executor.run(images_of(1), [1])[0]
    wide = fold_adapter(backbone, make_adapter(backbone, classes=17))
    with pytest.raises(ShapeMismatch, match=r"head\.weight"):
        executor.load(1, wide)
    assert np.array_equal(executor.run(images_of(1), [1])[0], before)
    assert executor.max_classes == 16


def test_every_slot_holds_the_widest_head(backbone: Backbone) -> None:
    executor = make_executor(backbone, FakeGpu(), max_classes=40)
    wide = fold_adapter(backbone, make_adapter(backbone, classes=40))
    for _ in range(2):
        for slot in (1, 2, 3):
            executor.load(slot, wide)
        assert executor.run_beside_bank(images_of(1)[0], wide).shape == (40,)


def test_bank_stays_in_fp32(backbone: Backbone) -> None:
    executor = CudaExecutor(backbone, FakeGpu(), dtype="bfloat16", slots=1, limits=CudaLimits(1, 16))
    assert executor.bank.rows.dtype == torch.float32
