"""Three ways to compute an adapter agree with the logits of the SSF reference code. See tests/golden."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from adapters.merge import merge_sites
from backbone.load import Backbone
from backbone.mixed import MixedModel
from backbone.tuned import TunedModel
from tests.models import freeze

GOLDEN = Path(__file__).parents[1] / "golden"
# the reference code itself moves by 1.5e-6 between torch 1.7.1 and 2.15; logits are of order 3
TOLERANCE = 1e-5
DEPTH = 2
_IN_BLOCK = {"": ("norm1", "norm2"), "attn.": ("attn.qkv", "attn.proj"), "mlp.": ("mlp.fc1", "mlp.fc2")}
# the reference code numbers its vectors within the module above the op
SITES = {
    "patch_embed.{}_1": "patch_embed.proj",
    "{}_1": "norm",
    **{
        f"blocks.{block}.{inner}{{}}_{number}": f"blocks.{block}.{op}"
        for block in range(DEPTH)
        for inner, ops in _IN_BLOCK.items()
        for number, op in enumerate(ops, start=1)
    },
}


@dataclass(frozen=True)
class Official:
    """One set of weights of the checkpoint, and what the reference code computes with them."""

    backbone: Backbone
    scale: Mapping[str, Tensor]
    shift: Mapping[str, Tensor]
    head: tuple[Tensor, Tensor]
    images: Tensor
    logits: Tensor

    def classify(self, features: Tensor) -> Tensor:
        weight, bias = self.head
        return torch.addmm(bias, features, weight.T)

    def rows(self) -> Tensor:
        return self.backbone.fold.row(self.scale, self.shift).expand(len(self.images), -1, -1)


@cache
def read(weights: str) -> Official:
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(GOLDEN / "vit.pth", weights_only=True)
    state = dict(checkpoint["state_dict" if weights == "raw" else "state_dict_ema"])
    scale = {site: state.pop(key.format("ssf_scale")) for key, site in SITES.items()}
    shift = {site: state.pop(key.format("ssf_shift")) for key, site in SITES.items()}
    head = state.pop("head.weight"), state.pop("head.bias")
    name, size = "vit_base_patch16_224", 64
    model = timm.create_model(name, img_size=size, embed_dim=64, depth=DEPTH, num_heads=2, num_classes=0)
    model.load_state_dict(state, strict=True)
    arrays = np.load(GOLDEN / "vit.npz")
    logits = arrays["logits" if weights == "raw" else "logits_ema"]
    return Official(
        freeze(model, name, size=size),
        scale,
        shift,
        head,
        torch.from_numpy(arrays["input"]),
        torch.from_numpy(logits),
    )


def tuned(official: Official) -> Tensor:
    model = TunedModel(official.backbone.model, official.backbone.sites)
    model.set_vectors(official.scale, official.shift)
    return model(official.images)


def mixed(official: Official) -> Tensor:
    return MixedModel(official.backbone.model, official.backbone.sites)(official.images, official.rows())


def merged(official: Official) -> Tensor:
    return merge_sites(official.backbone, official.scale, official.shift)(official.images)


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("compute", [tuned, mixed, merged])
@torch.no_grad()
def test_official_logits_are_reproduced(compute, weights: str) -> None:
    official = read(weights)
    got = official.classify(compute(official))
    torch.testing.assert_close(got, official.logits, rtol=0, atol=TOLERANCE)


def test_table_names_every_site_of_the_backbone() -> None:
    assert set(SITES.values()) == set(read("raw").backbone.sites.widths)


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("site", SITES.values())
@torch.no_grad()
def test_golden_data_sees_each_site(site: str, weights: str) -> None:
    official = read(weights)
    scale = {name: vector for name, vector in official.scale.items() if name != site}
    shift = {name: vector for name, vector in official.shift.items() if name != site}
    features = merge_sites(official.backbone, scale, shift)(official.images)
    assert (official.classify(features) - official.logits).abs().max() > 1000 * TOLERANCE
