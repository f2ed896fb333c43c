"""Fine-tuned timm models become adapters with their logits, if only biases, norms and heads were tuned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.errors import ProbeMismatch
from adapters.merge import merge
from adapters.state_dict import convert_state_dict, read_state_dict
from adapters.tuned_weights import Tuned, tunable, tuned_vectors
from tests.models import KINDS, unmergeable, with_head
from tests.tuned_states import converted, frozen, images, logits_of, tune

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5  # of the largest logit
CLASSES = 5


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def of_norms(kind: str) -> set[str]:
    backbone = frozen(kind)
    norms = [site.name for site in backbone.sites if "norm" in site.op or site.op == "affine"]
    return {name for name in tunable(backbone) if name.rpartition(".")[0] in norms}


def of_biases(kind: str) -> set[str]:
    return {name for name in tunable(frozen(kind)) if name.endswith(("bias", "beta"))}


TUNINGS = {"bias": of_biases, "norm": of_norms, "ssf": lambda kind: tunable(frozen(kind))}


@pytest.mark.parametrize("method", TUNINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_model_becomes_an_adapter_with_its_logits(tmp_path: Path, kind: str, method: str) -> None:
    model = with_head(kind)
    tune(model, TUNINGS[method](kind))
    adapter = converted(tmp_path, kind, model.state_dict())
    only_norms = kind in {"efficientnet", "resnet"}
    assert adapter.manifest.method == ("norm" if only_norms and method == "ssf" else method)
    assert_close(logits_of(frozen(kind), adapter), model(images()))


def test_a_linear_probe_has_no_site(tmp_path: Path) -> None:
    model = with_head("vit")
    adapter = converted(tmp_path, "vit", model.state_dict())
    assert adapter.manifest.method == "linear" and adapter.manifest.sites == ()
    assert_close(logits_of(frozen("vit"), adapter), model(images()))


def test_only_sites_that_were_tuned_are_in_the_adapter(tmp_path: Path) -> None:
    model = with_head("vit_layer_scale")
    tune(model, {"blocks.0.attn.proj.bias", "blocks.1.norm2.weight"})
    adapter = converted(tmp_path, "vit_layer_scale", model.state_dict())
    assert set(adapter.shift) == {"blocks.0.attn.proj", "blocks.1.norm2"}
    assert set(adapter.scale) == {"blocks.1.norm2"}
    own = frozen("vit_layer_scale").model.get_submodule("blocks.0.attn.proj").bias
    expected = model.get_submodule("blocks.0.attn.proj").bias - own
    torch.testing.assert_close(adapter.shift["blocks.0.attn.proj"], expected)  # before the LayerScale


@pytest.mark.parametrize(
    ("kind", "name", "site"),
    [
        ("vit_layer_scale", "blocks.1.ls1.gamma", "blocks.1.attn.proj"),
        ("dinov3", "blocks.0.gamma_2", "blocks.0.mlp.fc2"),
        ("convnext", "stages.0.blocks.0.gamma", "stages.0.blocks.0.mlp.fc2"),
        ("eva", "blocks.0.attn.q_bias", "blocks.0.attn.qkv"),
        ("swin_v2", "layers.0.blocks.0.attn.v_bias", "layers.0.blocks.0.attn.qkv"),
        ("resnet", "bn1.running_var", "bn1"),
        ("res_mlp", "blocks.0.norm1.alpha", "blocks.0.norm1"),
    ],
)
def test_what_acts_on_channels_under_another_name_is_taken(
    tmp_path: Path, kind: str, name: str, site: str
) -> None:
    model = with_head(kind)
    tune(model, {name})
    adapter = converted(tmp_path, kind, model.state_dict())
    assert [covered.name for covered in adapter.manifest.sites] == [site]
    assert_close(logits_of(frozen(kind), adapter), model(images()))


def test_what_was_tuned_merges_back_into_the_tuned_model(tmp_path: Path) -> None:
    model = with_head("vit_layer_scale")
    tune(model, of_biases("vit_layer_scale") | of_norms("vit_layer_scale"))
    assert unmergeable("vit_layer_scale", frozen("vit_layer_scale")) == []
    adapter = converted(tmp_path, "vit_layer_scale", model.state_dict())
    merged = merge(frozen("vit_layer_scale"), adapter).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit_average_pool", "convnext"])
def test_a_norm_before_the_head_goes_into_the_head(tmp_path: Path, kind: str) -> None:
    model = with_head(kind)
    name = "fc_norm" if kind == "vit_average_pool" else "head.norm"
    tune(model, {f"{name}.weight", f"{name}.bias"})
    adapter = converted(tmp_path, kind, model.state_dict())
    assert adapter.manifest.method == "linear" and adapter.manifest.sites == ()
    assert_close(logits_of(frozen(kind), adapter), model(images()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision_is_compared_in_it(tmp_path: Path, dtype: torch.dtype) -> None:
    model = with_head("vit")
    tune(model, of_biases("vit"))
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    rounded = with_head("vit")
    kept = of_biases("vit") | {"head.weight", "head.bias"}
    rounded.load_state_dict({name: state[name].float() for name in kept}, strict=False)
    adapter = converted(tmp_path, "vit", state)
    assert adapter.manifest.method == "bias"
    assert_close(logits_of(frozen("vit"), adapter), rounded(images()))


def bare(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path)


def wrapped(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, path)


def within_a_trainer(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"epoch": 3, "state_dict": state, "state_dict_ema": {"x": torch.ones(1)}}, path)


def as_a_model(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": state, "args": {"lr": 0.1}}, path)


@pytest.mark.parametrize("write", [bare, wrapped, within_a_trainer, as_a_model])
def test_every_way_of_saving_is_read(
    tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]
) -> None:
    model = with_head("vit")
    tune(model, of_biases("vit"))
    write(tmp_path / "tuned.pth", model.state_dict())
    read = read_state_dict(tmp_path / "tuned.pth")
    assert read.averaged == ("state_dict_ema" if write is within_a_trainer else None)
    assert_close(logits_of(frozen("vit"), convert_state_dict(read, frozen("vit"))), model(images()))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vit", "head."),
        ("vit", "fc."),
        ("vit", ""),
        ("resnet", "fc."),
        ("efficientnet", "classifier."),
        ("convnext", "head.fc."),
    ],
)
def test_a_head_alone_is_a_linear_probe(tmp_path: Path, kind: str, name: str) -> None:
    model = with_head(kind)
    head = model.get_classifier()
    adapter = converted(tmp_path, kind, {f"{name}weight": head.weight, f"{name}bias": head.bias})
    assert adapter.manifest.method == "linear"
    assert_close(logits_of(frozen(kind), adapter), model(images()))


def test_a_head_without_a_bias_has_one_of_zeros(tmp_path: Path) -> None:
    adapter = converted(tmp_path, "vit", {"head.weight": with_head("vit").get_classifier().weight})
    assert torch.equal(adapter.head_bias, torch.zeros(CLASSES))


def test_a_file_of_only_what_was_tuned_is_enough(tmp_path: Path) -> None:
    model = with_head("vit")
    tune(model, of_biases("vit"))
    state = model.state_dict()
    kept = of_biases("vit") & state.keys() | {"head.weight", "head.bias"}
    adapter = converted(tmp_path, "vit", {name: state[name] for name in kept})
    assert_close(logits_of(frozen("vit"), adapter), model(images()))


def test_a_position_table_resampled_elsewhere_is_the_same(tmp_path: Path) -> None:
    model = with_head("vit")
    model.state_dict()["pos_embed"].add_(1e-7)
    assert converted(tmp_path, "vit", model.state_dict()).manifest.sites == ()


def test_an_adapter_that_computes_something_else_is_never_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_shifts(*given: Any) -> Tuned:
        return replace(tuned_vectors(*given), shift={})

    monkeypatch.setattr("adapters.state_dict.tuned_vectors", without_shifts)
    model = with_head("vit")
    tune(model, {"blocks.0.attn.qkv.bias"})
    with pytest.raises(ProbeMismatch):
        converted(tmp_path, "vit", model.state_dict())
