"""The mixed-task forward: a timm model whose sites take γ' and β' from the batch's own rows.

Each site's frozen op is replaced by its product alone, followed by one multiply-add with the rows gathered
from the bank, where the plain model does its bias add. LayerScale is folded away. Everything between the
sites stays timm's own code.

Numerics: products in the model's dtype, the multiply-add with fp32 inside and one rounding. A sample's result
does not depend on which samples are beside it in a batch of the same size.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.sites import Op, Site, SiteList
from backbone.split_bias import join_biases


class BatchRows:
    """The (γ', β') of the batch under way: set before each forward, read by every site."""

    def __init__(self, sites: SiteList) -> None:
        self._widths = [site.width for site in sites]
        self.scale: Sequence[Tensor] = ()  # [B, C] by site
        self.shift: Sequence[Tensor] = ()
        self.batch = 0

    def set(self, rows: Tensor) -> None:
        """Take the rows [B, 2, P]; views of it are read until the next call."""
        self.batch = rows.shape[0]
        self.scale = rows[:, 0].split(self._widths, dim=1)
        self.shift = rows[:, 1].split(self._widths, dim=1)

    def affine(self, index: int, x: Tensor, axis: int) -> Tensor:
        """Scale and shift x in place by site `index`; rows of an image are contiguous in x.

        Args:
            index: Place of the site in the site list.
            x: [B·m, …, C] with axis -1, or [B, C, …] with axis 1.
            axis: The channel axis.
        """
        scale, shift = self.scale[index], self.shift[index]
        if axis == 1:
            shape = (*scale.shape, *(1,) * (x.ndim - 2))
            return torch.addcmul(shift.view(shape), x, scale.view(shape), out=x)
        flat = x.view(self.batch, -1, x.shape[-1])
        torch.addcmul(shift.unsqueeze(1), flat, scale.unsqueeze(1), out=flat)
        return x


class _SiteOp(nn.Module):
    """A frozen op without its own affine, then the batch's."""

    def __init__(self, rows: BatchRows, index: int, site: Site) -> None:
        super().__init__()
        self._rows, self._index, self._axis = rows, index, site.axis

    def _affine(self, x: Tensor) -> Tensor:
        return self._rows.affine(self._index, x, self._axis)


class _SiteLinear(_SiteOp):
    def __init__(self, rows: BatchRows, index: int, site: Site, frozen: nn.Linear) -> None:
        super().__init__(rows, index, site)
        self.weight = frozen.weight

    def forward(self, x: Tensor) -> Tensor:
        return self._affine(F.linear(x, self.weight))


class _SiteConv(_SiteOp):
    def __init__(self, rows: BatchRows, index: int, site: Site, frozen: nn.Conv2d) -> None:
        super().__init__(rows, index, site)
        self.product = copy.copy(frozen)  # keeps timm's own padding rules
        self.product._parameters = {**frozen._parameters, "bias": None}

    def forward(self, x: Tensor) -> Tensor:
        return self._affine(self.product(x))


class _SiteLayerNorm(_SiteOp):
    """Over the channels of tokens and NHWC maps, or of an NCHW map (axis 1) by way of NHWC memory."""

    def __init__(self, rows: BatchRows, index: int, site: Site, frozen: nn.LayerNorm) -> None:
        super().__init__(rows, index, site)
        self.shape, self.eps = tuple(frozen.normalized_shape), frozen.eps

    def forward(self, x: Tensor) -> Tensor:
        if self._axis == -1:
            return self._affine(F.layer_norm(x, self.shape, eps=self.eps))
        normalised = F.layer_norm(x.permute(0, 2, 3, 1), self.shape, eps=self.eps)
        return self._rows.affine(self._index, normalised, -1).permute(0, 3, 1, 2)


class _SiteGroupNorm(_SiteOp):
    def __init__(self, rows: BatchRows, index: int, site: Site, frozen: nn.GroupNorm) -> None:
        super().__init__(rows, index, site)
        self.groups, self.eps = frozen.num_groups, frozen.eps

    def forward(self, x: Tensor) -> Tensor:
        return self._affine(F.group_norm(x, self.groups, eps=self.eps))


class _SiteBatchNorm(_SiteOp):
    """BatchNorm in eval mode is an affine of the convolution's output: it is folded away whole."""

    def __init__(self, rows: BatchRows, index: int, site: Site, frozen: nn.Module) -> None:
        super().__init__(rows, index, site)
        self.act = getattr(frozen, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self._affine(x))
        return activated


class _SiteIdentity(_SiteOp):
    """No op, or one that is nothing but an affine: x is somebody else's, so it is copied first."""

    def __init__(self, rows: BatchRows, index: int, site: Site, _frozen: nn.Module) -> None:
        super().__init__(rows, index, site)

    def forward(self, x: Tensor) -> Tensor:
        return self._affine(x.clone())


_SITE_OPS = {
    Op.LINEAR: _SiteLinear,
    Op.CONV: _SiteConv,
    Op.LAYER_NORM: _SiteLayerNorm,
    Op.GROUP_NORM: _SiteGroupNorm,
    Op.BATCH_NORM: _SiteBatchNorm,
    Op.AFFINE: _SiteIdentity,
    Op.IDENTITY: _SiteIdentity,
}


class MixedModel(nn.Module):
    """A copy of a frozen model whose sites are the batch's. Shares no parameter storage with the original."""

    def __init__(self, model: nn.Module, sites: SiteList, rows: BatchRows | None = None) -> None:
        """Replace the sites; `rows` may be a kind of `BatchRows` with another way to scale and shift."""
        super().__init__()
        self.rows = rows or BatchRows(sites)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        join_biases(self.model)
        for index, site in enumerate(sites):
            frozen = self.model.get_submodule(site.name)
            self.model.set_submodule(site.name, _SITE_OPS[site.op](self.rows, index, site, frozen))
            if site.layer_scale is not None:
                _take_out(self.model, site.layer_scale)

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return pooled features.

        Args:
            images: Normalised images [B, 3, H, W] in the model's dtype.
            rows: γ' and β' [B, 2, P] in the same dtype, one row per image.

        Returns:
            Features [B, D] before the head.
        """
        self.rows.set(rows)
        features: Tensor = self.model(images)
        return features


def _take_out(model: nn.Module, layer_scale: str) -> None:
    """Remove a LayerScale. timm's blocks test one that is a bare parameter for None."""
    parent, _, name = layer_scale.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, name, nn.Identity() if isinstance(getattr(holder, name), nn.Module) else None)
