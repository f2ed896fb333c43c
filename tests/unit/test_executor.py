import importlib.util
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters.folding import fold_adapter
from backbone.errors import DeviceUnavailable, ShapeMismatch
from backbone.executors import choose, openvino_graph
from backbone.executors.base import Executor, FoldedAdapter
from backbone.executors.choose import choose_device, choose_dtype, open_executor
from backbone.executors.cuda_executor import CudaExecutor
from backbone.executors.device_memory import CudaLimits
from backbone.heads import Head, Heads, HostHeads
from backbone.load import Backbone
from backbone.tuned import TunedModel
from tests.fake_gpu import FakeGpu
from tests.models import SIZE, make_adapter, make_backbone

KINDS = ("vit_layer_scale", "efficientnet")
EXECUTORS = ("torch", "openvino", "cuda")
CLASSES = (5, 3, 7)
FP32_TOLERANCE = 1e-5
# oneDNN's fp32 convolution sums in an order that depends on the batch's size and the place in it where the
# map is tiny; everything else is the same to the bit
BATCH_TOLERANCE = {(name, "efficientnet", "float32"): 1e-6 for name in ("torch", "cuda")}
Filled = tuple[Executor, list[FoldedAdapter]]
Fill = Callable[..., Filled]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backbone(kind: str) -> Backbone:
    return make_backbone(kind)


