"""How good an adapter is on a data set, in the arithmetic of the server or in the plain reference's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from adapters.data import Dataset
from adapters.errors import DataInvalid
from adapters.file import Adapter
from adapters.folding import check_adapter, fold_adapter
from backbone.executors.base import Executor
from backbone.load import Backbone
from backbone.preprocess import normalise
from backbone.tuned import TunedModel

BATCH = 16
SLOT = 1

Classify = Callable[[Tensor], NDArray[np.float32]]


@dataclass(frozen=True)
class Evaluation:
    """Counts [K, K] int64: row = true class, column = predicted; and the mean cross-entropy."""

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    loss: float

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Top-1."""
        return float(self.confusion.trace() / max(self.images, 1))

    @property
    def recall(self) -> dict[str, float | None]:
        """By class: how many of its images are found; None for a class without images."""
        return _shares(self.labels, self.confusion.diagonal(), self.confusion.sum(1))

    @property
    def precision(self) -> dict[str, float | None]:
        """By class: how many of the images called so are; None for a class never predicted."""
        return _shares(self.labels, self.confusion.diagonal(), self.confusion.sum(0))


def served(executor: Executor, adapter: Adapter) -> Classify:
    """Return what maps uint8 images [B, 3, H, W] to logits [B, K] as the server does: folded, in a bank.

    Args:
        executor: What the server would run; its slot 1 is taken.
        adapter: Any that fits its backbone.

    Raises:
        AdapterIncompatible: If the adapter belongs to another backbone or preprocessing.
    """
    executor.load(SLOT, fold_adapter(executor.backbone, adapter))
    return lambda pixels: np.stack(executor.run(list(pixels.numpy()), [SLOT] * len(pixels)))


def reference(backbone: Backbone, adapter: Adapter) -> Classify:
    """Return the same by the method's definition: γ ⊙ y + β behind every op, in fp32 on the CPU.

    Raises:
        AdapterIncompatible: If the adapter belongs to another backbone or preprocessing.
    """
    check_adapter(backbone, adapter)
    tuned = TunedModel(backbone.model, backbone.sites, only={*adapter.scale, *adapter.shift})
    tuned.set_vectors(adapter.scale, adapter.shift)
    weight, bias = adapter.head_weight.float(), adapter.head_bias.float()

    @torch.inference_mode()
    def classify(pixels: Tensor) -> NDArray[np.float32]:
        images = np.stack([normalise(image, backbone.spec) for image in pixels.numpy()])
        logits: NDArray[np.float32] = torch.addmm(bias, tuned(torch.from_numpy(images)), weight.T).numpy()
        return logits

    wrapped: Classify = classify
    return wrapped


def evaluate(
    classify: Classify,
    pixels: Tensor,
    targets: Tensor,
    labels: Sequence[str],
    *,
    progress: bool = False,
) -> Evaluation:
    """Classify images [n, 3, H, W] in batches and count. Targets [n] are places in `labels`."""
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    loss = 0.0
    places = range(0, len(pixels), BATCH)
    for start in tqdm(places, desc="evaluate", unit="batch", disable=not progress):
        logits = torch.from_numpy(classify(pixels[start : start + BATCH]))
        wanted = targets[start : start + BATCH]
        np.add.at(confusion, (wanted.numpy(), logits.argmax(1).numpy()), 1)
        loss += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    return Evaluation(tuple(labels), confusion, loss / max(len(pixels), 1))


def align_targets(dataset: Dataset, labels: Sequence[str]) -> Tensor:
    """Return the data set's targets as places in an adapter's labels. It may lack some of them.

    Raises:
        DataInvalid: If it has a class that the adapter does not know.
    """
    place = {label: i for i, label in enumerate(labels)}
    unknown = [label for label in dataset.labels if label not in place]
    if unknown:
        known = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
        raise DataInvalid(
            str(dataset.source),
            f"has classes the adapter does not know: {', '.join(unknown)} (known: {known})",
        )
    return torch.tensor([place[label] for label in dataset.labels])[dataset.targets]


def _shares(
    labels: Sequence[str], part: NDArray[np.int64], whole: NDArray[np.int64]
) -> dict[str, float | None]:
    return {
        label: float(a / b) if b else None
        for label, a, b in zip(labels, part.tolist(), whole.tolist(), strict=True)
    }
