"""Checkpoints of the SSF reference code become adapters that give its logits. See tests/golden."""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load
from torch import Tensor

from adapters.conversion import convert, differences, write_backbone
from adapters.errors import AdapterIncompatible, CheckpointInvalid
from adapters.file import Adapter
from adapters.merge import merge
from adapters.official import Weights, read_official
from adapters.official_names import FAMILIES
from backbone.checkpoint import fitted
from backbone.fingerprint import fingerprint
from backbone.load import Backbone
from backbone.tuned import TunedModel
from tests.golden_data import GOLDEN, GOLDENS, SIZE
from tests.models import freeze

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5  # logits are of order 3; the reference code itself moves by 1.5e-6 between versions of torch
WEIGHTS: list[tuple[str, Weights]] = [
    ("vit", "raw"),
    ("vit", "ema"),
    ("swin", "raw"),
    ("convnext", "raw"),
    ("convnext", "ema"),
    ("asmlp", "raw"),
]


def build(family: str, state: dict[str, Tensor]) -> Backbone:
    golden = GOLDENS[family]
    model = timm.create_model(golden.name, num_classes=0, **golden.arguments)
    model.load_state_dict(fitted(state, model), strict=True)
    return freeze(model, golden.name, size=SIZE)


@cache
def rebuilt(family: str, weights: Weights = "raw") -> Backbone:
    return build(family, load(write_backbone(read_official(GOLDEN / f"{family}.pth", weights))))


@cache
def converted(family: str, weights: Weights) -> Adapter:
    return convert(read_official(GOLDEN / f"{family}.pth", weights), rebuilt(family, weights))


def golden_arrays(family: str) -> Any:
    return np.load(GOLDEN / f"{family}.npz")


@torch.no_grad()
def logits_of(backbone: Backbone, adapter: Adapter, images: Tensor) -> Tensor:
    tuned = TunedModel(backbone.model, backbone.sites)
    tuned.set_vectors(adapter.scale, adapter.shift)
    return tuned(images) @ adapter.head_weight.T + adapter.head_bias


