"""SSF as it is defined, for training and as the plain reference: γ ⊙ y + β behind every site's frozen op."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbone.sites import Op, Site, SiteList
from backbone.split_bias import join_biases

INIT_STD = 0.02  # γ ~ N(1, 0.02), β ~ N(0, 0.02), as in the method's reference code


@dataclass(frozen=True, slots=True)
class Vectors:
    """Which vectors a site has, and the standard deviation around the identity that they start with."""

    scale: bool = True
    shift: bool = True
    std: float = INIT_STD


SSF = Vectors()


class SiteVectors(nn.Module):
    """γ and β [C] of one site; one of them may be left out."""

    def __init__(self, site: Site, generator: torch.Generator | None, kind: Vectors = SSF) -> None:
        super().__init__()
        self._axis = site.axis
        self.scale = nn.Parameter(1 + kind.std * _noise(site, generator)) if kind.scale else None
        self.shift = nn.Parameter(kind.std * _noise(site, generator)) if kind.shift else None

    def forward(self, y: Tensor) -> Tensor:
        """Scale and shift y along the site's channel axis, in y's dtype."""
        shape = (-1, *(1,) * (y.ndim - 2)) if self._axis == 1 else (-1,)
        if self.scale is not None:
            y = y * self.scale.to(y.dtype).view(shape)
        return y if self.shift is None else y + self.shift.to(y.dtype).view(shape)


class TunedModel(nn.Module):
    """A frozen backbone with trainable vectors at some of its sites.

    Nothing of the backbone trains and it stays in eval mode: batch statistics do not move.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: SiteList,
        *,
        only: Iterable[str] | None = None,
        kind: Vectors = SSF,
        generator: torch.Generator | None = None,
    ) -> None:
        """Copy the model and put vectors at the sites named in `only` (all if None)."""
        super().__init__()
        chosen = None if only is None else set(only)
        self.sites = tuple(site for site in sites if chosen is None or site.name in chosen)
        self.vectors = nn.ModuleList(SiteVectors(site, generator, kind) for site in self.sites)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        join_biases(self.model)
        for site, vectors in zip(self.sites, self.vectors, strict=True):
            behind(self.model, site).register_forward_hook(
                lambda _module, _args, y, vectors=vectors: vectors(y)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features [B, D] of normalised images [B, 3, H, W]."""
        features: Tensor = self.model(images)
        return features

    def train(self, mode: bool = True) -> "TunedModel":  # nn.Module's signature
        super().train(mode)
        self.model.eval()
        return self

    def scale(self) -> dict[str, Tensor]:
        """Return γ [C] by site, detached."""
        return {s.name: v.scale.detach().clone() for s, v in self._pairs() if v.scale is not None}

    def shift(self) -> dict[str, Tensor]:
        """Return β [C] by site, detached."""
        return {s.name: v.shift.detach().clone() for s, v in self._pairs() if v.shift is not None}

    @torch.no_grad()
    def set_vectors(self, scale: Mapping[str, Tensor], shift: Mapping[str, Tensor]) -> None:
        """Take an adapter's vectors; a site it does not name becomes the identity."""
        for site, vectors in self._pairs():
            vectors.scale.copy_(scale.get(site.name, torch.ones(site.width)))
            vectors.shift.copy_(shift.get(site.name, torch.zeros(site.width)))

    def _pairs(self) -> Iterator[tuple[Site, nn.Module]]:
        return zip(self.sites, self.vectors, strict=True)


def behind(model: nn.Module, site: Site) -> nn.Module:
    """Return the module whose output is the site's."""
    op = model.get_submodule(site.name)
    # timm's BatchNormAct2d runs its activation inside; its `drop` (an Identity) stands just before that
    inside: nn.Module | None = getattr(op, "drop", None) if site.op is Op.BATCH_NORM else None
    return op if inside is None else inside


def _noise(site: Site, generator: torch.Generator | None) -> Tensor:
    return torch.randn(site.width, generator=generator)
