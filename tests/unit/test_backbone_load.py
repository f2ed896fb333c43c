from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backbone.errors import BackboneError, UnsupportedModel, WeightsInvalid, WeightsUnavailable
from backbone.fingerprint import fingerprint
from backbone.load import load_backbone
from backbone.offline import PACKAGES

TINY = "vit_tiny_patch16_224"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("edgenext_xx_small", "EdgeNeXt"),
        ("no_such_model", "no_such_model"),
        ("vit_small_patch16_36x1_224.nope", "vit_small_patch16_36x1_224.nope"),
    ],
)
def test_unsupported_model_is_named(name: str, module: str) -> None:
    with pytest.raises(UnsupportedModel, match=module):
        load_backbone(name, source="random")


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


def test_windows_of_swin_keep_to_the_input_size(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    made = load_backbone(name, source="random:3", input_size=64)
    save_file(made.model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_backbone(name, source=str(tmp_path / "weights.safetensors"), input_size=32)
    tables = [
        backbone.model.get_submodule("layers.2.blocks.0.attn").relative_position_bias_table.shape[0]
        for backbone in (made, loaded)
    ]
    assert tables == [(2 * window - 1) ** 2 for window in (4, 2)]
    assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, loaded.head_width)


def test_a_checkpoint_with_a_classifier_and_computed_entries_gives_the_same_backbone(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    made = load_backbone(name, source="random:3", input_size=64)
    stored = made.model.state_dict() | {
        "head.fc.weight": torch.zeros(7, made.head_width),
        "layers.0.blocks.1.attn.relative_position_index": torch.zeros(49, 49),
    }
    save_file(stored, tmp_path / "weights.safetensors")
    loaded = load_backbone(name, source=str(tmp_path / "weights.safetensors"), input_size=64)
    assert loaded.fingerprint == made.fingerprint


def test_hub_weights_come_at_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretrained(model: torch.nn.Module, **_: object) -> None:
        assert model.patch_embed.img_size == (224, 224)
        torch.nn.init.constant_(model.norm.bias, 3.0)

    monkeypatch.setattr("timm.models._builder.load_pretrained", pretrained)
    loaded = load_backbone(TINY, source="hub", input_size=32)
    assert loaded.spec.height == 32
    assert bool((loaded.model.norm.bias == 3).all())


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
    monkeypatch.setattr("timm.models._builder.load_pretrained", _no_network)
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
