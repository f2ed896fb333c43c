"""int8 products: close to the definition for every task's ranges, and a row depends on nothing but itself."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from adapters.errors import ProbeMismatch
from adapters.file import Adapter, write_adapter
from adapters.folding import fold_adapter
from adapters.probe import TOLERANCE, compute_probe, probe_difference, probe_image
from backbone.errors import DeviceUnavailable
from backbone.executors import choose
from backbone.executors.base import Executor, FoldedAdapter
from backbone.executors.choose import open_executor
from backbone.executors.openvino_files import at_batch, options, without_last_product
from backbone.executors.openvino_graph import load_graph
from backbone.executors.openvino_int8 import in_int8, round_rows
from backbone.executors.quiet_openvino import openvino
from backbone.load import Backbone
from server.device import BackboneDevice
from tests.models import SIZE, make_adapter, make_backbone

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("vit_layer_scale", "eva", "dinov3", "swin", "swin_v2", "convnext", "mixer", "res_mlp")
ROUNDING = 1e-3  # less would not have been quantised; the probe's share of the spread
Open = Callable[[Backbone], Executor]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def opened(graphs: Path) -> Open:
    """Open the executor in int8, an adapter of seed 0, 1 and 2 in slots 1, 2 and 3."""

    def make(backbone: Backbone) -> Executor:
        executor = open_executor(backbone, device="cpu", dtype="int8", slots=3, threads=1, cache=graphs)
        for slot in (1, 2, 3):
            executor.load(slot, fold_adapter(backbone, make_adapter(backbone, seed=slot - 1)))
        return executor

    return make


def make_images(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, 3, SIZE, SIZE), np.uint8))


def off(executor: Executor, adapter: Adapter) -> float:
    """Return how far an adapter's probe is off, in units of its spread."""
    logits = executor.run_beside_bank(probe_image(SIZE, SIZE), fold_adapter(executor.backbone, adapter))
    return probe_difference(adapter.manifest.probe, logits) / adapter.manifest.probe.spread


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 8)),
        elements=st.floats(np.float32(-1e3), np.float32(1e3), width=32),
    )
)
def test_a_rounded_weight_is_within_half_a_step_of_its_row(weight: NDArray[np.float32]) -> None:
    rounded, scale = round_rows(weight)
    assert rounded.dtype == np.int8 and scale.shape == (len(weight), 1)
    largest = np.abs(weight).max(axis=1, keepdims=True)
    # rows below 127 times the least normal number are as good as 0, and become it
    assert (np.abs(rounded * scale - weight) <= np.maximum(0.5001 * largest / 127, 2e-36)).all()


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_answers_as_defined(kind: str, opened: Open) -> None:
    backbone = make_backbone(kind)
    executor = opened(backbone)
    assert (executor.name, executor.dtype) == ("openvino", "int8")
    differences = [off(executor, make_adapter(backbone, seed=seed)) for seed in range(3)]
    assert max(differences) < TOLERANCE["int8"] and min(differences) > ROUNDING


def test_weights_and_activations_of_linear_layers_are_int8() -> None:
    backbone = make_backbone("vit")
    graph, how = in_int8(without_last_product(load_graph(backbone, None)))
    features = []
    for more in (how, dict.fromkeys(how, 0)):  # without groups only the weights are
        shaped = at_batch(graph, 1)
        compiled = openvino.Core().compile_model(shaped, "CPU", options("int8", 1, 1) | more)
        ops = compiled.get_runtime_model().get_ordered_ops()
        eighths = sum(op.rt_info["runtimePrecision"].value == "i8" for op in ops if op.inputs())
        assert eighths == sum(site.op.value == "linear" for site in backbone.sites) > 0
        rows = backbone.fold.row({}, {})
        vectors = [part[None] for kind in rows for part in kind.split(list(backbone.sites.widths.values()))]
        shapes = [tuple(value.shape) for value in compiled.inputs]
        given = [probe_image(SIZE, SIZE)[None], *(v.numpy() for v in vectors)]
        features.append(compiled([x.reshape(s) for x, s in zip(given, shapes, strict=True)])[0].copy())
    assert not np.array_equal(*features)


def test_ranges_follow_a_task_whose_scales_are_far_from_the_backbone(opened: Open) -> None:
    backbone = make_backbone("vit_layer_scale")
    far = make_adapter(backbone, seed=5)
    scale = {name: vector * (50 if "norm2" in name else 1) for name, vector in far.scale.items()}
    probe = compute_probe(
        backbone, scale=scale, shift=far.shift, head_weight=far.head_weight, head_bias=far.head_bias
    )
    far = dataclasses.replace(far, scale=scale, manifest=far.manifest.model_copy(update={"probe": probe}))
    assert off(opened(backbone), far) < TOLERANCE["int8"]