def make_images(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(params=EXECUTORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def make_executor(name: str, backbone: Backbone, dtype: str, graphs: Path) -> Executor:
    if name == "cuda":  # its kernels' references, on a device that takes its streams' steps in a random order
        return CudaExecutor(backbone, FakeGpu(), dtype=dtype, slots=4, limits=CudaLimits(8, 16))
    return open_executor(backbone, name=name, device="cpu", dtype=dtype, slots=4, threads=2, cache=graphs)


@pytest.fixture
def filled(name: str, backbone: Backbone, graphs: Path) -> Fill:
    """Make executors with three adapters of different numbers of classes in slots 1 to 3."""

    def fill(dtype: str = "float32") -> Filled:
        executor = make_executor(name, backbone, dtype, graphs)
        adapters = [
            fold_adapter(backbone, make_adapter(backbone, seed=seed, classes=classes))
            for seed, classes in enumerate(CLASSES)
        ]
        for slot, adapter in enumerate(adapters, start=1):
            executor.load(slot, adapter)
        return executor, adapters

    return fill


def test_logits_are_those_of_the_definition(filled: Fill, backbone: Backbone) -> None:
    executor, _ = filled()
    images = make_images(3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.spec.mean, backbone.spec.std))
    for index, logits in enumerate(executor.run(images, [1, 2, 3])):
        adapter = make_adapter(backbone, seed=index, classes=CLASSES[index])
        tuned = TunedModel(backbone.model, backbone.sites)
        tuned.set_vectors(adapter.scale, adapter.shift)
        normalized = (torch.from_numpy(images[index]).float() / 255 - mean) / std
        with torch.no_grad():
            expected = tuned(normalized.unsqueeze(0))[0] @ adapter.head_weight.T + adapter.head_bias
        np.testing.assert_allclose(logits, expected, rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answer_depends_on_neither_neighbours_nor_place(
    filled: Fill, name: str, kind: str, dtype: str
) -> None:
    executor, _ = filled(dtype)
    images = make_images(4)
    first = executor.run(images, [1, 2, 3, 1])
    moved = executor.run(images[::-1], [1, 3, 2, 1])
    beside_others = executor.run([images[0], *make_images(8)[5:]], [1, 3, 3, 3])
    tolerance = BATCH_TOLERANCE.get((name, kind, dtype), 0.0)
    for one, other in zip([*first, first[0]], [*moved[::-1], beside_others[0]], strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_answer_beside_the_bank_equals_the_one_from_it(filled: Fill) -> None:
    executor, adapters = filled()
    image = make_images(1)[0]
    from_bank = executor.run([image], [2])[0]
    assert np.array_equal(executor.run_beside_bank(image, adapters[1]), from_bank)


def test_poisoned_adapter_changes_no_other_answer(filled: Fill) -> None:
    executor, adapters = filled()
    images = make_images(3)
    clean = executor.run(images, [1, 2, 3])
    poison = FoldedAdapter(torch.full_like(adapters[1].row, 1e38), adapters[1].head)
    executor.load(2, poison)
    poisoned = executor.run(images, [1, 2, 3])
    assert np.array_equal(poisoned[0], clean[0]) and np.array_equal(poisoned[2], clean[2])
    assert not np.isfinite(poisoned[1]).all()


def test_slot_can_be_filled_anew(filled: Fill) -> None:
    executor, adapters = filled()
    image = make_images(1)
    of_the_third = executor.run(image, [3])[0]
    executor.load(1, adapters[2])
    assert np.array_equal(executor.run(image, [1])[0], of_the_third)


def test_forwards_from_two_threads_do_not_mix_their_rows(filled: Fill) -> None:
    executor, adapters = filled()
    image = make_images(1)[0]
    expected = executor.run([image], [1])[0]
    stop, wrong = threading.Event(), []

    def validate() -> None:
        while not stop.is_set():
            executor.run_beside_bank(image, adapters[2])

    other = threading.Thread(target=validate)
    other.start()
    for _ in range(50):
        if not np.array_equal(executor.run([image], [1])[0], expected):
            wrong.append(1)
    stop.set()
    other.join()
    assert not wrong


def test_bank_row_of_another_width_is_named(filled: Fill) -> None:
    executor, adapters = filled()
    with pytest.raises(ShapeMismatch, match="row"):
        executor.load(1, FoldedAdapter(adapters[0].row[:, :-1], adapters[0].head))


@pytest.mark.parametrize(
    ("weight", "bias", "named"), [((3, 5), (3,), r"head\.weight"), ((3, 4), (2,), r"head\.bias")]
)
@pytest.mark.parametrize("heads", [Heads, HostHeads])
def test_head_that_does_not_fit_is_named(
    heads: type[Heads | HostHeads], weight: tuple[int, int], bias: tuple[int], named: str
) -> None:
    with pytest.raises(ShapeMismatch, match=named):
        heads(4).write(1, Head(torch.zeros(weight), torch.zeros(bias)))


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(DeviceUnavailable, match="cuda"):
        choose_device("cuda")


def test_dtype_follows_what_the_cpu_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("float32", "cpu") == "float32"
    for able, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_dtype("auto", "cpu") == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answer_does_not_depend_on_the_number_of_images(
    filled: Fill, name: str, kind: str, dtype: str
) -> None:
    executor, _ = filled(dtype)
    images, slots = make_images(19), [1, 2, 3, 1, 1, 2, 3, 3, 2, 1, 2, 3, 1, 2, 1, 3, 2, 1, 3]
    alone = [executor.run([image], [slot])[0] for image, slot in zip(images, slots, strict=True)]
    tolerance = BATCH_TOLERANCE.get((name, kind, dtype), 0.0)
    for count in (2, 3, 5, 11, 19):
        together = executor.run(images[:count], slots[:count])
        for one, other in zip(together, alone[:count], strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_auto_takes_openvino_on_a_cpu(backbone: Backbone, graphs: Path) -> None:
    chosen = open_executor(backbone, device="cpu", dtype="float32", slots=1, threads=1, cache=graphs)
    assert (chosen.name, chosen.device, chosen.dtype) == ("openvino", "cpu", "float32")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand a device of tests in for the GPU; return how it was opened."""
    calls: list[dict[str, Any]] = []

    def open_cuda(backbone: Backbone, **how: Any) -> CudaExecutor:
        calls.append(how)
        return CudaExecutor(
            backbone, FakeGpu(), dtype=how["dtype"], slots=how["slots"], limits=CudaLimits(1, 16)
        )

    monkeypatch.setattr(choose, "_open_cuda", open_cuda)
    return calls


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_runs_the_cuda_executor(backbone: Backbone, opened: list[dict[str, Any]], name: str) -> None:
    limits = CudaLimits(max_batch=3)
    chosen = open_executor(
        backbone, name=name, device="cuda", dtype="bfloat16", slots=2, threads=1, limits=limits
    )
    assert (chosen.name, chosen.dtype, chosen.lanes) == ("cuda", "bfloat16", 2)
    assert opened == [{"device": "cuda", "dtype": "bfloat16", "slots": 2, "limits": limits}]


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "bfloat16"), ("cuda", "float64")])
def test_cuda_is_refused_where_it_does_not_run(device: str, dtype: str) -> None:
    with pytest.raises(DeviceUnavailable, match="cuda"):
        open_executor(make_backbone("vit"), name="cuda", device=device, dtype=dtype, slots=1, threads=1)


@pytest.mark.parametrize(("name", "device"), [("auto", "cpu"), ("torch", "cuda"), ("openvino", "cpu")])
def test_fp8_is_refused_by_all_others(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    with pytest.raises(DeviceUnavailable, match="float8"):
        open_executor(make_backbone("vit"), name=name, device=device, dtype="float8", slots=1, threads=1)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_fp8_is_refused_by_a_gpu_that_has_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 6))
    with pytest.raises(DeviceUnavailable, match=r"capability 8\.9, and this device has 8\.6"):
        open_executor(make_backbone("vit"), name=name, device="cuda", dtype="float8", slots=1, threads=1)


def test_a_gpu_without_triton_says_so(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(DeviceUnavailable, match="triton"):
        open_executor(backbone, name="cuda", device="cuda", dtype="float32", slots=1, threads=1)


def test_what_fails_on_a_gpu_at_start_is_not_passed_over(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DeviceUnavailable("cuda", "the warm-up failed")

    monkeypatch.setattr(choose, "_open_cuda", refuse)
    with pytest.raises(DeviceUnavailable, match="warm-up"):
        open_executor(backbone, device="cuda", dtype="float32", slots=1, threads=1)


def test_auto_takes_torch_where_openvino_is_not_installed(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    options = {"device": "cpu", "dtype": "float32", "slots": 1, "threads": 1}
    assert open_executor(backbone, **options).name == "torch"
    with pytest.raises(DeviceUnavailable, match="not installed"):
        open_executor(backbone, name="openvino", **options)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float16"), ("cuda", "bfloat16")])
def test_openvino_is_refused_where_it_does_not_run(device: str, dtype: str) -> None:
    with pytest.raises(DeviceUnavailable, match="openvino"):
        open_executor(make_backbone("vit"), name="openvino", device=device, dtype=dtype, slots=1, threads=1)


def test_a_model_that_does_not_convert_runs_on_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such op")

    monkeypatch.setattr(openvino_graph, "convert", refuse)
    options = {"device": "cpu", "dtype": "float32", "slots": 1, "threads": 1}
    assert open_executor(make_backbone("vit"), **options).name == "torch"
    assert "no such op" in caplog.text
    with pytest.raises(DeviceUnavailable, match="does not convert: no such op"):
        open_executor(make_backbone("vit"), name="openvino", **options)
