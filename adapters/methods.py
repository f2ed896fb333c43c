"""The ways to tune a backbone: which make an adapter, and what each trains.

ssf        γ and β at every site, from the identity unless the recipe has a deviation
bias       β where the frozen op has a bias, from 0 (BitFit, arXiv:2106.10199)
norm       γ and β at the norms, from the identity (LN-tuning, arXiv:2308.13035)
linear     the head alone
full, vpt-deep, adapter    for comparison: adapters/full_tuning.py, prompts.py, bottleneck.py
"""

from collections.abc import Iterable

import torch
from torch import nn

from adapters.bottleneck import BottleneckModel
from adapters.full_tuning import FullModel
from adapters.optim import Tunable
from adapters.prompts import PromptedModel
from adapters.recipe import Recipe
from backbone.executors.torch_executor import DTYPES
from backbone.load import Backbone
from backbone.sites import Op, Site
from backbone.split_bias import bias_of
from backbone.tuned import TunedModel, Vectors

KINDS = {"bias": Vectors(scale=False, std=0.0), "norm": Vectors(std=0.0)}
NORMS = frozenset({Op.LAYER_NORM, Op.GROUP_NORM, Op.BATCH_NORM, Op.AFFINE})

Tuned = TunedModel | FullModel | PromptedModel | BottleneckModel


def build(backbone: Backbone, recipe: Recipe, generator: torch.Generator) -> Tuned:
    """Return a copy of a backbone as the recipe's method tunes it; frozen weights are in the recipe's dtype.

    Raises:
        UnsupportedModel: If the method does not take this backbone.
        ValueError: If the recipe names sites the backbone has not, or none that the method trains.
    """
    dtype = DTYPES[recipe.dtype]
    if recipe.method == "full":
        return FullModel(backbone.model, dtype)
    tuned = _build(backbone, recipe, generator)
    tuned.model.to(dtype)
    return tuned


def _build(
    backbone: Backbone, recipe: Recipe, generator: torch.Generator
) -> TunedModel | PromptedModel | BottleneckModel:
    model, sites = backbone.model, backbone.sites
    if recipe.method == "vpt-deep":
        return PromptedModel(model, backbone.name, prompts=recipe.prompts, generator=generator)
    if recipe.method == "adapter":
        return BottleneckModel(model, tuple(sites), width=recipe.bottleneck, generator=generator)
    kind = KINDS.get(recipe.method, Vectors(std=recipe.init_std))
    return TunedModel(model, sites, only=trained_sites(backbone, recipe), kind=kind, generator=generator)


def trained_sites(backbone: Backbone, recipe: Recipe) -> list[str]:
    """Return the sites that a method of scales and shifts trains.

    Raises:
        ValueError: If the recipe names sites the backbone has not, or none that the method trains.
    """
    chosen = set(recipe.chosen_sites(backbone.sites))
    takes = [s.name for s in backbone.sites if s.name in chosen and _takes(backbone.model, s, recipe.method)]
    if chosen and not takes:
        raise ValueError(f"{recipe.method} trains none of them")
    return takes


def _takes(model: nn.Module, site: Site, method: str) -> bool:
    if method == "bias":
        return site.op is Op.AFFINE or (site.op is not Op.IDENTITY and bias_of(model, site.name) is not None)
    return method != "norm" or site.op in NORMS


def tunables(parameters: Iterable[nn.Parameter]) -> list[Tunable]:
    """Return what trains; weight decay is for matrices and kernels, not for vectors, tokens and tables."""
    return [Tunable(p, decays=p.ndim in {2, 4}) for p in parameters if p.requires_grad]
