"""The loop of a training: epochs over shuffled batches, and the best epoch by validation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from adapters.data import Split
from adapters.optim import Tunable, make_optimizer, schedule
from adapters.recipe import Recipe


class Inputs(Protocol):
    """What features come from: images through a tuned model, or a table of frozen features."""

    def tunables(self) -> list[Tunable]:
        """Return what trains beside the head."""

    def train(self, indices: Tensor) -> Tensor:
        """Return features [B, D], fp32, of training images, with gradients and augmentation."""

    def eval(self, indices: Tensor) -> Tensor:
        """Return features [B, D], fp32, as serving would compute them."""


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on some images."""

    accuracy: float
    loss: float

    def is_better_than(self, other: "Score | None") -> bool:
        """Accuracy decides, then the loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best epoch (from 1) of a training and its scores; the parameters hold its values."""

    epoch: int
    val: Score
    train: Score


EpochReport = Callable[[int, Score, Score], None]


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
) -> Outcome:
    """Train in place and leave the best epoch's values in the parameters.

    Args:
        inputs: Where features come from.
        head: Linear [K, D].
        targets: Class of every image, int64 [n].
        parted: Which images to train on, and which choose the epoch.
        recipe: The numbers.
        generator: Order of the images.
        progress: Whether to draw a bar.
        report: Called after each epoch with its number, training and validation score.
    """
    tunables = inputs.tunables()
    parameters = [*(t.parameter for t in tunables), *head.parameters()]
    optimizer = make_optimizer(tunables, head, recipe)
    per_epoch = math.ceil(len(parted.train) / recipe.batch_size)
    scheduler = schedule(
        optimizer, steps=per_epoch * recipe.epochs, warmup_steps=round(per_epoch * recipe.warmup)
    )
    best: Outcome | None = None
    kept: list[Tensor] = []
    with tqdm(total=per_epoch * recipe.epochs, desc="train", unit="step", disable=not progress) as bar:
        for epoch in range(1, recipe.epochs + 1):
            order = epoch_order(targets, parted.train, generator, balance=recipe.balance)
            scores = []
            for batch in order.split(recipe.batch_size):
                loss, accuracy = _forward(inputs, head, targets, batch, recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
                optimizer.step()
                scheduler.step()
                scores.append((len(batch), Score(accuracy, loss.item())))
                bar.update()
            seen, held = _mean(scores), score(inputs, head, targets, parted.val, recipe.batch_size)
            bar.set_postfix(epoch=epoch, loss=f"{seen.loss:.3f}", val=f"{held.accuracy:.3f}")
            if report is not None:
                report(epoch, seen, held)
            if held.is_better_than(best.val if best else None):
                best, kept = Outcome(epoch, held, seen), [p.detach().clone() for p in parameters]
    assert best is not None
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return best


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


def score(inputs: Inputs, head: nn.Linear, targets: Tensor, indices: Tensor, batch_size: int) -> Score:
    """Evaluate on some images."""
    right, loss = 0, 0.0
    with torch.no_grad():
        for batch in indices.split(max(batch_size, 32)):
            features = inputs.eval(batch)
            wanted = targets[batch].to(features.device)
            logits = head(features)
            right += int((logits.argmax(1) == wanted).sum())
            loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
    return Score(right / len(indices), loss / len(indices))


def _forward(
    inputs: Inputs, head: nn.Linear, targets: Tensor, batch: Tensor, smoothing: float
) -> tuple[Tensor, float]:
    """Return a batch's loss, with gradients, and its accuracy."""
    logits = head(inputs.train(batch))
    wanted = targets[batch].to(logits.device)
    accuracy = float((logits.argmax(1) == wanted).float().mean())
    return F.cross_entropy(logits, wanted, label_smoothing=smoothing), accuracy


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
