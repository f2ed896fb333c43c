"""What an adapter file holds and how far it moved from the frozen model, for people and for programs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.file import Adapter, digest, read_adapter
from adapters.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Moved:
    """How far γ lies from 1 and β from 0, root mean square over the channels of one or several sites."""

    name: str
    channels: int
    scale: float
    shift: float


@dataclass(frozen=True, slots=True)
class Summary:
    """An adapter file in numbers. `blocks` follow the depth of the backbone, `kinds` the ops inside a block.

    Attributes:
        size: Bytes of the file.
        digest: sha256 of the file.
        dtypes: Of its tensors.
        ssf_parameters: Numbers in γ and β.
        head_parameters: Numbers in the head.
        head_weight_norm: Euclidean.
        head_bias_norm: Euclidean.
    """

    size: int
    digest: str
    manifest: Manifest
    dtypes: tuple[str, ...]
    ssf_parameters: int
    head_parameters: int
    head_weight_norm: float
    head_bias_norm: float
    sites: tuple[Moved, ...]
    blocks: tuple[Moved, ...]
    kinds: tuple[Moved, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "manifest": self.manifest.model_dump(mode="json")}


def summarise(data: bytes) -> Summary:
    """Read an adapter file strictly and measure it. Raises as `read_adapter` does."""
    adapter = read_adapter(data)
    vectors = [*adapter.scale.values(), *adapter.shift.values()]
    sites = tuple(_moved(adapter, site.name, site.width) for site in adapter.manifest.sites)
    return Summary(
        size=len(data),
        digest=digest(data),
        manifest=adapter.manifest,
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in adapter.tensors().values()})),
        ssf_parameters=sum(vector.numel() for vector in vectors),
        head_parameters=adapter.head_weight.numel() + adapter.head_bias.numel(),
        head_weight_norm=float(adapter.head_weight.double().norm()),
        head_bias_norm=float(adapter.head_bias.double().norm()),
        sites=sites,
        blocks=_together(sites, [block_of(site.name) for site in sites]),
        kinds=_together(sites, [kind_of(site.name) for site in sites]),
    )


def block_of(site: str) -> str:
    """Return the path up to its last number, `blocks.3` of `blocks.3.attn.qkv`; the path if it has none."""
    return ".".join(site.split(".")[: _numbered_parts(site)]) or site


def kind_of(site: str) -> str:
    """Return the path behind its last number, `attn.qkv` of `blocks.3.attn.qkv`; the path if it has none."""
    return ".".join(site.split(".")[_numbered_parts(site) :])


def _numbered_parts(site: str) -> int:
    parts = site.split(".")
    return max((index + 1 for index, part in enumerate(parts[:-1]) if part.isdigit()), default=0)


def _moved(adapter: Adapter, site: str, width: int) -> Moved:
    return Moved(site, width, _rms(adapter.scale.get(site), 1.0), _rms(adapter.shift.get(site), 0.0))


def _rms(vector: Tensor | None, centre: float) -> float:
    if vector is None:
        return 0.0
    return float((vector.to(torch.float64) - centre).square().mean().sqrt())


def _together(sites: Iterable[Moved], names: Sequence[str]) -> tuple[Moved, ...]:
    """Put sites of one name together, in the order in which the names come first."""
    groups: dict[str, list[Moved]] = {}
    for name, site in zip(names, sites, strict=True):
        groups.setdefault(name, []).append(site)
    return tuple(_mean(name, group) for name, group in groups.items())


def _mean(name: str, group: Sequence[Moved]) -> Moved:
    channels = sum(site.channels for site in group)
    scale = math.sqrt(sum(site.channels * site.scale**2 for site in group) / channels)
    shift = math.sqrt(sum(site.channels * site.shift**2 for site in group) / channels)
    return Moved(name, channels, scale, shift)
