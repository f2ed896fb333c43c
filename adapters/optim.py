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
    """A parameter beside the head: its part of the learning rate, and whether weight decay acts on it."""

    parameter: nn.Parameter
    share: float = 1.0
    decays: bool = False


def make_optimizer(tunables: Iterable[Tunable], head: nn.Linear, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW over what trains and a head; γ and β never decay, nor does any bias."""
    decay = recipe.weight_decay
    groups = [
        {"params": [head.weight], "lr": recipe.head_lr, "weight_decay": decay},
        {"params": [head.bias], "lr": recipe.head_lr, "weight_decay": 0.0},
    ]
    groups += [
        {"params": [t.parameter], "lr": recipe.lr * t.share, "weight_decay": decay if t.decays else 0.0}
        for t in tunables
    ]
    return torch.optim.AdamW([{**group, "full_lr": group["lr"]} for group in groups])


@dataclass(frozen=True, slots=True)
class Course:
    """The learning rate over a training, in one of two forms.

    By steps it rises linearly from near 0 and falls as half a cosine. By epochs it does what the method's
    trainer (timm's `CosineLRScheduler`) does: it changes between epochs, rises from `warmup_lr`, then follows
    the cosine as though that had begun with the first epoch, and stays at `min_lr` while it cools down.
    """

    recipe: Recipe
    per_epoch: int

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set every group's learning rate for a step, counted from 0."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group["full_lr"], step)

    def rate(self, full: float, step: int) -> float:
        recipe = self.recipe
        if recipe.by_epoch:
            return by_epoch(full, step // self.per_epoch, recipe)
        warmup = round(self.per_epoch * recipe.warmup)
        return full * share(step, self.per_epoch * recipe.epochs, warmup)


def share(step: int, steps: int, warmup_steps: int) -> float:
    """Return the part of the full learning rate at a step, counted from 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return MIN_SHARE + (1 - MIN_SHARE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def by_epoch(full: float, epoch: int, recipe: Recipe) -> float:
    """Return the learning rate of an epoch, counted from 0, as the method's trainer sets it."""
    if epoch < recipe.warmup:
        return recipe.warmup_lr + epoch * (full - recipe.warmup_lr) / recipe.warmup
    if epoch >= recipe.epochs:
        return recipe.min_lr
    return recipe.min_lr + 0.5 * (full - recipe.min_lr) * (1 + math.cos(math.pi * epoch / recipe.epochs))
