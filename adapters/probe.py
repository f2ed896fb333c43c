"""The probe: the logits an adapter gives on one synthetic image, checked wherever the adapter arrives.

The image is generated, never stored, by integer arithmetic alone, so that every platform and version has the
same pixels. It holds noise at every scale from single pixels to blocks of 128, and a ramp whose direction
differs by channel: whatever is wrong between pixels and logits (channel order, normalisation, a site left
out, another head order) moves them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.errors import ProbeMismatch
from adapters.file import Adapter
from adapters.manifest import Probe
from backbone.load import Backbone
from backbone.preprocess import Pixels, normalise
from backbone.tuned import TunedModel

_OCTAVES = 8

# Allowed difference in units of the probe's spread, by the less precise dtype of here and training. Measured
# rounding is 2e-6, 1e-2 and 1e-1, most of it in convolutional models; 4e-2 in int8: docs/adapter-format.md.
TOLERANCE: Mapping[str, float] = {
    "float32": 1e-4,
    "float16": 5e-2,
    "bfloat16": 3e-1,
    "float8": 3e-1,
    "int8": 1e-1,
}
# The reference against itself on another CPU; a site that training barely moved shifts the logits by 9e-5.
REFERENCE_TOLERANCE = 2e-5
SPREAD_TOLERANCE = 1e-3


def probe_image(height: int, width: int) -> Pixels:
    """Return the pixels [3, height, width] of `ssfserve-probe-1`."""
    channel, row, column = np.ogrid[:3, :height, :width]
    along = np.where(channel == 0, row * width, np.where(channel == 1, column * height, 0))
    along = np.where(channel == 2, (row * width + column * height) // 2, along)
    total = along * 255 // (height * width) - 128
    for octave in range(_OCTAVES):
        total = total + _noise(channel + 3 * octave, row >> octave, column >> octave) - 128
    pixels: Pixels = np.clip(128 + total // 4, 0, 255).astype(np.uint8)
    return pixels


def compute_probe(
    backbone: Backbone,
    *,
    scale: Mapping[str, Tensor],
    shift: Mapping[str, Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
) -> Probe:
    """Return the probe of an adapter's parts, computed by the plain reference in fp32 on the CPU.

    Give the tensors as the file will hold them: rounding them afterwards moves the logits. Costs a copy of
    the backbone and one forward.

    Raises:
        ShapeMismatch: If a vector does not fit its site.
    """
    backbone.fold.row(scale, shift)  # names a wrong site or width
    tuned = TunedModel(backbone.model, backbone.sites, only={*scale, *shift})
    tuned.set_vectors(scale, shift)
    image = normalise(probe_image(backbone.spec.height, backbone.spec.width), backbone.spec)
    weight, bias = head_weight.float(), head_bias.float()
    with torch.inference_mode():
        features = tuned(torch.from_numpy(image)[None])[0]  # [D]
        logits = torch.addmv(bias, weight, features)
    spread = weight.square().mean().sqrt() * features.norm()
    return Probe(dtype="float32", logits=tuple(logits.tolist()), spread=float(spread))


def check_probe(probe: Probe, logits: Sequence[float] | NDArray[np.floating[Any]], dtype: str) -> None:
    """Compare the logits [K] that this server gives on the probe image with those of training.

    Args:
        probe: From the manifest.
        logits: Computed here, on `probe_image` of the backbone's input size.
        dtype: In which they were computed: any of `TOLERANCE`.

    Raises:
        ProbeMismatch: If they differ by more than the dtypes explain, one is not finite, or one is missing.
    """
    _check(probe, logits, max(TOLERANCE[dtype], TOLERANCE[probe.dtype]))


def check_reference(backbone: Backbone, adapter: Adapter) -> None:
    """Compute an adapter's probe anew with the plain reference in fp32, and compare.

    bf16 rounds as much as one site matters; this sees a single site left out, whatever dtype is served. The
    spread is compared too, for both checks measure by it. Costs what `compute_probe` costs. Raises as
    `check_probe` does.
    """
    again = compute_probe(
        backbone,
        scale=adapter.scale,
        shift=adapter.shift,
        head_weight=adapter.head_weight,
        head_bias=adapter.head_bias,
    )
    probe = adapter.manifest.probe
    if not math.isclose(probe.spread, again.spread, rel_tol=SPREAD_TOLERANCE):
        raise ProbeMismatch(abs(probe.spread - again.spread), SPREAD_TOLERANCE * again.spread)
    _check(probe, again.logits, REFERENCE_TOLERANCE)


def probe_difference(probe: Probe, logits: Sequence[float] | NDArray[np.floating[Any]]) -> float:
    """Return how far logits lie from the probe's: the root mean square, or a quarter of the largest if more.

    Rounding spreads evenly over classes, so its largest share stays below four times the root mean square;
    two swapped labels among a thousand do not. Infinite if there are more or fewer logits.
    """
    here, there = np.asarray(logits, np.float64), np.asarray(probe.logits)
    if here.shape != there.shape:
        return math.inf
    differences = np.abs(here - there)
    return float(max(np.sqrt(np.mean(differences**2)), differences.max() / 4))


def _check(probe: Probe, logits: Sequence[float] | NDArray[np.floating[Any]], tolerance: float) -> None:
    difference, allowed = probe_difference(probe, logits), tolerance * probe.spread
    if not difference <= allowed:
        raise ProbeMismatch(difference, allowed)


def _noise(seed: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hash three numbers to 0..255 (Wang's mixing steps, in 32 bits)."""
    h = (seed * 73856093 ^ row * 19349663 ^ column * 83492791) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (h >> 24) & 0xFF
