"""Whether an adapter belongs to a backbone, from its manifest alone. This module loads no torch."""

import math
from collections.abc import Mapping

from adapters.errors import AdapterIncompatible
from adapters.manifest import Manifest, Preprocessing

_REL_TOLERANCE = 1e-6  # means and standard deviations that went through fp32 somewhere


def check_fits(
    manifest: Manifest,
    *,
    backbone_name: str,
    fingerprint: str,
    widths: Mapping[str, int],
    head_width: int,
    preprocessing: Preprocessing,
) -> None:
    """Check an adapter against a resident backbone.

    Args:
        manifest: The adapter's.
        backbone_name: Its timm name. The tag behind the dot names weights; the fingerprint decides on those.
        fingerprint: sha256 over its weights.
        widths: Channels C of its sites.
        head_width: Width D of its pooled features.
        preprocessing: What it is fed with.

    Raises:
        AdapterIncompatible: Naming the first thing that differs, the most telling first.
    """
    _equal("backbone", _architecture(backbone_name), _architecture(manifest.backbone.name))
    _equal("preprocessing.height", preprocessing.height, manifest.preprocessing.height)
    _equal("preprocessing.width", preprocessing.width, manifest.preprocessing.width)
    _equal("backbone fingerprint", fingerprint, manifest.backbone.fingerprint)
    for site in manifest.sites:
        if site.name not in widths:
            raise AdapterIncompatible("a site", "one of the backbone's sites", f"`{site.name}`")
        _equal(f"the width of site `{site.name}`", widths[site.name], site.width)
    _equal("head width", head_width, manifest.head_width)
    for field in type(preprocessing).model_fields:
        _equal(
            f"preprocessing.{field}", getattr(preprocessing, field), getattr(manifest.preprocessing, field)
        )


def _architecture(name: str) -> str:
    return name.partition(".")[0]


def _equal(what: str, expected: object, got: object) -> None:
    if not _same(expected, got):
        raise AdapterIncompatible(what, str(expected), str(got))


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=_REL_TOLERANCE, abs_tol=_REL_TOLERANCE)
    return a == b
