"""Where a training stands after an epoch: all that another process needs to go on, bit for bit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from adapters.score import Score


@dataclass(frozen=True, slots=True)
class Best:
    """The best epoch so far, from 1."""

    epoch: int
    val: Score
    train: Score


@dataclass
class LoopState:
    """Values of everything that moves, in one order: what trains, then the head.

    Attributes:
        epoch: Epochs done.
        values: As the last step left them.
        kept: As the best epoch left them, averaged where there is an average.
        averages: The running average; empty where there is none.
        optimizer: Its state dict, empty before the first epoch.
        best: The best epoch; None before the first.
        seconds: Time in steps, of this process.
        started: Epochs that earlier processes had done.
    """

    values: list[Tensor]
    kept: list[Tensor]
    averages: list[Tensor]
    epoch: int = 0
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: Best | None = None
    seconds: float = 0.0
    started: int = 0

    @classmethod
    def start(cls, moving: Sequence[Tensor], *, ema: bool) -> Self:
        copies = _copies(moving)
        return cls(copies, copies, _copies(moving) if ema else [])

    def restore(self, moving: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Put the values into a training that has just been set up."""
        _copy(moving, self.values)
        if self.optimizer:
            optimizer.load_state_dict(self.optimizer)

    @torch.no_grad()
    def average(self, moving: Sequence[Tensor], decay: float) -> None:
        """Take a step of the running average, where there is one."""
        if not self.averages:
            return
        for average, value in zip(self.averages, moving, strict=True):
            average.lerp_(value, 1 - decay)

    @contextmanager
    def averaged_in(self, moving: Sequence[Tensor]) -> Iterator[None]:
        """Let the averaged values stand in for the trained ones."""
        if not self.averages:
            yield
            return
        trained = _copies(moving)
        _copy(moving, self.averages)
        yield
        _copy(moving, trained)

    def close_epoch(
        self, moving: Sequence[Tensor], optimizer: torch.optim.Optimizer, val: Score, train: Score
    ) -> None:
        """Note an epoch's end, and keep its values if it is the best."""
        self.epoch += 1
        self.values, self.optimizer = list(moving), optimizer.state_dict()
        if val.is_better_than(self.best.val if self.best else None):
            self.best = Best(self.epoch, val, train)
            self.kept = _copies(self.averages or moving)

    def is_stale(self, patience: int | None) -> bool:
        """Whether the best epoch is as many epochs ago as patience allows."""
        return patience is not None and self.best is not None and self.epoch - self.best.epoch >= patience

    def restore_best(self, moving: Sequence[Tensor]) -> None:
        _copy(moving, self.kept)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
