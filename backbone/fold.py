"""The fold: every per-channel part of a site's frozen op and its SSF become one pair (γ', β').

With the op's own affine (gain w, bias b) and a LayerScale l behind it:

    l · (γ · (w·x + b) + β)  =  (γ·w·l) · x  +  (γ·b + β)·l

where x is what the op computes without its affine: the bias-free product of a Linear or a convolution, the
normalised value of a norm. All sites have a fixed place in one vector of length P, so that folding a whole
adapter is a handful of vector operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbone.errors import ShapeMismatch
from backbone.sites import Op, Site, SiteList
from backbone.split_bias import bias_of


@dataclass(frozen=True)
class Fold:
    """Per-channel constants of a backbone, each [P], float64: gain, bias, and the LayerScale behind."""

    sites: SiteList
    gain: Tensor
    bias: Tensor
    after: Tensor

    @classmethod
    def of(cls, model: nn.Module, sites: SiteList) -> "Fold":
        """Collect the constants of a model in eval mode."""
        pairs = [_own_affine(model, site) for site in sites]
        afters = [_layer_scale(model, site) for site in sites]
        return cls(
            sites, torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]), torch.cat(afters)
        )

    def row(self, scale: Mapping[str, Tensor], shift: Mapping[str, Tensor]) -> Tensor:
        """Fold an adapter.

        Args:
            scale: γ [C] by site; a site left out has γ = 1.
            shift: β [C] by site; a site left out has β = 0.

        Returns:
            γ' and β' as [2, P], fp32, on the CPU.

        Raises:
            ShapeMismatch: If a vector has not its site's width, or names no site.
        """
        gamma = self._lay_out(scale, torch.ones_like(self.gain))
        beta = self._lay_out(shift, torch.zeros_like(self.gain))
        return torch.stack([gamma * self.gain * self.after, (gamma * self.bias + beta) * self.after]).float()

    def _lay_out(self, vectors: Mapping[str, Tensor], out: Tensor) -> Tensor:
        for name, vector in vectors.items():
            place = self.sites.slices.get(name)
            if place is None:
                raise ShapeMismatch(name, "a site of the backbone", "no site")
            if vector.shape != (place.stop - place.start,):
                raise ShapeMismatch(name, f"[{place.stop - place.start}]", str(list(vector.shape)))
            out[place] = vector.double()
        return out


def _own_affine(model: nn.Module, site: Site) -> tuple[Tensor, Tensor]:
    """Return the op's gain and bias [C], float64."""
    module = model.get_submodule(site.name)
    ones, zeros = torch.ones(site.width).double(), torch.zeros(site.width).double()
    match site.op:
        case Op.IDENTITY:
            return ones, zeros
        case Op.AFFINE:
            return _vector(module.alpha).flatten(), _vector(module.beta).flatten()
        case Op.LINEAR | Op.CONV:
            bias = bias_of(model, site.name)
            return ones, zeros if bias is None else _vector(bias)
        case Op.LAYER_NORM | Op.GROUP_NORM:
            gain = ones if module.weight is None else _vector(module.weight)
            return gain, zeros if module.bias is None else _vector(module.bias)
        case Op.BATCH_NORM:
            inverse = (_vector(module.running_var) + module.eps).rsqrt()
            gain = inverse if module.weight is None else _vector(module.weight) * inverse
            bias = zeros if module.bias is None else _vector(module.bias)
            return gain, bias - _vector(module.running_mean) * gain


def _layer_scale(model: nn.Module, site: Site) -> Tensor:
    if site.layer_scale is None:
        return torch.ones(site.width).double()
    parent, _, name = site.layer_scale.rpartition(".")
    behind = getattr(model.get_submodule(parent), name)
    return _vector(behind.gamma if isinstance(behind, nn.Module) else behind)


def _vector(parameter: Tensor) -> Tensor:
    return parameter.detach().cpu().double()
