"""Model families. A family lists the sites of its models; adding one is one module and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from backbone.errors import UnsupportedModel
from backbone.families import as_mlp, batch_norm_cnn, convnext, mlp, swin, vit
from backbone.sites import Site, SiteList


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of backbone.

    Attributes:
        name: Short name.
        matches: Whether a timm model is of this family.
        sites: Its sites in forward order; raises UnsupportedModel if a module stands in the way.
        channels_last: Whether its activations are images that run fastest in NHWC memory.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    sites: Callable[[nn.Module, str], tuple[Site, ...]]
    channels_last: bool = False


FAMILIES = (
    Family("vit", vit.matches, vit.sites),
    Family("swin", swin.matches, swin.sites),
    Family("convnext", convnext.matches, convnext.sites, channels_last=True),
    Family("mlp", mlp.matches, mlp.sites),
    Family("as_mlp", as_mlp.matches, as_mlp.sites),
    Family("batch_norm_cnn", batch_norm_cnn.matches, batch_norm_cnn.sites, channels_last=True),
)


def find_sites(model: nn.Module, name: str) -> tuple[Family, SiteList]:
    """Return the family and the sites of a timm model.

    Raises:
        UnsupportedModel: If no family takes the model, or a module of it stands in the way.
    """
    for family in FAMILIES:
        if family.matches(model):
            return family, SiteList(family.sites(model, name))
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModel(name, type(model).__name__, f"is of no supported family ({known})")
