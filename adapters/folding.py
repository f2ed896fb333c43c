"""From an adapter file to what the bank takes."""

from adapters.file import Adapter
from adapters.fits import check_fits
from adapters.manifest import Preprocessing
from backbone.executors.base import FoldedAdapter
from backbone.heads import Head
from backbone.load import Backbone


def preprocessing_of(backbone: Backbone) -> Preprocessing:
    """Return the preprocessing that adapters of this backbone must have been trained with."""
    spec = backbone.spec
    return Preprocessing(
        height=spec.height,
        width=spec.width,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )


def check_adapter(backbone: Backbone, adapter: Adapter) -> None:
    """Check that an adapter belongs to a backbone.

    Raises:
        AdapterIncompatible: Naming the first thing that differs.
    """
    check_fits(
        adapter.manifest,
        backbone_name=backbone.name,
        fingerprint=backbone.fingerprint,
        widths=backbone.sites.widths,
        head_width=backbone.head_width,
        preprocessing=preprocessing_of(backbone),
    )


def fold_adapter(backbone: Backbone, adapter: Adapter) -> FoldedAdapter:
    """Check an adapter against a backbone and fold it: a few vector operations over its numbers.

    Raises:
        AdapterIncompatible: If it belongs to another backbone or preprocessing.
    """
    check_adapter(backbone, adapter)
    head = Head(adapter.head_weight.float().contiguous(), adapter.head_bias.float().contiguous())
    return FoldedAdapter(backbone.fold.row(adapter.scale, adapter.shift), head)
