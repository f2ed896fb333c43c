"""The classifier of a checkpoint of another tool."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.errors import CheckpointInvalid

Head = tuple[Tensor, Tensor]


def one_head(
    source: str, tensors: Mapping[str, Tensor], paths: Sequence[str], width: int, advice: str = ""
) -> Head:
    """Return weight [K, width] and bias [K] in fp32; a bias that is missing is one of zeros.

    Args:
        source: What errors call the checkpoint.
        tensors: By name; those below no path are not looked at.
        paths: Of all classifiers, whose answers are averaged: they must be equal.
        width: D of the backbone's features.
        advice: What to do if there is none.

    Raises:
        CheckpointInvalid: If one is missing, has another shape, or differs from another.
    """
    if not paths:
        raise CheckpointInvalid(source, "has no classifier that could be told from the rest")
    first, *others = (_head(source, tensors, path, width, advice) for path in paths)
    for other in others:
        if not (first[0].equal(other[0]) and first[1].equal(other[1])):
            raise CheckpointInvalid(
                source, f"has {len(paths)} classifiers that differ; an adapter has one head"
            )
    return first


def _head(source: str, tensors: Mapping[str, Tensor], path: str, width: int, advice: str) -> Head:
    prefix = f"{path}." if path else ""
    weight, bias = tensors.get(f"{prefix}weight"), tensors.get(f"{prefix}bias")
    if weight is None:
        raise CheckpointInvalid(source, f"has no classifier {prefix}weight{advice}")
    if weight.ndim != 2 or weight.shape[1] != width or not len(weight):
        raise CheckpointInvalid(source, f"has a classifier of {list(weight.shape)}, not of [K, {width}]")
    if bias is None:
        bias = torch.zeros(len(weight))
    if bias.shape != weight.shape[:1]:
        raise CheckpointInvalid(source, f"has a classifier's bias of {list(bias.shape)}, not [{len(weight)}]")
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise CheckpointInvalid(source, "holds NaN or an infinity in its classifier")
    return weight.float(), bias.float()