@pytest.mark.parametrize(("family", "weights"), WEIGHTS)
def test_a_checkpoint_gives_the_logits_of_the_reference_code(family: str, weights: Weights) -> None:
    arrays = golden_arrays(family)
    expected = torch.from_numpy(arrays["logits" if weights == "raw" else "logits_ema"])
    images = torch.from_numpy(arrays["input"])
    adapter = converted(family, weights)
    got = logits_of(rebuilt(family, weights), adapter, images)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(
            merge(rebuilt(family, weights), adapter)(images), expected, rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_convnext_trained_with_true_norms_is_taken_as_such(weights: Weights) -> None:
    checkpoint = read_official(GOLDEN / "convnext.pth", weights)
    adapter = convert(checkpoint, rebuilt("convnext", weights), true_layer_norm=True)
    arrays = golden_arrays("convnext")
    name = "logits_true_layernorm" if weights == "raw" else "logits_ema_true_layernorm"
    got = logits_of(rebuilt("convnext", weights), adapter, torch.from_numpy(arrays["input"]))
    torch.testing.assert_close(got, torch.from_numpy(arrays[name]), rtol=0, atol=TOLERANCE)
    assert len(adapter.scale) == 27 and len(converted("convnext", weights).scale) == 30


@pytest.mark.parametrize("family", GOLDENS)
def test_sites_are_those_of_the_reference_code(family: str) -> None:
    checkpoint = read_official(GOLDEN / f"{family}.pth", "raw")
    expected = set(rebuilt(family).sites.official.widths)
    assert set(checkpoint.scale) == set(checkpoint.shift) == expected == set(GOLDENS[family].sites.values())


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_ema_weights_are_the_default_where_there_are_any(family: str) -> None:
    assert read_official(GOLDEN / f"{family}.pth").weights == "ema"
    assert read_official(GOLDEN / "swin.pth").weights == "raw"
    with pytest.raises(CheckpointInvalid, match="has no state_dict_ema"):
        read_official(GOLDEN / "swin.pth", "ema")


def test_the_run_is_recorded() -> None:
    adapter = converted("vit", "ema")
    record = adapter.manifest.training
    assert record is not None
    assert record.dataset == "torch/cifar100" and record.seed == 42 and record.recipe["lr"] == 0.001
    assert record.recipe["weights"] == "ema" and record.metrics == {"top1_of_the_trainer": 93.99}
    assert "data_dir" not in record.recipe
    assert adapter.manifest.labels == tuple("0123456")


# what timm gives the convnext before the reference code trained its `head.norm`
def pretrained_convnext() -> Backbone:
    state = load(write_backbone(read_official(GOLDEN / "convnext.pth", "raw")))
    g = torch.Generator().manual_seed(3)
    state["head.norm.weight"] = 1 + 0.2 * torch.randn(80, generator=g)
    state["head.norm.bias"] = 0.2 * torch.randn(80, generator=g)
    return build("convnext", state)


def test_a_trained_head_norm_goes_into_the_head_of_the_pretrained_backbone() -> None:
    backbone = pretrained_convnext()
    adapter = convert(read_official(GOLDEN / "convnext.pth", "raw"), backbone)
    assert adapter.manifest.backbone.fingerprint == backbone.fingerprint
    arrays = golden_arrays("convnext")
    got = logits_of(backbone, adapter, torch.from_numpy(arrays["input"]))
    torch.testing.assert_close(got, torch.from_numpy(arrays["logits"]), rtol=0, atol=TOLERANCE)


@cache
def content(family: str) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        read: dict[str, Any] = torch.load(GOLDEN / f"{family}.pth", weights_only=True)
    return read


def written(path: Path, family: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a family's checkpoint, changed."""
    copy = {key: dict(value) if "state_dict" in key else value for key, value in content(family).items()}
    torch.save(change(copy) or copy, path)
    return path


def test_averaging_rounds_no_frozen_weight_away(tmp_path: Path) -> None:
    def average(checkpoint: dict[str, Any]) -> None:
        raw = checkpoint["state_dict"]
        ema = {key: tensor * (1 + 1e-4) for key, tensor in raw.items()}
        trained = [key for key in raw if "ssf_" in key or key.startswith("head.")]
        ema |= {key: content("convnext")["state_dict_ema"][key] for key in trained}
        ema["head.norm.weight"] = raw["head.norm.weight"] * (1 + 1e-4)
        checkpoint["state_dict_ema"] = ema

    read = read_official(written(tmp_path / "x.pth.tar", "convnext", average))
    assert read.weights == "ema"
    assert fingerprint(load(write_backbone(read))) == fingerprint(
        load(write_backbone(read_official(GOLDEN / "convnext.pth", "raw")))
    )
    drifted = content("convnext")["state_dict"]["head.norm.weight"] * (1 + 1e-4)
    assert torch.equal(read.frozen["head.norm.weight"], drifted)
    assert torch.equal(read.head[0], content("convnext")["state_dict_ema"]["head.fc.weight"])


def wrapped(checkpoint: dict[str, Any]) -> None:
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}


def bare(checkpoint: dict[str, Any]) -> Any:
    return checkpoint["state_dict"]


@pytest.mark.parametrize("change", [wrapped, bare])
def test_wrapped_and_bare_state_dicts_are_the_same(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    read = read_official(written(tmp_path / "x.pth.tar", "swin", change))
    adapter = convert(read, rebuilt("swin"))
    expected = converted("swin", "raw").tensors()
    assert adapter.tensors().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter.tensors().items())


def forked(checkpoint: dict[str, Any]) -> None:
    for stage, width in ((0, 96), (1, 192)):
        checkpoint["state_dict"][f"layers.{stage}.downsample.ssf_scale_1"] = torch.full((width,), 1.5)
        checkpoint["state_dict"][f"layers.{stage}.downsample.ssf_shift_1"] = torch.full((width,), 0.5)


def test_vectors_behind_patch_merging_move_with_it(tmp_path: Path) -> None:
    read = read_official(written(tmp_path / "x.pth.tar", "swin", forked))
    extra = [site.name for site in rebuilt("swin").sites if site.extra]
    assert set(read.scale) - set(rebuilt("swin").sites.official.widths) == set(extra)
    assert all(bool((convert(read, rebuilt("swin")).scale[name] == 1.5).all()) for name in extra)


def test_vectors_behind_a_downsampling_norm_meet_its_smaller_gain(tmp_path: Path) -> None:
    name, width = "stages.1.downsample.0", 12
    gamma, beta = torch.linspace(0.5, 1.5, width), torch.linspace(-1, 1, width)

    def fork(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["stages.1.downsample.ssf_scale_1"] = gamma
        checkpoint["state_dict"]["stages.1.downsample.ssf_shift_1"] = beta

    adapter = convert(
        read_official(written(tmp_path / "x.pth.tar", "convnext", fork), "raw"), rebuilt("convnext")
    )
    norm = rebuilt("convnext").model.get_submodule(name)
    y = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    expected = gamma * (y * norm.weight * (11 / 12) ** 0.5 + norm.bias) + beta
    got = adapter.scale[name] * (y * norm.weight + norm.bias) + adapter.shift[name]
    torch.testing.assert_close(got, expected)


def unknown_vector(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"]["blocks.0.attn.ssf_scale_3"] = torch.ones(64)


def no_head(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state_dict"]["head.bias"]


def a_resnet(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"] = {"layer1.0.conv1.weight": torch.ones(1)}


def a_list(_: dict[str, Any]) -> Any:
    return [1, 2]


def a_class_of_its_own(checkpoint: dict[str, Any]) -> None:
    checkpoint["args"] = Path("x")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unknown_vector, r"blocks\.0\.attn\.ssf_scale_3 belongs to no site of a vit"),
        (no_head, r"has no classifier 'head\.bias'"),
        (a_resnet, "is no checkpoint of the reference code's families"),
        (a_list, "holds a list, not a checkpoint"),
        (a_class_of_its_own, "cannot be read safely"),
    ],
)
def test_what_is_no_such_checkpoint_is_told_why(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    with pytest.raises(CheckpointInvalid, match=reason):
        read_official(written(tmp_path / "x.pth.tar", "vit", change), "raw")


@pytest.mark.parametrize("data", [b"", b"junk", (GOLDEN / "vit.pth").read_bytes()[:100_000]])
def test_a_damaged_file_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pth.tar").write_bytes(data)
    with pytest.raises(CheckpointInvalid, match="cannot be read safely"):
        read_official(tmp_path / "x.pth.tar")


def test_another_backbone_is_named_with_what_differs() -> None:
    checkpoint = read_official(GOLDEN / "vit.pth", "raw")
    other = {key: tensor.clone() for key, tensor in rebuilt("vit").model.state_dict().items()}
    other["blocks.1.attn.proj.bias"][3] += 1e-6
    with pytest.raises(AdapterIncompatible, match=r"frozen weights.*attn\.proj\.bias differs by up to"):
        convert(checkpoint, build("vit", other))
    with pytest.raises(AdapterIncompatible, match="family is vit, expected swin"):
        convert(checkpoint, rebuilt("swin"))
    deeper = timm.create_model(GOLDENS["vit"].name, num_classes=0, **{**GOLDENS["vit"].arguments, "depth": 3})
    with pytest.raises(AdapterIncompatible, match=r"the architecture.*blocks\.2\."):
        convert(checkpoint, freeze(deeper, GOLDENS["vit"].name, size=SIZE))


def test_labels_must_be_as_many_as_classes() -> None:
    checkpoint, backbone = read_official(GOLDEN / "vit.pth", "raw"), rebuilt("vit")
    labels = [f"kind {index}" for index in range(7)]
    assert convert(checkpoint, backbone, labels=labels).manifest.labels == tuple(labels)
    with pytest.raises(CheckpointInvalid, match="has 7 classes, not 6"):
        convert(checkpoint, backbone, labels=labels[:6])


@pytest.mark.parametrize(("family", "size", "site"), [("convnext", 48, "stem.0"), ("asmlp", 96, "norm1")])
def test_a_map_as_wide_as_its_channels_is_refused(family: str, size: int, site: str) -> None:
    golden = GOLDENS[family]
    checkpoint = read_official(GOLDEN / f"{family}.pth", "raw")
    model = timm.create_model(golden.name, num_classes=0, **golden.arguments)
    model.load_state_dict(rebuilt(family).model.state_dict())
    with pytest.raises(CheckpointInvalid, match=f"acts on columns, not on channels, at .*{site}"):
        convert(checkpoint, freeze(model, golden.name, size=size))


def test_preprocessing_of_another_kind_is_told(tmp_path: Path) -> None:
    def resized(checkpoint: dict[str, Any]) -> None:
        checkpoint["args"] = argparse.Namespace(
            direct_resize=True, mean=[0.5, 0.5, 0.5], std=None, crop_pct=0.875, interpolation=""
        )

    read = read_official(written(tmp_path / "x.pth.tar", "vit", resized), "raw")
    first, second = differences(read, rebuilt("vit"))
    assert "without keeping their aspect" in first and "mean [0.5, 0.5, 0.5]" in second
    assert differences(read_official(GOLDEN / "vit.pth"), rebuilt("vit")) == []


def test_every_family_of_the_goldens_has_names() -> None:
    assert {names.family for names in FAMILIES} == {rebuilt(family).family.name for family in GOLDENS}


@pytest.mark.parametrize("state", ["x", [1], {"a": "b"}, {3: torch.zeros(1)}], ids=repr)
def test_weights_that_are_none_are_refused(state: object, tmp_path: Path) -> None:
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointInvalid, match="something else than named tensors"):
        read_official(tmp_path / "x.pth")
