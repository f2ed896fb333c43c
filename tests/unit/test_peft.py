"""Adapters of PEFT become ours, with its logits; tests/golden/peft has some that it saved itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import Attention
from torch import nn

from adapters.errors import CheckpointInvalid
from adapters.file import Adapter
from adapters.peft.conversion import convert_peft
from adapters.peft.folder import read_peft
from backbone.load import Backbone
from tests.golden_data import GOLDEN
from tests.models import KINDS, SIZE, freeze, make_backbone, with_head, with_random_head
from tests.peft_folders import (
    heads_of,
    ia3_vectors,
    wrapped,
    write_folder,
    write_ia3,
)
from tests.tuned_states import images, logits_of

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5  # logits are of order 3
FOLDERS = sorted(path.name for path in (GOLDEN / "peft").iterdir() if path.is_dir())
SAVED = [name for name in FOLDERS if not name.endswith("both_halves")]


def golden_backbone(folder: str) -> Backbone:
    kind = "vit" if folder.startswith("vit") else "vit_layer_scale"
    name, arguments = KINDS[kind]
    if folder.endswith("swiglu"):
        kind, name, arguments = "vit_swiglu", "vit_giant_patch14_dinov2", {**arguments, "mlp_ratio": 3.0}
    model = timm.create_model(name, num_classes=0, **arguments)
    model.load_state_dict(load_file(GOLDEN / "peft" / f"{kind}.safetensors"))
    return freeze(model, name)


def assert_same(backbone: Backbone, adapter: Adapter, model: nn.Module) -> None:
    expected = model(images())
    largest = max(1, float(expected.abs().max()))
    torch.testing.assert_close(logits_of(backbone, adapter), expected, rtol=0, atol=TOLERANCE * largest)


@pytest.mark.parametrize("folder", SAVED)
def test_what_peft_saved_gives_the_logits_that_peft_gave(folder: str) -> None:
    backbone, path = golden_backbone(folder), GOLDEN / "peft" / folder
    adapter = convert_peft(read_peft(path), backbone)
    assert adapter.manifest.method == ("norm" if folder.endswith("ln") else "ia3")
    pixels = torch.from_numpy(np.load(GOLDEN / "peft" / "images.npy"))
    expected = torch.from_numpy(np.load(path / "logits.npy"))
    torch.testing.assert_close(logits_of(backbone, adapter, pixels), expected, rtol=0, atol=TOLERANCE)


def test_query_key_and_value_become_rows_of_qkv() -> None:
    adapter = convert_peft(read_peft(GOLDEN / "peft" / "vit_v4_ia3"), golden_backbone("vit"))
    stored = load_file(GOLDEN / "peft" / "vit_v4_ia3" / "adapter_model.safetensors")
    prefix = "base_model.model.vit.encoder.layer.1.attention.attention"
    query, key, value = adapter.scale["blocks.1.attn.qkv"].chunk(3)
    assert torch.equal(query, torch.ones(32))
    assert torch.equal(key, stored[f"{prefix}.key.ia3_l"].flatten())
    assert torch.equal(value, stored[f"{prefix}.value.ia3_l"].flatten())


def test_an_adapter_that_only_scales_has_no_shift() -> None:
    adapter = convert_peft(read_peft(GOLDEN / "peft" / "timm_v5_ia3"), golden_backbone("timm"))
    assert adapter.shift == {}
    assert "blocks.0.norm1" in adapter.scale and "blocks.0.attn.qkv" not in adapter.scale


OUTPUTS = ("qkv", "proj", "fc1", "fc2")
INPUTS = ("attn.proj", "mlp.fc1")
GATED = (*INPUTS, "mlp.fc2")
CASES = [
    ("vit_registers", OUTPUTS, ()),
    ("vit_distilled", OUTPUTS, ("qkv",)),
    ("vit_average_pool", ("qkv", "attn.proj", "fc1"), ("qkv", *INPUTS)),
    ("vit_norms_behind", OUTPUTS, ("attn.proj",)),
    ("vit_swiglu", ("qkv", "attn.proj", "fc1", "fc2"), ("qkv", *GATED)),
    ("eva", ("attn.proj", "fc1", "fc2"), GATED),
    ("dinov3", ("attn.proj", "fc1", "fc2"), INPUTS),
    ("swin", ("qkv", "proj", "fc1", "fc2"), ()),
]


@pytest.mark.parametrize(("kind", "targets", "feedforward"), CASES)
def test_vectors_of_every_kind_of_vit_give_the_wrapped_models_logits(
    tmp_path: Path, kind: str, targets: tuple[str, ...], feedforward: tuple[str, ...]
) -> None:
    model = with_head(kind)
    vectors = ia3_vectors(model, targets, feedforward)
    folder = write_ia3(tmp_path / "a", model, vectors, feedforward)
    backbone = make_backbone(kind)
    adapter = convert_peft(read_peft(folder), backbone)
    assert_same(backbone, adapter, wrapped(model, vectors, feedforward))


def built(name: str, width: int) -> tuple[nn.Module, Backbone]:
    """Return a small timm model with a head, and its backbone."""
    arguments = {"img_size": SIZE, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    model = with_random_head(timm.create_model(name, num_classes=5, **arguments))
    bare = timm.create_model(name, num_classes=0, **arguments)
    bare.load_state_dict(model.state_dict(), strict=False)
    return model, freeze(bare, name)


def test_norms_between_take_the_scale_of_an_input(tmp_path: Path) -> None:
    model, backbone = built("eva02_base_patch16_clip_224", 32)
    feedforward = ("q_proj", "k_proj", "v_proj", "attn.proj", "fc1_g", "fc1_x", "fc2")
    vectors = ia3_vectors(model, feedforward, feedforward)
    for block in ("blocks.0.", "blocks.1."):
        for first, others in (("attn.q_proj", ("attn.k_proj", "attn.v_proj")), ("mlp.fc1_g", ("mlp.fc1_x",))):
            vectors |= {f"{block}{other}": vectors[f"{block}{first}"] for other in others}
    adapter = convert_peft(read_peft(write_ia3(tmp_path / "a", model, vectors, feedforward)), backbone)
    norms = {
        f"blocks.{index}.{norm}" for index in (0, 1) for norm in ("norm1", "norm2", "attn.norm", "mlp.norm")
    }
    assert set(adapter.scale) == norms
    assert_same(backbone, adapter, wrapped(model, vectors, feedforward))


def test_the_half_of_a_swiglu_that_is_no_gate_takes_the_scale_of_its_product(tmp_path: Path) -> None:
    model, backbone = built("vit_huge_plus_patch16_dinov3", 64)
    vectors = ia3_vectors(model, ("fc2",), ("fc2",))
    adapter = convert_peft(read_peft(write_ia3(tmp_path / "a", model, vectors, ("fc2",))), backbone)
    assert set(adapter.scale) == {"blocks.0.mlp.fc1_x", "blocks.1.mlp.fc1_x"}
    assert_same(backbone, adapter, wrapped(model, vectors, ("fc2",)))


@pytest.mark.parametrize("readers", [("q_proj", "k_proj", "v_proj"), ("fc1_g",)])
def test_readers_of_a_norm_that_are_scaled_apart_are_refused(
    tmp_path: Path, readers: tuple[str, ...]
) -> None:
    model, backbone = built("eva02_base_patch16_clip_224", 32)
    folder = write_ia3(tmp_path / "a", model, ia3_vectors(model, readers, readers), readers)
    with pytest.raises(CheckpointInvalid, match=r"scales the inputs of .* apart, which are one output"):
        convert_peft(read_peft(folder), backbone)


def test_norms_saved_whole_meet_the_vectors_that_move_there(tmp_path: Path) -> None:
    model = with_head("vit")
    saved = {}
    for name in ("blocks.0.norm1", "blocks.1.norm2", "norm"):
        for parameter in model.get_submodule(name).parameters():
            parameter.add_(0.3)
        saved |= {f"{name}.{kind}": model.state_dict()[f"{name}.{kind}"] for kind in ("weight", "bias")}
    vectors = ia3_vectors(model, ("qkv", "fc1"), ("qkv", "fc1"))
    folder = write_ia3(tmp_path / "a", model, vectors, ("qkv", "fc1"), saved)
    backbone = make_backbone("vit")
    adapter = convert_peft(read_peft(folder), backbone)
    assert adapter.manifest.method == "norm"
    assert_same(backbone, adapter, wrapped(model, vectors, ("qkv", "fc1")))


def test_a_norm_before_the_head_that_was_tuned_goes_into_the_head(tmp_path: Path) -> None:
    model = with_head("vit_average_pool")
    for parameter in model.fc_norm.parameters():
        parameter.add_(0.3)
    tensors = {f"fc_norm.ln_tuning_layers.{k}": v for k, v in model.fc_norm.state_dict().items()}
    folder = write_folder(
        tmp_path / "a",
        tensors | heads_of(model),
        peft_type="LN_TUNING",
        target_modules=["fc_norm"],
        modules_to_save=["head"],
    )
    backbone = make_backbone("vit_average_pool")
    adapter = convert_peft(read_peft(folder), backbone)
    assert adapter.manifest.sites == ()
    assert_same(backbone, adapter, model)


def test_a_bias_that_was_saved_whole_becomes_a_shift(tmp_path: Path) -> None:
    path = GOLDEN / "peft" / "vit_v5_ia3_inputs"
    stored = load_file(path / "adapter_model.safetensors")
    stored = {
        k.removeprefix("base_model.model."): t for k, t in stored.items() if "0.attention.k_proj" not in k
    }
    backbone = golden_backbone("vit")
    qkv = backbone.model.get_submodule("blocks.0.attn.qkv")
    name = "vit.layers.0.attention.k_proj"
    stored[f"{name}.weight"] = qkv.weight.chunk(3)[1]
    stored[f"{name}.bias"] = qkv.bias.chunk(3)[1] + 0.5
    for other in ("q_proj", "v_proj"):
        stored[f"vit.layers.0.attention.{other}.ia3_l"] = torch.ones(1, 32)
    folder = write_folder(
        tmp_path / "a",
        stored,
        peft_type="IA3",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "mlp.fc1"],
        feedforward_modules=["q_proj", "k_proj", "v_proj", "o_proj", "mlp.fc1"],
        modules_to_save=["classifier", name],
    )
    shift = convert_peft(read_peft(folder), backbone).shift["blocks.0.attn.qkv"]
    torch.testing.assert_close(shift[32:64], torch.full((32,), 0.5))
    assert not shift[:32].any()


def test_a_pickle_is_read_and_a_classifier_may_read_only_the_class_token(tmp_path: Path) -> None:
    source = GOLDEN / "peft" / "dinov2_v4_ln"
    stored = load_file(source / "adapter_model.safetensors")
    torch.save(stored, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    adapter = convert_peft(read_peft(tmp_path), golden_backbone("dinov2"))
    assert torch.equal(adapter.head_weight, stored["base_model.model.classifier.weight"][:, :32])


def test_names_of_transformers_timm_wrapper_are_those_of_timm(tmp_path: Path) -> None:
    model = with_head("vit")
    vectors = ia3_vectors(model, ("qkv",), ())
    heads = {f"timm_model.{name}": tensor for name, tensor in heads_of(model).items()}
    folder = write_folder(
        tmp_path / "a",
        heads | {f"timm_model.{name}.ia3_l": vector for name, vector in vectors.items()},
        peft_type="IA3",
        target_modules="all-linear",
        feedforward_modules=[],
        modules_to_save=["timm_model.head"],
    )
    backbone = make_backbone("vit")
    assert_same(backbone, convert_peft(read_peft(folder), backbone), wrapped(model, vectors, ()))


def test_a_vector_of_ones_may_be_anywhere(tmp_path: Path) -> None:
    model = with_head("vit")
    vectors = {name: torch.ones_like(v) for name, v in ia3_vectors(model, ("fc2",), ("fc2",)).items()}
    backbone = make_backbone("vit")
    adapter = convert_peft(read_peft(write_ia3(tmp_path / "a", model, vectors, ("fc2",))), backbone)
    assert adapter.manifest.sites == () and adapter.manifest.method == "linear"


def test_a_gate_that_reads_the_same_norm_keeps_the_scale_from_it(tmp_path: Path) -> None:
    model = make_backbone("vit").model
    for block in model.blocks:
        assert type(block.attn) is Attention
        block.attn.gate = nn.Linear(32, 32)
    backbone = freeze(model, "vit_tiny_patch16_224")
    vectors = ia3_vectors(model, ("qkv",), ("qkv",))
    folder = write_ia3(tmp_path / "a", with_head("vit"), vectors, ("qkv",))
    with pytest.raises(CheckpointInvalid, match=r"scales the input of blocks\.0\.attn\.qkv"):
        convert_peft(read_peft(folder), backbone)


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("adapter_config.json", None, "has no adapter_config.json"),
        ("adapter_config.json", b"{", "has an adapter_config.json that cannot be read"),
        ("adapter_config.json", b'{"peft_type": "IA3", "peft_type": "LORA"}', "'peft_type' is named twice"),
        ("adapter_config.json", b"[]", "without a peft_type"),
        ("adapter_model.safetensors", None, "has no adapter_model.safetensors and no adapter_model.bin"),
        ("adapter_model.safetensors", b"junk", "cannot be read safely"),
    ],
)
def test_a_folder_that_is_no_adapter_is_told(
    tmp_path: Path, file: str, data: bytes | None, reason: str
) -> None:
    copy = shutil.copytree(GOLDEN / "peft" / "vit_v5_ia3", tmp_path / "a")
    (copy / file).unlink()
    if data is not None:
        (copy / file).write_bytes(data)
    with pytest.raises(CheckpointInvalid, match=reason):
        read_peft(copy)
