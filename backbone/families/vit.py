"""Plain vision transformers of timm: ViT, DeiT, DINOv2 (LayerScale), registers.

Sites per block, in forward order: norm1, attn.qkv (fused, 3C), attn.proj, norm2, mlp.fc1 (4C), mlp.fc2;
before them patch_embed.proj, after them norm. With average pooling timm's `norm` is an Identity and the
site acts on the raw residual stream, as in the method's reference code.
"""

from collections.abc import Iterator

from timm.layers import LayerScale, Mlp, PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from backbone.errors import UnsupportedModel
from backbone.sites import Op, Site


def matches(model: nn.Module) -> bool:
    return isinstance(model, VisionTransformer)


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    return tuple(_sites(model, name))


def _sites(model: nn.Module, name: str) -> Iterator[Site]:
    _expect(name, "patch_embed", model.patch_embed, PatchEmbed)
    _expect(name, "patch_embed.proj", model.patch_embed.proj, nn.Conv2d)
    yield Site("patch_embed.proj", model.patch_embed.proj.out_channels, Op.CONV, axis=1)
    if not isinstance(model.patch_embed.norm, nn.Identity):
        yield _norm(name, "patch_embed.norm", model.patch_embed.norm, model.embed_dim)
    for index, block in enumerate(model.blocks):
        yield from _block(name, f"blocks.{index}", block, model.embed_dim)
    yield _norm(name, "norm", model.norm, model.embed_dim)


def _block(name: str, path: str, block: nn.Module, width: int) -> Iterator[Site]:
    _expect(name, path, block, Block, exact=True)
    _expect(name, f"{path}.attn", block.attn, Attention, exact=True)
    _expect(name, f"{path}.mlp", block.mlp, Mlp, exact=True)
    yield _norm(name, f"{path}.norm1", block.norm1, width)
    yield _linear(name, f"{path}.attn.qkv", block.attn.qkv)
    yield _linear(name, f"{path}.attn.proj", block.attn.proj, _layer_scale(name, f"{path}.ls1", block.ls1))
    yield _norm(name, f"{path}.norm2", block.norm2, width)
    yield _linear(name, f"{path}.mlp.fc1", block.mlp.fc1)
    yield _linear(name, f"{path}.mlp.fc2", block.mlp.fc2, _layer_scale(name, f"{path}.ls2", block.ls2))


def _linear(name: str, path: str, module: nn.Module, layer_scale: str | None = None) -> Site:
    _expect(name, path, module, nn.Linear)
    return Site(path, module.out_features, Op.LINEAR, layer_scale=layer_scale)


def _norm(name: str, path: str, module: nn.Module, width: int) -> Site:
    if isinstance(module, nn.Identity):
        return Site(path, width, Op.IDENTITY)
    _expect(name, path, module, nn.LayerNorm)
    return Site(path, width, Op.LAYER_NORM)


def _layer_scale(name: str, path: str, module: nn.Module) -> str | None:
    if isinstance(module, nn.Identity):
        return None
    _expect(name, path, module, LayerScale)
    return path


def _expect(name: str, path: str, module: nn.Module, kind: type[nn.Module], *, exact: bool = False) -> None:
    if not (type(module) is kind if exact else isinstance(module, kind)):
        raise UnsupportedModel(name, path, f"is a {type(module).__name__}, not a {kind.__name__}")
