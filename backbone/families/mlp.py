"""MLP models of timm: MLP-Mixer, gMixer, ResMLP, gMLP.

Sites of a block, in forward order. Mixer: norm1, mlp_tokens.fc1, mlp_tokens.fc2, norm2, mlp_channels.fc1,
mlp_channels.fc2. ResMLP: one linear_tokens in place of mlp_tokens; its norms are affines. gMLP: norm,
mlp_channels.fc1, gate.norm, gate.proj, fc2. Before the blocks stem.proj, after them norm.

What mixes tokens works on [B, C, N]: the last axis, along which its site acts, are tokens there. So such a
model has one input size, and ResMLP's LayerScale behind linear_tokens, which acts along C, does not fold;
timm goes on applying it. The reference code has no such family; the placement follows its rule.
"""

from collections.abc import Iterator

from timm.layers import GatedMlp, PatchEmbed
from timm.models.mlp_mixer import (
    Affine,
    MixerBlock,
    MlpMixer,
    ResBlock,
    SpatialGatingBlock,
    SpatialGatingUnit,
)
from torch import nn

from backbone.families.inspect import MLPS, Inspector
from backbone.sites import Op, Site


def matches(model: nn.Module) -> bool:
    return type(model) is MlpMixer


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    return tuple(_sites(Inspector(model, name)))


def _sites(look: Inspector) -> Iterator[Site]:
    look.expect("stem", PatchEmbed)
    yield look.conv("stem.proj")
    if look.has("stem.norm"):
        yield look.norm("stem.norm")
    for index in range(len(look.model.blocks)):
        yield from _block(look, f"blocks.{index}")
    yield _norm(look, "norm")


def _block(look: Inspector, path: str) -> Iterator[Site]:
    block = look.expect(path, MixerBlock, ResBlock, SpatialGatingBlock)
    if isinstance(block, SpatialGatingBlock):
        yield look.norm(f"{path}.norm")
        yield from _gated(look, f"{path}.mlp_channels")
        return
    yield _norm(look, f"{path}.norm1")
    if isinstance(block, ResBlock):
        yield look.linear(f"{path}.linear_tokens")
    else:
        yield from look.mlp(f"{path}.mlp_tokens", *MLPS)
    yield _norm(look, f"{path}.norm2")
    yield from look.mlp(f"{path}.mlp_channels", *MLPS)


def _gated(look: Inspector, path: str) -> Iterator[Site]:
    look.expect(path, GatedMlp)
    look.expect(f"{path}.gate", SpatialGatingUnit)
    yield look.linear(f"{path}.fc1")
    yield look.norm(f"{path}.gate.norm")
    yield look.linear(f"{path}.gate.proj")
    yield look.linear(f"{path}.fc2")


def _norm(look: Inspector, path: str) -> Site:
    found = look.at(path)
    if type(found) is Affine:
        return Site(path, found.alpha.numel(), Op.AFFINE)
    return look.norm(path)
