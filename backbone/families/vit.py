"""Vision transformers of timm: ViT, DeiT (distilled too), DINOv2, registers, CLIP; EVA, EVA02 and DINOv3.

Sites of a block, in forward order: norm1, attn.qkv (fused, 3C; or q_proj, k_proj, v_proj), attn.norm where
there is one, attn.proj, norm2, mlp.fc1 (a SwiGLU's packed fc1, or fc1_g and fc1_x), mlp.norm where there is
one, mlp.fc2; in blocks with norms behind their branches those come there. Before the blocks patch_embed.proj
and norm_pre, after them norm.

With average pooling ViT's `norm` is an Identity and the site acts on the raw residual stream, as in the
method's reference code, which has no EVA: there the site is `fc_norm`, the norm behind the pooling.
"""

from collections.abc import Iterator

from timm.layers import AttentionRope, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Attention, Block, ResPostBlock, VisionTransformer
from torch import nn

from backbone.families.inspect import MLPS, Inspector
from backbone.sites import Op, Site

LAYER_SCALES = {Block: ("ls1", "ls2"), EvaBlock: ("gamma_1", "gamma_2")}
NORMS_BEHIND = (ResPostBlock, EvaBlockPostNorm)


def matches(model: nn.Module) -> bool:
    return type(model) in (VisionTransformer, VisionTransformerDistilled, Eva)


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    return tuple(_sites(Inspector(model, name)))


def _sites(look: Inspector) -> Iterator[Site]:
    look.expect("patch_embed", PatchEmbed)
    yield look.conv("patch_embed.proj")
    for norm in ("patch_embed.norm", "norm_pre"):
        if look.has(norm):
            yield look.norm(norm)
    for index in range(len(look.model.blocks)):
        yield from _block(look, f"blocks.{index}")
    if look.has("norm"):
        yield look.norm("norm")
    elif isinstance(look.model, Eva):
        yield look.norm("fc_norm")
    else:
        yield Site("norm", int(look.model.embed_dim), Op.IDENTITY)


def _block(look: Inspector, path: str) -> Iterator[Site]:
    block = look.expect(path, *LAYER_SCALES, *NORMS_BEHIND)
    scales = [look.layer_scale(f"{path}.{name}") for name in LAYER_SCALES.get(type(block), ())]
    after_attention, after_mlp = scales or (None, None)
    norm1, norm2 = look.norm(f"{path}.norm1"), look.norm(f"{path}.norm2")
    attention = _attention(look, f"{path}.attn", after_attention)
    mlp = look.mlp(f"{path}.mlp", *MLPS, layer_scale=after_mlp)
    if isinstance(block, NORMS_BEHIND):
        yield from (*attention, norm1, *mlp, norm2)
    else:
        yield from (norm1, *attention, norm2, *mlp)


def _attention(look: Inspector, path: str, layer_scale: str | None) -> Iterator[Site]:
    look.expect(path, Attention, EvaAttention, AttentionRope)
    for name in ("qkv", "q_proj", "k_proj", "v_proj"):
        if look.has(f"{path}.{name}"):
            yield look.linear(f"{path}.{name}")
    if look.has(f"{path}.norm"):
        yield look.norm(f"{path}.norm")
    yield look.linear(f"{path}.proj", layer_scale=layer_scale)
