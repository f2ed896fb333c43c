from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backbone.errors import BackboneError, UnsupportedModel, WeightsInvalid, WeightsUnavailable
from backbone.fingerprint import fingerprint
from backbone.load import load_backbone
from backbone.offline import PACKAGES

TINY = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "sites", "parameters"),
    [("vit_base_patch16_224", 74, 205_824), ("vit_small_patch14_dinov2", 74, 102_912)],
)
def test_counts_are_those_of_the_method(name: str, sites: int, parameters: int) -> None:
    backbone = load_backbone(name, source="random", input_size=28 if "14" in name else 32)
    assert len(backbone.sites) == sites
    assert 2 * backbone.sites.total_width == parameters


def test_sites_follow_the_forward_order() -> None:
    names = [site.name for site in load_backbone(TINY, source="random", input_size=32).sites]
    assert names[:4] == ["patch_embed.proj", "blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert names[-2:] == ["blocks.11.mlp.fc2", "norm"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vit_base_patch16_rope_reg1_gap_256", "Eva"),
        ("resnet18", "ResNet"),
        ("no_such_model", "no_such_model"),
        ("vit_small_patch16_36x1_224.nope", "vit_small_patch16_36x1_224.nope"),
    ],
)
def test_unsupported_model_is_named(name: str, module: str) -> None:
    with pytest.raises(UnsupportedModel, match=module):
        load_backbone(name, source="random")


def test_module_that_stands_in_the_way_is_named() -> None:
    with pytest.raises(UnsupportedModel, match=r"blocks\.0` is a ParallelThingsBlock"):
        load_backbone("vit_small_patch16_18x2_224", source="random", input_size=32)


def test_checkpoint_file_gives_the_same_backbone(tmp_path: Path) -> None:
    made = load_backbone(TINY, source="random:3", input_size=32)
    save_file(made.model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_backbone(TINY, source=str(tmp_path / "weights.safetensors"), input_size=32)
    assert loaded.fingerprint == made.fingerprint


def test_position_table_is_resampled_to_the_input_size(tmp_path: Path) -> None:
    made = load_backbone(TINY, source="random:3", input_size=64)
    save_file(made.model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_backbone(TINY, source=str(tmp_path / "weights.safetensors"), input_size=32)
    assert loaded.spec.height == 32
    assert loaded.fingerprint != made.fingerprint


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, WeightsUnavailable), (b"not a checkpoint", WeightsInvalid), (b"", WeightsInvalid)],
)
def test_bad_checkpoint_is_refused(tmp_path: Path, content: bytes | None, error: type[BackboneError]) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match="weights"):
        load_backbone(TINY, source=str(path), input_size=32)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    other = load_backbone("tf_efficientnet_lite0", source="random")
    save_file(other.model.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsInvalid, match="Missing key"):
        load_backbone(TINY, source=str(tmp_path / "weights.safetensors"), input_size=32)


def test_model_without_an_offline_package_names_those_that_have_one() -> None:
    with pytest.raises(WeightsUnavailable, match="vit_small_patch14_dinov2"):
        load_backbone(TINY, source="offline", input_size=32)


def test_hub_out_of_reach_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models.load_pretrained", _no_network)
    with pytest.raises(WeightsUnavailable, match=r"offline package.*local checkpoint.*HF_ENDPOINT"):
        load_backbone(TINY, source="hub", input_size=32)


def _no_network(*_args: object, **_kwargs: object) -> None:
    raise ConnectionError


@pytest.mark.parametrize("name", PACKAGES)
def test_offline_package_fits_strictly(name: str) -> None:
    try:
        backbone = load_backbone(name, source="offline", input_size=28 if "vit" in name else 64)
    except WeightsUnavailable as error:
        pytest.skip(str(error))
    assert backbone.source == PACKAGES[name].title


def test_fingerprint_sees_every_value_and_name() -> None:
    state = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    same = fingerprint({"b": state["b"].clone(), "a": state["a"].clone()})
    assert fingerprint(state) == same
    assert fingerprint({**state, "a": torch.tensor([0.0, 0.0, 1e-30])}) != same
    assert fingerprint({"c": state["a"], "b": state["b"]}) != same
    assert fingerprint({**state, "b": torch.ones(4)}) != same
