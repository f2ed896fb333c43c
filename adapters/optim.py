"""The optimiser of a training: AdamW, its parameter groups, and the course of the learning rate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from adapters.recipe import Recipe

MIN_SHARE = 1e-3  # of the learning rate, at the last step


@dataclass(frozen=True, slots=True)
class Tunable:
    """A vector γ or β, and its part of the learning rate."""

    parameter: nn.Parameter
    share: float = 1.0


def make_optimizer(vectors: Iterable[Tunable], head: nn.Linear, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW over γ/β and a head; weight decay acts on the head's weight alone."""
    groups = [
        {"params": [head.weight], "lr": recipe.head_lr, "weight_decay": recipe.weight_decay},
        {"params": [head.bias], "lr": recipe.head_lr, "weight_decay": 0.0},
    ]
    groups += [{"params": [v.parameter], "lr": recipe.lr * v.share, "weight_decay": 0.0} for v in vectors]
    return torch.optim.AdamW(groups)


def schedule(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Let every group's learning rate rise linearly, then fall as half a cosine."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, steps, warmup_steps))


def share(step: int, steps: int, warmup_steps: int) -> float:
    """Return the part of the full learning rate at a step, counted from 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return MIN_SHARE + (1 - MIN_SHARE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
