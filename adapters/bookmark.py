"""A training's bookmark: a file from which another process goes on where this one was stopped.

Written whole after every epoch, so a kill costs at most one. It holds tensors and plain values, is read with
`weights_only`, and names what it belongs to: with other data, options or packages it is refused.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.data import Dataset
from adapters.diary import versions
from adapters.errors import BookmarkInvalid
from adapters.loop_state import Best, LoopState
from adapters.recipe import Recipe
from adapters.saving import replace_file
from adapters.score import Score
from backbone.load import Backbone


@dataclass(frozen=True, slots=True)
class Prepared:
    """Measured before the first epoch: mean and deviation [D] of features, parts of learning rates."""

    standard: tuple[Tensor, Tensor] | None
    shares: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A file, and the facts that a training's result follows from."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def identity(self) -> str:
        text = json.dumps(self.facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, prepared: Prepared, state: LoopState) -> None:
        """Put the file in place at once; raises OSError."""
        content = io.BytesIO()
        best = None if state.best is None else asdict(state.best)
        torch.save(
            {
                "identity": self.identity,
                "standard": prepared.standard,
                "shares": prepared.shares,
                "values": [tensor.detach() for tensor in state.values],
                "kept": state.kept,
                "averages": state.averages,
                "epoch": state.epoch,
                "optimizer": state.optimizer,
                "best": best,
            },
            content,
        )
        replace_file(self.path, content.getvalue())

    def read(self) -> tuple[Prepared, LoopState] | None:
        """Return what the file holds; None if there is none.

        Raises:
            BookmarkInvalid: If it is damaged, or another training's.
        """
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            identity = found["identity"]
        except Exception as error:  # a damaged file fails in many ways
            raise BookmarkInvalid(str(self.path), "cannot be read") from error
        if identity != self.identity:
            raise BookmarkInvalid(str(self.path), "belongs to other data, options, weights or packages")
        best = found["best"]
        return Prepared(found["standard"], found["shares"]), LoopState(
            values=found["values"],
            kept=found["kept"],
            averages=found["averages"],
            epoch=found["epoch"],
            optimizer=found["optimizer"],
            best=Best(best["epoch"], Score(**best["val"]), Score(**best["train"])) if best else None,
            started=found["epoch"],
        )

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def bookmark_of(target: Path, backbone: Backbone, dataset: Dataset, recipe: Recipe) -> Bookmark:
    """Return the bookmark, beside the file that it will write, of a training."""
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "dataset": dataset.digest,
        "backbone": (backbone.fingerprint, asdict(backbone.spec)),
        "packages": versions(),
    }
    return Bookmark(target.with_name(f".{target.name}.training"), facts)
