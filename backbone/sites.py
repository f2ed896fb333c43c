"""Sites: the named places of a backbone where SSF may act, and their order in one vector of length P.

A site is named by the timm module whose output it scales and shifts, before activation, dropout,
LayerScale and residual. Source: SSF, arXiv:2210.08823.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Op(StrEnum):
    """The frozen op before a site; it decides how its own affine folds into the site's."""

    LINEAR = "linear"
    CONV = "conv"
    LAYER_NORM = "layer_norm"
    GROUP_NORM = "group_norm"
    BATCH_NORM = "batch_norm"
    AFFINE = "affine"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Site:
    """A place where SSF may act.

    Attributes:
        name: timm module path of the frozen op.
        width: Channels C.
        op: Kind of the frozen op.
        axis: Channel axis of its output: -1 (tokens, NHWC) or 1 (NCHW).
        layer_scale: Path of the LayerScale behind the op, a module or a bare parameter, which folds in as
            well; None if there is none.
        extra: Whether the paper names it but the reference code leaves it out: patch merging, downsampling.
    """

    name: str
    width: int
    op: Op
    axis: int = -1
    layer_scale: str | None = None
    extra: bool = False


@dataclass(frozen=True)
class SiteList:
    """All sites of a backbone in forward order; site i owns `slice(i)` of a vector of length P."""

    sites: tuple[Site, ...]

    @cached_property
    def total_width(self) -> int:
        """P: all γ of one adapter laid end to end."""
        return sum(site.width for site in self.sites)

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """The place of each site, by name, in a vector of length P."""
        ends = [0]
        for site in self.sites:
            ends.append(ends[-1] + site.width)
        return {site.name: slice(a, b) for site, a, b in zip(self.sites, ends, ends[1:], strict=False)}

    @cached_property
    def official(self) -> "SiteList":
        """The sites at which the reference code acts, which published counts of parameters refer to."""
        return SiteList(tuple(site for site in self.sites if not site.extra))

    @property
    def widths(self) -> Mapping[str, int]:
        return {site.name: site.width for site in self.sites}

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)
