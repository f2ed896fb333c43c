"""Adapters of PEFT that no scale and shift can be, or that contradict themselves, are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import AdapterIncompatible, CheckpointInvalid, ProbeMismatch
from adapters.peft.conversion import convert_peft
from adapters.peft.folder import read_peft
from backbone.load import Backbone
from tests.golden_data import GOLDEN
from tests.models import freeze, make_backbone, with_head
from tests.peft_folders import heads_of, ia3_vectors, write_folder, write_ia3

pytestmark = pytest.mark.usefixtures("one_thread")

PREFIX = "base_model.model."
Config, Tensors = dict[str, Any], dict[str, Tensor]
Change = Callable[[Config, Tensors], None]


def changed(tmp_path: Path, folder: str, change: Change) -> Path:
    """Return a copy of a folder that PEFT saved, with something changed."""
    copy = shutil.copytree(GOLDEN / "peft" / folder, tmp_path / folder)
    config = json.loads((copy / "adapter_config.json").read_text())
    stored = load_file(copy / "adapter_model.safetensors")
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    change(config, tensors)
    (copy / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"{PREFIX}{n}": t for n, t in tensors.items()}, copy / "adapter_model.safetensors")
    return copy


def told(folder: Path, backbone: Backbone) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        convert_peft(read_peft(folder), backbone)
    return str(caught.value)


def be_of_type(kind: object) -> Change:
    def change(config: Config, _: Tensors) -> None:
        config["peft_type"] = kind

    return change


def setting(name: str, value: object) -> Change:
    def change(config: Config, _: Tensors) -> None:
        config[name] = value

    return change


def having(name: str, tensor: Tensor) -> Change:
    def change(_: Config, tensors: Tensors) -> None:
        tensors[name] = tensor

    return change


def without(*names: str) -> Change:
    def change(_: Config, tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def without_vectors(_: Config, tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("ia3_l")]:
        del tensors[name]


def without_saved(_: Config, tensors: Tensors) -> None:
    del tensors["classifier.weight"], tensors["classifier.bias"]


def of_another_model(config: Config, tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("vit.")]:
        tensors[name.replace("vit.", "bert.")] = tensors.pop(name)


def with_its_embeddings(config: Config, tensors: Tensors) -> None:
    config["modules_to_save"].append("embeddings")
    tensors["vit.embeddings.cls_token"] = torch.zeros(1, 1, 32)


KEY, OUT = "vit.layers.1.attention.k_proj", "vit.layers.1.attention.o_proj"
REFUSED: list[tuple[str, Change, str]] = [
    ("LoRA", be_of_type("LORA"), "'LORA', which changes weights, which no scale and shift can hold"),
    ("prompts", be_of_type("PROMPT_TUNING"), "which adds tokens, which no scale and shift can"),
    ("a type of the future", be_of_type("NEW"), "'NEW', which is unknown here; IA3 and LN_TUNING"),
    ("no type", be_of_type(None), "has an adapter_config.json without a peft_type"),
    (
        "LN tuning with vectors",
        be_of_type("LN_TUNING"),
        "is of type LN_TUNING and holds what only IA3 has: vit.",
    ),
    ("a list of types", be_of_type(["IA3"]), "has an adapter_config.json without a peft_type"),
    ("a wrong field", setting("target_modules", 3), "with a wrong target_modules"),
    ("a broken pattern", setting("target_modules", "(k_proj"), "names modules by a pattern that is none"),
    ("no vectors", without_vectors, "is of type IA3 and holds no .ia3_l"),
    ("a target unnamed", setting("target_modules", ["v_proj"]), "has trained vit."),
    (
        "a target excluded",
        setting("exclude_modules", ["k_proj"]),
        "k_proj, which its target_modules do not name",
    ),
    (
        "a module unnamed",
        setting("modules_to_save", None),
        "holds classifier.bias, which its modules_to_save do",
    ),
    ("nothing saved", without_saved, "lacks classifier, named in modules_to_save"),
    ("a vector missing", without(f"{KEY}.ia3_l"), f"lacks {KEY}, which its target_modules name"),
    (
        "a deeper model",
        having("vit.layers.2.attention.k_proj.ia3_l", torch.ones(32, 1)),
        "layers.2.attention.k",
    ),
    ("another model", of_another_model, "names bert.embeddings.patch_embeddings.projection, which is no"),
    ("embeddings saved", with_its_embeddings, "names vit.embeddings, which vit_tiny_patch16_224 has not"),
    (
        "a wider model",
        having(f"{KEY}.ia3_l", torch.ones(48, 1)),
        f"the vector of {KEY} as [48, 1], not as [32, 1]",
    ),
    (
        "an input unnamed",
        having(f"{KEY}.ia3_l", torch.ones(1, 32)),
        f"scales the input of {KEY} ([1, 32]), but",
    ),
    (
        "an output named",
        setting("feedforward_modules", ["o_proj"]),
        "o_proj ([32, 1]), but its feedforward_modules",
    ),
    (
        "a broken value",
        having(f"{OUT}.ia3_l", torch.full((32, 1), torch.nan)),
        f"NaN or an infinity in {OUT}",
    ),
    ("no classifier", without("classifier.weight"), "modules_to_save=['classifier']"),
    (
        "a narrow classifier",
        having("classifier.weight", torch.ones(5, 31)),
        "a classifier of [5, 31], not of [K, 32]",
    ),
    ("no rule", having("x", torch.ones(1)), "holds x, which its modules_to_save do not name"),
]


@pytest.mark.parametrize(
    ("change", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_an_adapter_is_refused_by_name(tmp_path: Path, change: Change, reason: str) -> None:
    assert reason in told(changed(tmp_path, "vit_v5_ia3", change), make_backbone("vit"))


def test_an_activations_output_takes_no_scale(tmp_path: Path) -> None:
    model = with_head("vit")
    folder = write_ia3(tmp_path / "a", model, ia3_vectors(model, ("fc2",), ("fc2",)), ("fc2",))
    reason = told(folder, make_backbone("vit"))
    assert "scales the input of blocks.0.mlp.fc2, which no norm or linear op puts out: no site can" in reason
    assert "train it with feedforward_modules=[]" in reason


@pytest.mark.parametrize(("kind", "name"), [("vit", "patch_embed.proj"), ("vit_norms_behind", "attn.qkv")])
def test_what_no_norm_precedes_takes_no_scale_of_its_input(tmp_path: Path, kind: str, name: str) -> None:
    model = with_head(kind)
    vectors = {path: v for path, v in ia3_vectors(model, ("qkv", "proj"), ()).items() if path.endswith(name)}
    vectors = {
        path: torch.full((1, 3, 1, 1), 2.0) if path.startswith("patch") else torch.full((1, 32), 2.0)
        for path in vectors
    }
    assert "which no norm or linear op puts out" in told(
        write_ia3(tmp_path / "a", model, vectors, (name,)), make_backbone(kind)
    )


@pytest.mark.parametrize("other", [torch.full((1, 32), 1.5), torch.ones(1, 32)])
def test_query_key_and_value_scaled_apart_are_refused(tmp_path: Path, other: Tensor) -> None:
    folder = changed(tmp_path, "vit_v5_ia3_inputs", having(f"{KEY}.ia3_l", other))
    reason = told(folder, make_backbone("vit"))
    assert (
        "scales the inputs of vit.layers.1.attention." in reason and "apart, which are one output" in reason
    )


def test_a_key_scaled_alone_is_refused(tmp_path: Path) -> None:
    def change(config: Config, tensors: Tensors) -> None:
        config["target_modules"] = ["k_proj"]
        for name in [name for name in tensors if "k_proj" not in name and "ia3_l" in name]:
            del tensors[name]

    reason = told(changed(tmp_path, "vit_v5_ia3_inputs", change), make_backbone("vit"))
    assert "k_proj and vit.layers.0.attention.q_proj apart" in reason


def test_an_op_that_timm_never_calls_is_named(tmp_path: Path) -> None:
    model = with_head("eva")
    folder = write_ia3(tmp_path / "a", model, ia3_vectors(model, ("qkv",), ()), ())
    assert "blocks.0.attn.qkv, which timm never calls" in told(folder, make_backbone("eva"))


def test_an_output_at_no_site_is_named(tmp_path: Path) -> None:
    model = with_head("swin")
    folder = write_ia3(tmp_path / "a", model, ia3_vectors(model, ("reduction",), ()), ())
    assert "scales the output of layers.1.downsample.reduction, where no site is" in told(
        folder, make_backbone("swin")
    )


def test_a_scaled_classifier_is_refused(tmp_path: Path) -> None:
    model = with_head("vit")
    vectors = ia3_vectors(model, ("qkv",), ()) | {"head": torch.full((5, 1), 2.0)}
    folder = write_ia3(tmp_path / "a", model, vectors, ())
    assert "scales head, the classifier itself" in told(folder, make_backbone("vit"))


def test_a_norm_is_no_target_of_vectors(tmp_path: Path) -> None:
    folder = write_ia3(tmp_path / "a", with_head("vit"), {"norm": torch.ones(32, 1)}, ())
    assert "scales norm, which is no linear op or convolution" in told(folder, make_backbone("vit"))


def test_a_dinov2_classifier_that_reads_patch_tokens_is_refused() -> None:
    reason = told(GOLDEN / "peft" / "dinov2_v5_both_halves", make_backbone("vit_layer_scale"))
    assert "a classifier of [K, 64], which reads the mean of the patch tokens too" in reason
    assert "zero from column 32 on" in reason


def test_a_norm_cannot_be_tuned_from_zero(tmp_path: Path) -> None:
    model = make_backbone("vit").model
    model.get_submodule("blocks.1.norm2").weight[3] = 0
    reason = told(GOLDEN / "peft" / "vit_v5_ln", freeze(model, "vit_tiny_patch16_224"))
    assert "changes blocks.1.norm2." in reason and "frozen at zero" in reason


def test_a_linear_op_that_was_tuned_like_a_norm_is_refused(tmp_path: Path) -> None:
    model = with_head("vit")
    name = "blocks.0.attn.proj"
    tensors = {
        f"{name}.ln_tuning_layers.weight": model.state_dict()[f"{name}.weight"] + 0.5,
        f"{name}.ln_tuning_layers.bias": model.state_dict()[f"{name}.bias"],
    }
    folder = write_folder(
        tmp_path / "a",
        tensors | heads_of(model),
        peft_type="LN_TUNING",
        target_modules=[name],
        modules_to_save=["head"],
    )
    assert f"changes {name}.weight by up to 0.5" in told(folder, make_backbone("vit"))


@pytest.mark.parametrize(
    ("folder", "kind", "reason"),
    [
        ("vit_v5_ia3", "vit_layer_scale", "is transformers' ViT, expected one with LayerScales"),
        ("dinov2_v4_ia3", "vit", "is transformers' Dinov2, expected one without LayerScales"),
        ("vit_v4_ln", "vit_average_pool", "what its head sees is the class token"),
    ],
)
def test_a_backbone_that_is_built_otherwise_is_told(folder: str, kind: str, reason: str) -> None:
    with pytest.raises(AdapterIncompatible, match=reason):
        convert_peft(read_peft(GOLDEN / "peft" / folder), make_backbone(kind))


def test_an_adapter_that_computes_something_else_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.peft.conversion.scales_of", lambda *_: {})
    with pytest.raises(ProbeMismatch):
        convert_peft(read_peft(GOLDEN / "peft" / "vit_v5_ia3"), make_backbone("vit"))


def test_labels_must_be_as_many_as_classes() -> None:
    with pytest.raises(CheckpointInvalid, match="has 5 classes, not 2"):
        convert_peft(read_peft(GOLDEN / "peft" / "vit_v5_ia3"), make_backbone("vit"), labels=["a", "b"])