@pytest.mark.parametrize("kind", ["vit_layer_scale", "swin"])
def test_an_answer_depends_on_neither_neighbours_nor_place_nor_number(kind: str, opened: Open) -> None:
    executor = opened(make_backbone(kind))
    images, slots = make_images(11), [1, 2, 3, 1, 1, 2, 3, 3, 2, 1, 2]
    alone = [executor.run([image], [slot])[0] for image, slot in zip(images, slots, strict=True)]
    for count in (2, 3, 5, 11):
        assert np.array_equal(executor.run(images[:count], slots[:count]), alone[:count])
        backwards = executor.run(images[:count][::-1], slots[:count][::-1])
        assert np.array_equal(backwards[::-1], alone[:count])


@pytest.mark.parametrize("poison", [1e38, float("nan")])
def test_a_poisoned_adapter_changes_no_other_answer(poison: float, opened: Open) -> None:
    backbone = make_backbone("vit")
    executor = opened(backbone)
    images = make_images(3)
    clean = executor.run(images, [1, 2, 3])
    second = fold_adapter(backbone, make_adapter(backbone, seed=1))
    executor.load(2, FoldedAdapter(torch.full_like(second.row, poison), second.head))
    poisoned = executor.run(images, [1, 2, 3])
    assert np.array_equal(poisoned[0], clean[0]) and np.array_equal(poisoned[2], clean[2])
    assert not np.array_equal(poisoned[1], clean[1])


def test_a_server_in_int8_takes_good_adapters_and_refuses_wrong_ones(opened: Open) -> None:
    backbone = make_backbone("vit_layer_scale")
    device = BackboneDevice(opened(backbone), slots=3)
    adapter = make_adapter(backbone, seed=4)
    assert device.info.dtype == "int8"
    assert device.validate(write_adapter(adapter)) == adapter.manifest
    other = make_adapter(backbone, seed=1).manifest.probe
    with pytest.raises(ProbeMismatch):
        device.validate(write_adapter(make_adapter(backbone, seed=4, probe=other)), new=False)


@pytest.mark.parametrize(
    ("kind", "how", "message"),
    [
        ("efficientnet", {}, "no linear layers"),
        ("resnet", {"name": "openvino"}, "no linear layers"),
        ("vit", {"name": "torch"}, "only the openvino executor"),
        ("vit", {"name": "cuda"}, "not on cpu"),
        ("vit", {"device": "cuda"}, "it runs on a CPU"),
    ],
    ids=str,
)
def test_int8_is_refused_where_there_is_none(
    kind: str, how: dict[str, str], message: str, graphs: Path
) -> None:
    where = {"device": "cpu"} | how
    with pytest.raises(DeviceUnavailable, match=message):
        open_executor(make_backbone(kind), dtype="int8", slots=1, threads=1, cache=graphs, **where)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bfloat16", "vnni", "told"),
    [(True, True, "over bfloat16"), (False, False, "no AVX-512 VNNI"), (False, True, "")],
)
def test_a_cpu_that_int8_is_not_for_is_told(
    bfloat16: bool,
    vnni: bool,
    told: str,
    graphs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(choose, "cpu_has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(choose, "cpu_has_vnni", lambda: vnni)
    with caplog.at_level(logging.WARNING):
        open_executor(make_backbone("vit"), device="cpu", dtype="int8", slots=1, threads=1, cache=graphs)
    assert told in caplog.text and bool(told) is bool(caplog.text)


@pytest.mark.parametrize(("width", "group"), [(128, 64), (96, 32)])
@pytest.mark.parametrize("transposed", [True, False])
def test_groups_divide_the_width_however_a_weight_lies(width: int, group: int, transposed: bool) -> None:
    ops, rng = openvino.opset13, np.random.default_rng(0)
    weight = rng.standard_normal((5, width), np.float32)
    tokens = ops.parameter([-1, 3, width], np.float32)
    laid = np.ascontiguousarray(weight if transposed else weight.T)
    product = ops.matmul(tokens, ops.constant(laid), transpose_a=False, transpose_b=transposed)
    narrow = ops.matmul(
        product, ops.constant(np.eye(5, dtype=np.float32)), transpose_a=False, transpose_b=False
    )
    graph, how = in_int8(openvino.Model([narrow], [tokens], "small"))
    assert list(how.values()) == [group]
    compiled = openvino.Core().compile_model(at_batch(graph, 2), "CPU", options("int8", 1, 1) | how)
    given = rng.standard_normal((2, 3, width), np.float32)
    difference = compiled([given])[0] - given @ weight.T
    assert 0 < np.abs(difference).max() < 0.02 * np.abs(given @ weight.T).max()


@pytest.mark.parametrize("able", [True, False])
def test_vnni_is_asked_of_the_cpu(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: able)
    assert choose.cpu_has_vnni() is able
