"""Reading a checkpoint of the method's reference trainer: safely, and apart into backbone, vectors and head.

It is a timm trainer's file: the whole model, with EMA weights beside the raw ones where the run had them, and
an `argparse.Namespace`, the one class beyond tensors that is let through.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adapters.checkpoint_file import load_checkpoint, without_prefixes
from adapters.errors import CheckpointInvalid
from adapters.official_names import FAMILIES, VECTOR, Names

Weights = Literal["ema", "raw"]
KEYS: Mapping[str, str] = {"ema": "state_dict_ema", "raw": "state_dict"}
# Averaging a frozen weight with itself rounds it away, by up to 1.3e-4 of it in 40,000 steps of decay 0.99992
EMA_DRIFT = 1e-3

State = dict[str, Tensor]


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A checkpoint taken apart, under timm's names.

    Attributes:
        source: The file's name.
        names: Of its family.
        weights: Which of the two sets the vectors and the head are from.
        frozen: The backbone.
        scale: γ [C] by site.
        shift: β [C] by site.
        head: Weight [K, D] and bias [K].
        arguments: Of the training run; empty if the file has none.
        metric: The trainer's top-1 in per cent, of the EMA weights where there are any; None if unknown.
    """

    source: str
    names: Names
    weights: Weights
    frozen: State
    scale: State
    shift: State
    head: tuple[Tensor, Tensor]
    arguments: Mapping[str, Any]
    metric: float | None


def read_official(path: Path, weights: Weights | None = None) -> OfficialCheckpoint:
    """Read a checkpoint.

    Args:
        path: A `.pth.tar` of the trainer, or its bare state dict.
        weights: The EMA weights where there are any, else the raw ones, if None.

    Raises:
        CheckpointInvalid: If it cannot be read safely, lacks the weights asked for, or is none of that code.
    """
    content = load_checkpoint(path)
    if "state_dict" not in content and all(isinstance(value, Tensor) for value in content.values()):
        content = {"state_dict": content}
    states = {kind: _state(path.name, content[key]) for kind, key in KEYS.items() if content.get(key)}
    chosen: Weights = weights or ("ema" if "ema" in states else "raw")
    if chosen not in states:
        raise CheckpointInvalid(path.name, f"has no {KEYS[chosen]}, so no {chosen} weights")
    return _take_apart(path.name, chosen, states, content)


def _state(source: str, state: object) -> State:
    """Return a state dict without the prefixes of wrappers, in fp32."""
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointInvalid(source, "holds something else than named tensors as its weights")
    return {
        without_prefixes(key): tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }


def _take_apart(
    source: str, weights: Weights, states: Mapping[str, State], content: Mapping[str, Any]
) -> OfficialCheckpoint:
    names = _family(source, states[weights])
    frozen, scale, shift = _split(source, names, states[weights])
    head = _pop_head(source, names, frozen)
    if weights == "ema" and "raw" in states:
        raw, _, _ = _split(source, names, states["raw"])
        frozen = _without_drift(frozen, raw)
    arguments = content.get("args")
    metric = content.get("metric")
    return OfficialCheckpoint(
        source=source,
        names=names,
        weights=weights,
        frozen=frozen,
        scale=scale,
        shift=shift,
        head=head,
        arguments=vars(arguments) if isinstance(arguments, argparse.Namespace) else {},
        metric=float(metric) if isinstance(metric, int | float) else None,
    )


def _family(source: str, state: State) -> Names:
    for names in FAMILIES:
        if any(names.mark in key for key in state):
            return names
    known = ", ".join(names.family for names in FAMILIES)
    raise CheckpointInvalid(source, f"is no checkpoint of the reference code's families ({known})")


def _split(source: str, names: Names, state: State) -> tuple[State, State, State]:
    """Return what is not SSF, and γ and β by site."""
    frozen: State = {}
    vectors: dict[str, State] = {"scale": {}, "shift": {}}
    for key, tensor in state.items():
        found = VECTOR.fullmatch(key)
        if found is None:
            frozen[names.in_timm(key)] = tensor
            continue
        site = names.site(found["module"] or "", int(found["number"]))
        if site is None:
            raise CheckpointInvalid(source, f"{key} belongs to no site of a {names.family}")
        vectors[found["kind"]][site] = tensor
    return frozen, vectors["scale"], vectors["shift"]


def _pop_head(source: str, names: Names, frozen: State) -> tuple[Tensor, Tensor]:
    try:
        return frozen.pop(f"{names.head}.weight"), frozen.pop(f"{names.head}.bias")
    except KeyError as error:
        raise CheckpointInvalid(source, f"has no classifier {error}") from None


def _without_drift(averaged: State, raw: State) -> State:
    """Return frozen weights as they were, where averaging only rounded them; trained ones as averaged."""
    return {
        key: raw[key] if not key.startswith("head.") and _only_drifted(tensor, raw.get(key)) else tensor
        for key, tensor in averaged.items()
    }


def _only_drifted(averaged: Tensor, raw: Tensor | None) -> bool:
    if raw is None or raw.shape != averaged.shape:
        return False
    return bool(torch.allclose(averaged, raw, rtol=EMA_DRIFT, atol=1e-7))
