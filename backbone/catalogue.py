"""Backbones known to work, and what an adapter of each costs. Built without weights."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from backbone.families import Family, find_sites
from backbone.load import create
from backbone.offline import PACKAGES
from backbone.sites import SiteList

MODELS = (
    "vit_small_patch14_dinov2",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "deit_small_patch16_224",
    "deit_small_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
    "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "convnext_tiny",
    "convnext_base",
    "convnextv2_nano",
    "convnextv2_base",
    "mixer_b16_224",
    "resmlp_24_224",
    "gmlp_s16_224",
    "asmlp_tiny_patch4_shift5_224",
    "asmlp_base_patch4_shift5_224",
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A backbone.

    Attributes:
        input_size: The model's own, in pixels a side; transformers take others too.
        ssf_parameters: γ and β at every site.
        official_sites: Those at which the method's reference code acts, or would by its rule.
        official_ssf_parameters: γ and β at these.
        head_width: D; a head of K classes adds (D + 1) · K.
        offline: What to install for its weights where no hub can be reached.
    """

    name: str
    family: str
    input_size: int
    parameters: int
    sites: int
    ssf_parameters: int
    official_sites: int
    official_ssf_parameters: int
    head_width: int
    offline: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Unfilled(TorchFunctionMode):
    """Initial values are of no use to tensors without memory, and take most of the time to build a model."""

    FILLING = frozenset(
        {"normal_", "uniform_", "erfinv_", "clamp_", "fill_", "zero_", "add_", "mul_", "div_"}
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func.__name__ in self.FILLING:
            return args[0] if args else given["tensor"]  # a method, or a function of torch.nn.init
        return func(*args, **given)


def catalogue() -> Iterator[Entry]:
    """Describe each model."""
    for name in MODELS:
        yield describe(name)


def describe(name: str) -> Entry:
    """Describe a timm model; takes no memory for its weights. Raises as `outline` does."""
    model, family, sites = outline(name)
    package = PACKAGES.get(name)
    return Entry(
        name=name,
        family=family.name,
        input_size=timm.data.resolve_model_data_config(model)["input_size"][1],
        parameters=sum(p.numel() for p in model.parameters()),
        sites=len(sites),
        ssf_parameters=2 * sites.total_width,
        official_sites=len(sites.official),
        official_ssf_parameters=2 * sites.official.total_width,
        head_width=int(model.head_hidden_size),
        offline=package.requirement if package else None,
    )


def outline(name: str) -> tuple[nn.Module, Family, SiteList]:
    """Return a timm model without its weights, its family and its sites.

    Raises:
        UnsupportedModel: If timm has no such model, or no family takes it; it names what stands in the way.
    """
    with torch.device("meta"), _Unfilled():
        model = create(name)
    return model, *find_sites(model, name)
