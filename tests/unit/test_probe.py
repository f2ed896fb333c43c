"""The probe image is the same everywhere, and the probe sees what goes wrong between pixels and logits."""

import hashlib
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from adapters.errors import ProbeMismatch
from adapters.file import Adapter, read_adapter, write_adapter
from adapters.folding import fold_adapter
from adapters.manifest import Probe
from adapters.probe import (
    TOLERANCE,
    check_probe,
    check_reference,
    compute_probe,
    probe_difference,
    probe_image,
)
from backbone.errors import ShapeMismatch
from backbone.executors.base import Executor
from backbone.executors.cuda_executor import CudaExecutor
from backbone.executors.device_memory import CudaLimits
from backbone.executors.openvino_executor import OpenVinoExecutor
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone
from backbone.preprocess import Pixels
from tests.fake_gpu import FakeGpu
from tests.models import KINDS, SIZE, make_adapter, make_backbone

GOLDEN = {
    (32, 32): "506e41b9617ee18010b3e5f12378c59a68806da4ded235099cde96d7b0658f77",
    (112, 112): "14a5090a8a93ae7be6232430a3c0a02a2224d2e6a5d5e10b11a9cdb520e0688f",
    (37, 224): "6a2a6be3d52f3587581154f359819eca2c52a0c57066741490ed39484a2538c2",
}


@pytest.mark.parametrize("size", GOLDEN, ids=str)
def test_image_never_changes(size: tuple[int, int]) -> None:
    image = probe_image(*size)
    assert image.shape == (3, *size) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert hashlib.sha256(image.tobytes()).hexdigest() == GOLDEN[size]


def test_image_uses_the_whole_range_of_every_channel_at_every_scale() -> None:
    image = probe_image(224, 224).astype(np.float64)
    assert image.min() == 0 and image.max() == 255
    assert (image.std(axis=(1, 2)) > 40).all()
    for scale in (1, 4, 16, 56):
        blocks = image.reshape(3, 224 // scale, scale, 224 // scale, scale).mean(axis=(2, 4))
        assert (blocks.std(axis=(1, 2)) > 10).all()


def test_channels_of_the_image_are_unrelated() -> None:
    image = probe_image(224, 224).reshape(3, -1)
    assert np.abs(np.corrcoef(image) - np.eye(3)).max() < 0.5


def serve(
    backbone: Backbone, adapter: Adapter, dtype: str = "float32", image: Pixels | None = None
) -> np.ndarray:
    executor: Executor
    if dtype == "float8":
        executor = CudaExecutor(backbone, FakeGpu(), dtype=dtype, slots=1, limits=CudaLimits(1, 1024))
    elif dtype == "int8":
        executor = OpenVinoExecutor(backbone, dtype=dtype, slots=1, threads=1)
    else:
        executor = TorchExecutor(backbone, device="cpu", dtype=dtype, slots=1)
    executor.load(1, fold_adapter(backbone, adapter))
    return executor.run([probe_image(SIZE, SIZE) if image is None else image], [1])[0]


def check(backbone: Backbone, adapter: Adapter, probe: Probe, dtype: str = "float32") -> None:
    check_probe(probe, serve(backbone, adapter, dtype), dtype)


@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [dtype for dtype in TOLERANCE if dtype != "int8"])  # test_openvino_int8
def test_same_adapter_passes_in_every_dtype(kind: str, std: float, dtype: str) -> None:
    backbone = make_backbone(kind)
    for seed in range(3):
        adapter = make_adapter(backbone, seed=seed, std=std)
        check(backbone, adapter, adapter.manifest.probe, dtype)


@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_same_adapter_passes_with_any_number_of_classes(classes: int) -> None:
    backbone = make_backbone("vit")
    adapter = make_adapter(backbone, classes=classes)
    check(backbone, adapter, adapter.manifest.probe, "bfloat16")


def test_probe_of_rounded_tensors_passes_after_the_file() -> None:
    backbone = make_backbone("vit_layer_scale")
    stored = read_adapter(write_adapter(make_adapter(backbone), dtype=torch.bfloat16))
    probe = compute_probe(
        backbone,
        scale=stored.scale,
        shift=stored.shift,
        head_weight=stored.head_weight,
        head_bias=stored.head_bias,
    )
    check(backbone, stored, probe)


