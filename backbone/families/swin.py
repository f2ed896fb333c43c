"""Swin transformers of timm, v1 and v2 (cosine attention, norms behind the branches).

Sites of a v1 block: norm1 (before windows and roll), attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2; of a v2
block the same six, each norm behind its branch. Before them patch_embed.proj (NCHW) and patch_embed.norm,
after them norm (NHWC). The norm of patch merging is an extra site; its reduction has no bias and no site.
Windows of an image lie together and images outermost, so that rows of an image are contiguous everywhere.
"""

from collections.abc import Iterator

from timm.layers import Mlp, PatchEmbed
from timm.models import swin_transformer as v1
from timm.models import swin_transformer_v2 as v2
from torch import nn

from backbone.families.inspect import Inspector
from backbone.sites import Site


def matches(model: nn.Module) -> bool:
    return type(model) in (v1.SwinTransformer, v2.SwinTransformerV2)


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    return tuple(_sites(Inspector(model, name)))


def _sites(look: Inspector) -> Iterator[Site]:
    look.expect("patch_embed", PatchEmbed)
    yield look.conv("patch_embed.proj")
    if look.has("patch_embed.norm"):
        yield look.norm("patch_embed.norm")
    for stage, layer in enumerate(look.model.layers):
        if look.has(f"layers.{stage}.downsample"):
            look.expect(f"layers.{stage}.downsample", v1.PatchMerging, v2.PatchMerging)
            yield look.norm(f"layers.{stage}.downsample.norm", extra=True)
        for index in range(len(layer.blocks)):
            yield from _block(look, f"layers.{stage}.blocks.{index}")
    yield look.norm("norm")


def _block(look: Inspector, path: str) -> Iterator[Site]:
    look.expect(path, v1.SwinTransformerBlock, v2.SwinTransformerV2Block)
    look.expect(f"{path}.attn", v1.WindowAttention, v2.WindowAttention)
    attention = look.linear(f"{path}.attn.qkv"), look.linear(f"{path}.attn.proj")
    norms = look.norm(f"{path}.norm1"), look.norm(f"{path}.norm2")
    mlp = look.mlp(f"{path}.mlp", Mlp)
    if isinstance(look.at(path), v1.SwinTransformerBlock):
        yield from (norms[0], *attention, norms[1], *mlp)
    else:
        yield from (*attention, norms[0], *mlp, norms[1])
