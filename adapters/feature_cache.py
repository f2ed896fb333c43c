"""Frozen features on disk: a linear probe on the same images, with other numbers, needs no forward."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from adapters.data import Dataset
from adapters.recipe import Recipe
from adapters.saving import replace_file
from backbone.load import Backbone


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """A folder of tables [n, D], fp32; a file's name follows from all that its numbers follow from."""

    folder: Path

    def path(self, backbone: Backbone, dataset: Dataset, recipe: Recipe) -> Path:
        facts = (
            backbone.name, backbone.fingerprint, asdict(backbone.spec), dataset.digest, recipe.dtype,
            recipe.device.partition(":")[0],
        )  # fmt: skip
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def read(self, path: Path) -> Tensor | None:
        """Return the table; None if there is none, or a damaged one."""
        try:
            return load_file(path)["features"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def write(self, path: Path, features: Tensor) -> None:
        """Put a table in place at once; raises OSError."""
        replace_file(path, save({"features": features.cpu().contiguous()}))
