"""States of fine-tuned models that no adapter can hold, or that are not whole, are refused by name."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.errors import CheckpointInvalid
from adapters.state_dict import convert_state_dict, read_state_dict
from adapters.tuned_weights import tunable
from tests.models import freeze, make_backbone, with_head
from tests.tuned_states import converted, frozen

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 5

Change = Callable[[dict[str, Tensor]], None]


def refused(tmp_path: Path, kind: str, change: Change) -> str:
    state = {name: tensor.clone() for name, tensor in with_head(kind).state_dict().items()}
    change(state)
    with pytest.raises(CheckpointInvalid) as caught:
        converted(tmp_path, kind, state)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["blocks.1.attn.qkv.weight", "pos_embed", "cls_token", "patch_embed.proj.weight", "reg_token"]
)
def test_any_other_tensor_that_changed_is_named_with_how_much(tmp_path: Path, name: str) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state[name].view(-1)[3] += 0.25

    assert f"changes {name} by up to 0.25:" in refused(tmp_path, "vit_registers", change)


def test_the_most_changed_of_several_is_named(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        for index, name in enumerate(("blocks.0.mlp.fc1.weight", "cls_token", "pos_embed")):
            state[name] += 0.5**index

    assert "changes blocks.0.mlp.fc1.weight by up to 1 and 2 other such tensors" in refused(
        tmp_path, "vit", change
    )


def test_a_bias_at_no_site_is_named(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state[name] += 0.125

    name = next(
        key
        for key in frozen("efficientnet").model.state_dict()
        if key.endswith("bias") and key not in tunable(frozen("efficientnet"))
    )
    assert f"changes {name} by up to 0.125:" in refused(tmp_path, "efficientnet", change)


def test_a_position_table_of_another_size_points_to_the_option(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["pos_embed"] = torch.zeros(1, 37, 32)

    told = refused(tmp_path, "vit", change)
    assert "pos_embed as [1, 37, 32], the backbone as [1, 17, 32]; --input-size" in told


def test_a_gain_cannot_come_from_zero(tmp_path: Path) -> None:
    model = make_backbone("vit").model
    model.get_submodule("blocks.0.norm1").weight[5] = 0
    backbone = freeze(model, "vit_tiny_patch16_224")
    same = with_head("vit").state_dict() | backbone.model.state_dict()
    save_file(same, tmp_path / "same.safetensors")
    adapter = convert_state_dict(read_state_dict(tmp_path / "same.safetensors"), backbone)
    assert adapter.manifest.sites == ()
    same["blocks.0.norm1.bias"] = same["blocks.0.norm1.bias"] + 0.5
    save_file(same, tmp_path / "bias.safetensors")
    adapter = convert_state_dict(read_state_dict(tmp_path / "bias.safetensors"), backbone)
    torch.testing.assert_close(adapter.shift["blocks.0.norm1"], torch.full((32,), 0.5))
    same["blocks.0.norm1.weight"] = same["blocks.0.norm1.weight"] + 0.5
    save_file(same, tmp_path / "tuned.safetensors")
    with pytest.raises(CheckpointInvalid, match=r"changes blocks\.0\.norm1\.weight where .* frozen at zero"):
        convert_state_dict(read_state_dict(tmp_path / "tuned.safetensors"), backbone)


def lose_the_head(state: dict[str, Tensor]) -> None:
    del state["head.weight"], state["head.bias"]


def lose_the_heads_weight(state: dict[str, Tensor]) -> None:
    del state["head.weight"]


def narrow_the_head(state: dict[str, Tensor]) -> None:
    state["head.weight"] = torch.zeros(CLASSES, 31)


def shorten_the_bias(state: dict[str, Tensor]) -> None:
    state["head.bias"] = torch.zeros(4)


def lose_a_weight(state: dict[str, Tensor]) -> None:
    del state["blocks.1.mlp.fc1.weight"], state["cls_token"]


def gain_a_tensor(state: dict[str, Tensor]) -> None:
    state["blocks.7.norm1.bias"] = torch.zeros(32)


def break_a_value(state: dict[str, Tensor]) -> None:
    state["norm.bias"][2] = torch.nan


CHANGES: dict[Change, str] = {
    lose_the_head: "has no classifier head.weight",
    lose_the_heads_weight: "has no classifier head.weight",
    narrow_the_head: "has a classifier of [5, 31], not of [K, 32]",
    shorten_the_bias: "has a classifier's bias of [4], not [5]",
    lose_a_weight: "lacks blocks.1.mlp.fc1.weight and 1 others, though it holds weights that stay frozen",
    gain_a_tensor: "holds blocks.7.norm1.bias, which vit_tiny_patch16_224 has not",
    break_a_value: "holds NaN or an infinity in norm.bias",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_such_state_is_told_why(tmp_path: Path, change: Change) -> None:
    assert CHANGES[change] in refused(tmp_path, "vit", change)


def test_two_heads_that_differ_are_refused(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state["head_dist.bias"] += 1

    assert "has 2 classifiers that differ" in refused(tmp_path, "vit_distilled", change)


def files() -> Iterator[tuple[str, object, str]]:
    head = torch.zeros(5, 32)
    yield "a number beside tensors", {"head.weight": head, "epoch": 3}, "holds 'epoch', which is a int"
    yield "a list", [head], "holds a list, not a checkpoint"
    yield "one name twice", {"head.weight": head, "module.head.weight": head}, "holds head.weight twice"
    yield "a class of its own", {"state_dict": Path("x")}, "cannot be read safely"


@pytest.mark.parametrize(("content", "reason"), [case[1:] for case in files()], ids=[c[0] for c in files()])
def test_what_is_no_state_dict_is_told(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointInvalid, match=reason):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_damaged_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(CheckpointInvalid, match="cannot be read safely"):
        read_state_dict(tmp_path / name)
