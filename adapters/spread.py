"""How far the outputs of a backbone's sites lie apart: the unit of a training step there.

Sites differ by orders of magnitude: behind the last blocks of DINOv2 ViT-S/14 a LayerScale of 6 multiplies
outputs whose channels vary by 0.02 around means of 0.3. One learning rate for all is too large there and too
small elsewhere. Scaled by the spread, a step moves every site's output by the same share of what varies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbone.sites import Site
from backbone.tuned import TunedModel

_FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the output of a site's frozen op: median over channels of the standard deviation, and the rms."""

    deviation: float
    rms: float

    @property
    def scale_share(self) -> float:
        """Part of the learning rate for γ: a step of γ also moves the mean that it multiplies."""
        return max(min(self.deviation / max(self.rms, _FLOOR), 1.0), _FLOOR)

    @property
    def shift_share(self) -> float:
        """Part of the learning rate for β."""
        return max(self.deviation, _FLOOR)


def measure_spreads(tuned: TunedModel, forward: Callable[[], object]) -> list[Spread]:
    """Run a forward and return the spread at each tuned site, in order."""
    found: list[Spread] = []
    handles = [
        vectors.register_forward_pre_hook(_recorder(site, found))
        for site, vectors in zip(tuned.sites, tuned.vectors, strict=True)
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _recorder(site: Site, found: list[Spread]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def record(_module: nn.Module, args: tuple[Tensor]) -> None:
        rows = args[0].float().movedim(site.axis, -1).flatten(0, -2)  # [B * m, C]
        deviation = rows.std(0, correction=0).median()
        found.append(Spread(float(deviation), float(rows.square().mean().sqrt())))

    return record
