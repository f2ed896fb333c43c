"""AS-MLP, our own model (`backbone.as_mlp`). All maps are NCHW.

Sites of a block: norm1, axial_shift.conv1, conv2_1, conv2_2, conv3, norm2, mlp.fc1, mlp.fc2; after the blocks
norm. The two norms inside the axial shift have none, as in the method's reference code. What that code means
to have and has not, by a slip, are extra sites: the patch embedding's and the norm of patch merging, whose
reduction has no bias.
"""

from collections.abc import Iterator

from timm.layers import Mlp
from torch import nn

from backbone.as_mlp import AsMlp, AxialShift, Block, PatchMerging
from backbone.families.inspect import Inspector
from backbone.sites import Op, Site


def matches(model: nn.Module) -> bool:
    return type(model) is AsMlp


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    return tuple(_sites(Inspector(model, name)))


def _sites(look: Inspector) -> Iterator[Site]:
    yield look.conv("patch_embed.proj", extra=True)
    yield _norm(look, "patch_embed.norm", extra=True)
    for stage, layer in enumerate(look.model.layers):
        for index in range(len(layer.blocks)):
            yield from _block(look, f"layers.{stage}.blocks.{index}")
        if look.has(f"layers.{stage}.downsample"):
            look.expect(f"layers.{stage}.downsample", PatchMerging)
            yield _norm(look, f"layers.{stage}.downsample.norm", extra=True)
    yield _norm(look, "norm")


def _block(look: Inspector, path: str) -> Iterator[Site]:
    look.expect(path, Block)
    look.expect(f"{path}.axial_shift", AxialShift)
    look.expect(f"{path}.mlp", Mlp)
    yield _norm(look, f"{path}.norm1")
    for conv in ("conv1", "conv2_1", "conv2_2", "conv3"):
        yield look.conv(f"{path}.axial_shift.{conv}")
    yield _norm(look, f"{path}.norm2")
    for conv in ("fc1", "fc2"):
        yield look.conv(f"{path}.mlp.{conv}")


def _norm(look: Inspector, path: str, *, extra: bool = False) -> Site:
    found = look.expect(path, nn.GroupNorm)
    return Site(path, int(found.num_channels), Op.GROUP_NORM, axis=1, extra=extra)
