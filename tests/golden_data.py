"""The checkpoints of the SSF reference code in tests/golden, read into backbones and adapters of ours."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

from backbone.load import Backbone
from tests.models import freeze

GOLDEN = Path(__file__).parent / "golden"
SIZE, CLASSES = 64, 7
State = dict[str, Tensor]

# the reference code numbers its vectors within the module above the op
_TRANSFORMER = {"": ("norm1", "norm2"), "attn.": ("attn.qkv", "attn.proj"), "mlp.": ("mlp.fc1", "mlp.fc2")}
_CONVNEXT = {"": ("conv_dw", "norm"), "mlp.": ("mlp.fc1", "mlp.fc2")}
_AS_MLP = {
    "": ("norm1", "norm2"),
    "axial_shift.": tuple(f"axial_shift.{conv}" for conv in ("conv1", "conv2_1", "conv2_2", "conv3")),
    "mlp.": ("mlp.fc1", "mlp.fc2"),
}


def _sites(
    inner: Mapping[str, Sequence[str]], blocks: Sequence[str], outside: Mapping[str, str]
) -> dict[str, str]:
    """Return our site by the reference code's key, which has a place for `ssf_scale` or `ssf_shift`."""
    return {**outside} | {
        f"{block}.{within}{{}}_{number}": f"{block}.{op}"
        for block in blocks
        for within, ops in inner.items()
        for number, op in enumerate(ops, start=1)
    }


def _blocks(stage: str, depths: Sequence[int]) -> list[str]:
    return [f"{stage.format(s)}.blocks.{i}" for s, depth in enumerate(depths) for i in range(depth)]


def _rename_swin(state: State) -> State:
    """Patch merging stands at the start of the next stage; index and mask are computed."""
    kept = {k: v for k, v in state.items() if not k.endswith(("relative_position_index", "attn_mask"))}
    for stage in (1, 0):
        old, new = f"layers.{stage}.downsample.", f"layers.{stage + 1}.downsample."
        kept = {k.replace(old, new): v for k, v in kept.items()}
    return {k.replace("head.", "head.fc."): v for k, v in kept.items()}


_CONVNEXT_NAMES = {
    "stem.proj": "stem.0",
    "stem.norm": "stem.1",
    "downsample.norm": "downsample.0",
    "downsample.proj": "downsample.1",
}


def _rename_convnext(state: State) -> State:
    """The reference code divides the variance of a downsampling norm by C - 1: a smaller gain."""
    out = {}
    for key, tensor in state.items():
        new = key
        for theirs, ours in _CONVNEXT_NAMES.items():
            new = new.replace(theirs, ours)
        width = len(tensor)
        out[new] = tensor * ((width - 1) / width) ** 0.5 if new.endswith("downsample.0.weight") else tensor
    return out


@dataclass(frozen=True)
class Golden:
    """One family: the timm model, its sites by official key, and how its other keys are called in timm."""

    name: str
    arguments: Mapping[str, object]
    sites: Mapping[str, str]
    weights: tuple[str, ...] = ("raw",)
    rename: Callable[[State], State] = dict
    head: str = "head"


GOLDENS = {
    "vit": Golden(
        "vit_base_patch16_224",
        {"img_size": SIZE, "embed_dim": 64, "depth": 2, "num_heads": 2},
        _sites(
            _TRANSFORMER,
            ["blocks.0", "blocks.1"],
            {"patch_embed.{}_1": "patch_embed.proj", "{}_1": "norm"},
        ),
        weights=("raw", "ema"),
    ),
    "swin": Golden(
        "swin_base_patch4_window7_224",
        {
            "img_size": SIZE,
            "window_size": 4,
            "embed_dim": 24,
            "depths": (2, 2, 2),
            "num_heads": (2, 4, 8),
        },
        _sites(
            _TRANSFORMER,
            _blocks("layers.{}", (2, 2, 2)),
            {
                "patch_embed.{}_1": "patch_embed.proj",
                "patch_embed.{}_2": "patch_embed.norm",
                "{}_1": "norm",
            },
        ),
        rename=_rename_swin,
        head="head.fc",
    ),
    "convnext": Golden(
        "convnext_base",
        {"dims": (12, 24, 48, 80), "depths": (1, 1, 2, 2)},
        _sites(
            _CONVNEXT,
            _blocks("stages.{}", (1, 1, 2, 2)),
            {"stem.{}_1": "stem.0", "stem.{}_2": "stem.1", "{}_1": "norm_pre"},
        ),
        weights=("raw", "ema"),
        rename=_rename_convnext,
        head="head.fc",
    ),
    "asmlp": Golden(
        "asmlp_base_patch4_shift5_224",
        {"embed_dim": 24, "depths": (1, 2, 2)},
        _sites(_AS_MLP, _blocks("layers.{}", (1, 2, 2)), {"{}_1": "norm"}),
    ),
}


@dataclass(frozen=True)
class Official:
    """One set of weights of a checkpoint, and what the reference code computes with them."""

    backbone: Backbone
    scale: Mapping[str, Tensor]
    shift: Mapping[str, Tensor]
    head: tuple[Tensor, Tensor]
    images: Tensor
    logits: Tensor

    def classify(self, features: Tensor) -> Tensor:
        weight, bias = self.head
        return torch.addmm(bias, features, weight.T)

    def rows(self, without: str | None = None) -> Tensor:
        """Return the folded rows [B, 2, P], of the adapter without one of its sites if it is named."""
        scale = {name: vector for name, vector in self.scale.items() if name != without}
        shift = {name: vector for name, vector in self.shift.items() if name != without}
        return self.backbone.fold.row(scale, shift).expand(len(self.images), -1, -1)


@cache
def read(family: str, weights: str) -> Official:
    golden = GOLDENS[family]
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(GOLDEN / f"{family}.pth", weights_only=True)
    state = dict(checkpoint["state_dict" if weights == "raw" else "state_dict_ema"])
    scale = {site: state.pop(key.format("ssf_scale")) for key, site in golden.sites.items()}
    shift = {site: state.pop(key.format("ssf_shift")) for key, site in golden.sites.items()}
    state = golden.rename(state)
    head = state.pop(f"{golden.head}.weight"), state.pop(f"{golden.head}.bias")
    model = timm.create_model(golden.name, num_classes=0, **golden.arguments)
    model.load_state_dict(state, strict=True)
    arrays = np.load(GOLDEN / f"{family}.npz")
    return Official(
        freeze(model, golden.name, size=SIZE),
        scale,
        shift,
        head,
        torch.from_numpy(arrays["input"]),
        torch.from_numpy(arrays["logits" if weights == "raw" else "logits_ema"]),
    )
