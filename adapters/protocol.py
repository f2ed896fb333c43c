"""How much of a data set a training sees: all of it, or the 1,000 images of VTAB-1k's protocol."""

from dataclasses import replace
from typing import Literal

import torch

from adapters.data import Examples, Split
from adapters.division import draw
from adapters.errors import DataInvalid

ProtocolName = Literal["full", "1k"]

TRAIN, VAL = 800, 200


def draw_thousand(train: Examples, val: Examples | None = None) -> Examples:
    """Draw 800 images to train on and 200 to validate, in this order, as a fixed split.

    Of each class at least one is trained on, as long as 800 suffice. The 200 come from `val` if it is given.
    So does VTAB-1k, but its own lists were drawn without regard to classes, and are not these.

    Raises:
        DataInvalid: If there are not enough images.
    """
    drawn = _drawn(train, TRAIN + VAL) if val is None else _drawn(train, TRAIN).joined(_drawn(val, VAL))
    fixed = Split(torch.arange(TRAIN), torch.arange(TRAIN, TRAIN + VAL))
    return replace(drawn, source=train.source.with_name(f"{train.source.name} (1k)"), fixed=fixed)


def _drawn(examples: Examples, count: int) -> Examples:
    if len(examples) < count:
        raise DataInvalid(
            str(examples.source), f"has {len(examples)} images where the protocol 1k draws {count}"
        )
    return examples.at(draw(examples.targets, count))
