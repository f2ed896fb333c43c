"""Folders as PEFT writes them, and plain models that compute what it does."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

PREFIX = "base_model.model."


class ScaledOutput(nn.Module):
    def __init__(self, base: nn.Module, vector: Tensor) -> None:
        super().__init__()
        self.base, self.vector = base, vector

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.base(x) * self.vector
        return scaled


class ScaledInput(ScaledOutput):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x * self.vector)
        return out


def ia3_vectors(model: nn.Module, targets: Iterable[str], feedforward: Iterable[str]) -> dict[str, Tensor]:
    """Return random vectors of (IA)³, in its shapes, for the modules that end so."""
    g = torch.Generator().manual_seed(6)
    vectors = {}
    for path, module in model.named_modules():
        if not any(path.endswith(f".{name}") for name in targets):
            continue
        inner = path.endswith(tuple(feedforward))
        if isinstance(module, nn.Linear):
            shape = (1, module.in_features) if inner else (module.out_features, 1)
        else:
            shape = (1, module.out_channels, 1, 1)
        vectors[path] = 1 + 0.3 * torch.randn(shape, generator=g)
    return vectors


def wrapped(model: nn.Module, vectors: Mapping[str, Tensor], feedforward: Iterable[str]) -> nn.Module:
    """Put (IA)³ modules around those of a model, in place, as PEFT does."""
    for path, vector in vectors.items():
        base = model.get_submodule(path)
        kind = ScaledInput if path.endswith(tuple(feedforward)) else ScaledOutput
        model.set_submodule(path, kind(base, vector[0] if vector.ndim == 4 else vector.flatten()))
    return model


def write_folder(path: Path, tensors: Mapping[str, Tensor], **config: object) -> Path:
    """Write tensors, by their names without PEFT's prefix, and a config."""
    path.mkdir(exist_ok=True)
    stored = {f"{PREFIX}{name}": tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def write_ia3(
    path: Path,
    model: nn.Module,
    vectors: Mapping[str, Tensor],
    feedforward: Iterable[str],
    saved: Mapping[str, Tensor] | None = None,
    **config: object,
) -> Path:
    """Write the folder of an (IA)³ adapter with the model's head, and what else was saved whole."""
    heads = heads_of(model)
    tensors = {f"{name}.ia3_l": vector for name, vector in vectors.items()}
    modules = {name.rpartition(".")[0] for name in {**heads, **(saved or {})}}
    known = {
        "peft_type": "IA3",
        "target_modules": sorted(vectors),
        "feedforward_modules": sorted(feedforward),
        "modules_to_save": sorted(modules),
    }
    return write_folder(path, tensors | heads | dict(saved or {}), **(known | config))


def heads_of(model: nn.Module) -> dict[str, Tensor]:
    names = ("head.", "head_dist.", "fc.", "classifier.")
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(names) and name.endswith((".weight", ".bias")) and ".norm." not in name
    }
