"""Backbones known to work, and what an adapter of each costs. Built without weights."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch

from backbone.families import find_sites
from backbone.offline import PACKAGES

MODELS = (
    "vit_small_patch14_dinov2",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "deit_small_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "efficientnet_b0",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A backbone.

    Attributes:
        input_size: The model's own, in pixels a side; transformers take others too.
        ssf_parameters: γ and β at every site.
        head_width: D; a head of K classes adds (D + 1) · K.
        offline: What to install for its weights where no hub can be reached.
    """

    name: str
    family: str
    input_size: int
    parameters: int
    sites: int
    ssf_parameters: int
    head_width: int
    offline: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def catalogue() -> Iterator[Entry]:
    """Describe each model."""
    for name in MODELS:
        yield describe(name)


def describe(name: str) -> Entry:
    """Describe a timm model; takes no memory for its weights.

    Raises:
        UnsupportedModel: If no family takes it.
    """
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    family, sites = find_sites(model, name)
    package = PACKAGES.get(name)
    return Entry(
        name=name,
        family=getattr(family, "name", str(family)),
        input_size=timm.data.resolve_model_data_config(model)["input_size"][1],
        parameters=sum(p.numel() for p in model.parameters()),
        sites=len(sites),
        ssf_parameters=2 * sites.total_width,
        head_width=int(model.head_hidden_size),
        offline=package.requirement if package else None,
    )