def test_logits_that_happen_to_be_close_do_not_tighten_the_check() -> None:
    backbone = make_backbone("vit")
    adapter = make_adapter(backbone, classes=2)
    level = torch.tensor(adapter.manifest.probe.logits)
    adapter = replace(adapter, head_bias=adapter.head_bias - level)  # both logits of the probe become 0
    probe = adapter.manifest.probe.model_copy(update={"logits": (0.0, 0.0)})
    check(backbone, adapter, probe)
    check(backbone, adapter, probe, "bfloat16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_swapped_channels_are_caught(kind: str, std: float) -> None:
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, std=std)
    swapped = np.ascontiguousarray(probe_image(SIZE, SIZE)[::-1])
    with pytest.raises(ProbeMismatch):
        check_probe(adapter.manifest.probe, serve(backbone, adapter, image=swapped), "float32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)], ids=["none", "half"]
)
def test_wrong_normalisation_is_caught(kind: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone)
    wrong = replace(backbone, spec=replace(backbone.spec, mean=mean, std=std))
    with pytest.raises(ProbeMismatch):
        check_reference(wrong, adapter)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_each_site_left_out_is_caught(kind: str, std: float) -> None:
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, std=std)
    for site in backbone.sites.widths:
        less = make_adapter(backbone, std=std, without=[site], probe=adapter.manifest.probe)
        with pytest.raises(ProbeMismatch):
            check_reference(backbone, less)


def swap_classes(adapter: Adapter, a: int, b: int) -> Adapter:
    order = list(range(adapter.manifest.num_classes))
    order[a], order[b] = b, a
    return replace(adapter, head_weight=adapter.head_weight[order], head_bias=adapter.head_bias[order])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_wrong_head_order_is_caught_in_every_dtype(dtype: str) -> None:
    backbone = make_backbone("vit")
    adapter = make_adapter(backbone)
    ranks = np.argsort(adapter.manifest.probe.logits)
    with pytest.raises(ProbeMismatch):
        check(backbone, swap_classes(adapter, ranks[0], ranks[-1]), adapter.manifest.probe, dtype)


@pytest.mark.parametrize("pair", list(combinations(range(5), 2)), ids=str)
def test_any_two_swapped_classes_are_caught_by_the_reference(pair: tuple[int, int]) -> None:
    backbone = make_backbone("vit")
    with pytest.raises(ProbeMismatch):
        check_reference(backbone, swap_classes(make_adapter(backbone), *pair))


@pytest.mark.parametrize("kind", KINDS)
def test_reference_agrees_with_itself_after_the_file(kind: str) -> None:
    backbone = make_backbone(kind)
    check_reference(backbone, read_adapter(write_adapter(make_adapter(backbone))))


def test_other_weights_of_the_same_model_are_caught() -> None:
    adapter = make_adapter(make_backbone("vit"))
    with pytest.raises(ProbeMismatch):
        check_reference(make_backbone("vit", seed=1), adapter)


PROBE = Probe(dtype="float32", logits=(1.0, 2.0), spread=1.0)


@pytest.mark.parametrize(
    "logits", [[1.0, float("nan")], [1.0, float("inf")], [1.0], [1.0, 2.0, 3.0], []], ids=str
)
def test_logits_that_cannot_be_compared_never_pass(logits: list[float]) -> None:
    with pytest.raises(ProbeMismatch):
        check_probe(PROBE, logits, "bfloat16")


def test_less_precise_side_sets_the_tolerance() -> None:
    apart = [1.0, 2.0 + TOLERANCE["bfloat16"]]
    check_probe(PROBE.model_copy(update={"dtype": "bfloat16"}), apart, "float32")
    check_probe(PROBE, apart, "bfloat16")
    with pytest.raises(ProbeMismatch):
        check_probe(PROBE, apart, "float32")


def test_two_swapped_labels_among_a_thousand_stand_out() -> None:
    logits = np.zeros(1000)
    logits[:2] = 1.0, -1.0
    probe = Probe(dtype="float32", logits=tuple(logits), spread=1.0)
    logits[:2] = -1.0, 1.0
    assert probe_difference(probe, logits) == 0.5


def test_wrong_width_is_named() -> None:
    backbone = make_backbone("vit")
    head = torch.zeros(2, 32), torch.zeros(2)
    with pytest.raises(ShapeMismatch, match="norm"):
        compute_probe(
            backbone, scale={"norm": torch.ones(1)}, shift={}, head_weight=head[0], head_bias=head[1]
        )
