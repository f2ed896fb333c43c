"""Merging: an adapter folded into a copy of the backbone's own weights, the paper's re-parameterisation.

Every frozen op ends per output channel in `w·x + b`, so γ ⊙ (w·x + b) + β has the same form whatever the op:
Linear and convolution rows, LayerNorm gains, the BatchNorm behind a convolution. Nothing else is touched;
LayerScale, activations and residuals come after. ConvNeXt's last site follows no op:
adapters/residual_stream.py tells what takes it up.
"""

import copy
from collections.abc import Mapping
from enum import StrEnum

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from adapters.errors import NotMergeable
from adapters.file import Adapter
from adapters.residual_stream import carry_through_last_stage
from backbone.load import Backbone
from backbone.sites import Op, Site
from backbone.split_bias import bias_of, join_biases, split_biases


@torch.no_grad()
def merge(backbone: Backbone, adapter: Adapter) -> nn.Module:
    """Return a plain timm model with the adapter's head and no SSF left.

    Its state dict has the keys and shapes of `timm.create_model(name, num_classes=K)` at the backbone's
    input size.

    Raises:
        NotMergeable: If a vector acts where no weight can take it up.
        ShapeMismatch: If a vector has not its site's width, or names no site.
    """
    merged = merge_sites(backbone, adapter.scale, adapter.shift)
    like = next(merged.parameters())
    merged.reset_classifier(adapter.manifest.num_classes)
    heads = merged.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):  # DeiT's two, whose answers are averaged
        head.to(like.device, like.dtype)
        head.weight.copy_(adapter.head_weight)
        head.bias.copy_(adapter.head_bias)
    return merged.eval().requires_grad_(False)


@torch.no_grad()
def merge_sites(backbone: Backbone, scale: Mapping[str, Tensor], shift: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the backbone, still without a head, that has taken up γ and β [C] by site.

    Computed in float64 and rounded once to the backbone's dtype. Raises as `merge` does.
    """
    backbone.fold.row(scale, shift)  # names a wrong site or width
    merged = copy.deepcopy(backbone.model)
    join_biases(merged)
    for site in backbone.sites:
        gamma = scale.get(site.name, torch.ones(site.width)).double()
        beta = shift.get(site.name, torch.zeros(site.width)).double()
        if not (bool((gamma == 1).all()) and bool((beta == 0).all())):
            _fold_in(merged, site, gamma, beta)
    keys = split_biases(merged, like=backbone.model)
    if keys is not None:
        raise NotMergeable(keys, "has no bias for its keys to take the shift")
    return merged


class Takes(StrEnum):
    """What plain weights can take up of a site's vectors."""

    ALL = "all"
    SCALE = "the scale"  # there is no bias
    NOT_KEYS = "all but the keys' shift"  # the keys of attention have no bias
    NOTHING = "nothing"


def takes(model: nn.Module, site: Site) -> Takes:
    """Return what a merge of a site can take up, before any vector is known. Needs no weights."""
    module = model.get_submodule(site.name)
    if site.op is Op.IDENTITY:
        return Takes.ALL if isinstance(model, ConvNeXt) else Takes.NOTHING
    if site.op is Op.AFFINE:
        return Takes.ALL
    if module.weight is None:
        return Takes.NOTHING
    if bias_of(model, site.name) is None:
        return Takes.SCALE
    return Takes.ALL if module.bias is not None else Takes.NOT_KEYS


def _fold_in(model: nn.Module, site: Site, scale: Tensor, shift: Tensor) -> None:
    """Replace the op's weight w by γ·w and its bias b by γ·b + β, both per output channel."""
    module = model.get_submodule(site.name)
    if site.op is Op.IDENTITY:
        if isinstance(model, ConvNeXt):
            carry_through_last_stage(model, site.name, scale, shift)
            return
        raise NotMergeable(site.name, "acts on the residual stream itself, behind no op that has weights")
    weight, bias = (module.alpha, module.beta) if site.op is Op.AFFINE else (module.weight, module.bias)
    if weight is None:
        raise NotMergeable(site.name, "has no weight to take the scale")
    if bias is None and bool((shift != 0).any()):
        raise NotMergeable(site.name, "has no bias to take the shift")
    per_channel = (-1,) if site.op is Op.AFFINE else (-1, *(1,) * (weight.ndim - 1))
    weight.copy_(weight.double() * scale.view(per_channel))
    if bias is not None:
        bias.copy_(bias.double() * scale + shift)
