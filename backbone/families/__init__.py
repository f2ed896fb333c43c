"""Model families. A family lists the sites of its models; adding one is one module and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from backbone.errors import UnsupportedModel
from backbone.families import batch_norm_cnn, vit
from backbone.sites import Site, SiteList


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of backbone.

    Attributes:
        name: Short name.
        matches: Whether a timm model is of this family.
        sites: Its sites in forward order; raises UnsupportedModel if a module stands in the way.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    sites: Callable[[nn.Module, str], tuple[Site, ...]]


FAMILIES = (
    Family("vit", vit.matches, vit.sites),
    Family("batch_norm_cnn", batch_norm_cnn.matches, batch_norm_cnn.sites),
)


def find_sites(model: nn.Module, name: str) -> tuple[str, SiteList]:
    """Return the family's name and the sites of a timm model.

    Raises:
        UnsupportedModel: If no family takes the model, or a module of it stands in the way.
    """
    for family in FAMILIES:
        if family.matches(model):
            return family.name, SiteList(family.sites(model, name))
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModel(name, type(model).__name__, f"is of no supported family ({known})")
