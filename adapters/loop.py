"""The loop of a training: epochs over shuffled batches, and the best epoch by validation."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from adapters.data import Split
from adapters.loop_state import LoopState
from adapters.optim import Course, Tunable, make_optimizer
from adapters.recipe import Recipe
from adapters.score import Score
from adapters.seeding import seed_epoch

Batch = tuple[Tensor, Tensor]  # features [B, D], and classes [B] or shares of classes [B, K]


class Inputs(Protocol):
    """What features come from: images through a tuned model, or a table of frozen features."""

    def tunables(self) -> list[Tunable]:
        """Return what trains beside the head."""

    def epoch(self, batches: Sequence[Tensor], targets: Tensor) -> Iterator[Batch]:
        """Yield for each tensor of indices its features, fp32, with gradients and augmentation."""

    def eval(self, indices: Tensor) -> Tensor:
        """Return features [B, D], fp32, as serving would compute them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best epoch (from 1) of a training and its scores; the parameters hold its values.

    `images_per_s` is that of the steps alone, over the whole training.
    """

    epoch: int
    val: Score
    train: Score
    epochs: int
    images_per_s: float


EpochReport = Callable[[int, Score, Score], None]
Saver = Callable[[LoopState], None]


def fit(
    inputs: Inputs,
    head: nn.Linear,
    targets: Tensor,
    *,
    parted: Split,
    recipe: Recipe,
    generator: torch.Generator,
    progress: bool = False,
    report: EpochReport | None = None,
    state: LoopState | None = None,
    save: Saver | None = None,
) -> Outcome:
    """Train in place and leave the best epoch's values in the parameters.

    Args:
        inputs: Where features come from.
        head: Linear [K, D].
        targets: Class of every image, int64 [n].
        parted: Which images to train on, and which choose the epoch.
        recipe: The numbers.
        generator: Order of the images; seeded anew for each epoch, as are the global ones.
        progress: Whether to draw a bar.
        report: Called after each epoch with its number, training and validation score.
        state: Of an earlier run to go on from.
        save: Called after each epoch with what another run could go on from.
    """
    tunables = inputs.tunables()
    moving = [*(t.parameter for t in tunables), *head.parameters()]
    optimizer = make_optimizer(tunables, head, recipe)
    per_epoch = math.ceil(len(parted.train) / recipe.batch_size)
    state = state or LoopState.start(moving, ema=recipe.ema > 0)
    state.restore(moving, optimizer)
    step = Steps(inputs, head, optimizer, Course(recipe, per_epoch), recipe)
    epochs = recipe.epochs + recipe.cooldown
    with tqdm(total=per_epoch * epochs, desc="train", unit="step", disable=not progress) as bar:
        bar.update(per_epoch * state.epoch)
        while state.epoch < epochs and not state.is_stale(recipe.patience):
            seed_epoch(generator, recipe.seed, state.epoch)
            order = epoch_order(targets, parted.train, generator, balance=recipe.balance)
            began = time.monotonic()
            scores = []
            for count, before in step.epoch(order, targets, state.epoch):
                scores.append((count, before))
                state.average(moving, recipe.ema)
                bar.update()
            state.seconds += time.monotonic() - began
            seen = _mean(scores)
            with state.averaged_in(moving):
                held = score(inputs, head, targets, parted.val)
            state.close_epoch(moving, optimizer, held, seen)
            bar.set_postfix(epoch=state.epoch, loss=f"{seen.loss:.3f}", val=f"{held.accuracy:.3f}")
            if report is not None:
                report(state.epoch, seen, held)
            if save is not None:
                save(state)
    return _finish(state, moving, len(parted.train))


class Steps:
    """Steps of the optimiser."""

    def __init__(
        self, inputs: Inputs, head: nn.Linear, optimizer: torch.optim.AdamW, course: Course, recipe: Recipe
    ) -> None:
        self._inputs, self._head, self._optimizer = inputs, head, optimizer
        self._course, self._recipe = course, recipe
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def epoch(self, order: Tensor, targets: Tensor, epoch: int) -> Iterator[tuple[int, Score]]:
        """Take an epoch's steps; yield after each its number of images and score."""
        batches = order.split(self._recipe.batch_size)
        for place, (features, wanted) in enumerate(self._inputs.epoch(batches, targets)):
            self._course.set(self._optimizer, epoch * len(batches) + place)
            logits = self._head(features)
            loss = _loss(logits, wanted, self._recipe.label_smoothing)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self._recipe.clip:
                nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip)
            self._optimizer.step()
            classes = wanted if wanted.ndim == 1 else wanted.argmax(1)
            accuracy = float((logits.argmax(1) == classes).float().mean())
            yield len(features), Score(accuracy, loss.item())


def epoch_order(targets: Tensor, train: Tensor, generator: torch.Generator, *, balance: bool) -> Tensor:
    """Return an epoch's indices, shuffled.

    Balanced, it is as long, and every class is drawn equally often: small ones again and again, large ones in
    part, without repeats before all members were drawn.
    """
    if not balance:
        return train[torch.randperm(len(train), generator=generator)]
    classes = targets[train].unique()
    each = math.ceil(len(train) / len(classes))
    drawn = torch.cat([_draw(train[targets[train] == c], each, generator) for c in classes])
    return drawn[torch.randperm(len(drawn), generator=generator)[: len(train)]]


def score(inputs: Inputs, head: nn.Linear, targets: Tensor, indices: Tensor, batch_size: int = 32) -> Score:
    """Evaluate on some images."""
    right, loss = 0, 0.0
    with torch.no_grad():
        for batch in indices.split(batch_size):
            features = inputs.eval(batch)
            wanted = targets[batch].to(features.device)
            logits = head(features)
            right += int((logits.argmax(1) == wanted).sum())
            loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
    return Score(right / len(indices), loss / len(indices))


def _finish(state: LoopState, moving: list[Tensor], images: int) -> Outcome:
    assert state.best is not None
    state.restore_best(moving)
    rate = images * (state.epoch - state.started) / max(state.seconds, 1e-9)
    return Outcome(state.best.epoch, state.best.val, state.best.train, state.epoch, rate)


def _loss(logits: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    """Soft targets [B, K] are smooth already."""
    return F.cross_entropy(logits, wanted, label_smoothing=smoothing if wanted.ndim == 1 else 0.0)


def _mean(scores: list[tuple[int, Score]]) -> Score:
    total = sum(count for count, _ in scores)
    return Score(
        sum(count * s.accuracy for count, s in scores) / total,
        sum(count * s.loss for count, s in scores) / total,
    )


def _draw(members: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.cat(list(_rounds(members, count, generator)))[:count]


def _rounds(members: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(math.ceil(count / len(members))):
        yield members[torch.randperm(len(members), generator=generator)]
