"""(IA)³ vectors, checked and under timm's names, and what they make of a model."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.errors import CheckpointInvalid
from adapters.peft.folder import PeftAdapter
from adapters.peft.inputs import Source, sources
from adapters.peft.names import Layout, Place
from backbone.load import Backbone
from backbone.split_bias import is_split

State = dict[str, Tensor]

ADVICE = "train it with feedforward_modules=[], which scales outputs"


@dataclass(frozen=True)
class Ia3:
    """Scales of outputs [out] and inputs [in], fp32, by timm's modules; those of ones are left out."""

    outputs: State
    inputs: State


def ia3_of(read: PeftAdapter, layout: Layout, backbone: Backbone) -> Ia3:
    """Return the vectors of an adapter; parts of a module that have none count as ones.

    Raises:
        CheckpointInvalid: If a vector has not its module's shape, contradicts the config, or parts of a
            module have inputs that are scaled apart.
    """
    outputs: State = {}
    inputs: dict[str, State] = {}
    for name, tensor in read.vectors.items():
        place = layout.places.get(name)
        if place is None:
            raise CheckpointInvalid(read.source, f"scales {name}, the classifier itself")
        vector, feedforward = _checked(read, name, tensor, place, backbone)
        if feedforward:
            inputs.setdefault(place.path, {})[name] = vector
        else:
            width = place.of * len(vector)
            place.within(outputs.setdefault(place.path, torch.ones(width))).copy_(vector)
    whole = {path: _alike(read.source, path, parts, layout) for path, parts in inputs.items()}
    return Ia3(_without_ones(outputs), _without_ones(whole))


def scales_of(source: str, ia3: Ia3, backbone: Backbone) -> State:
    """Return γ [C] by site.

    Raises:
        CheckpointInvalid: If a scale is of an output at no site, or of an input that is no site's output.
    """
    scale: State = {}
    for path in (*ia3.outputs, *ia3.inputs):
        _check_called(source, path, backbone)
    for path, vector in ia3.outputs.items():
        if path not in backbone.sites.widths:
            raise CheckpointInvalid(source, f"scales the output of {path}, where no site is")
        scale[path] = vector.clone()
    places = {reader: place for place in sources(backbone) for reader in place.readers}
    moved = set()
    for path in ia3.inputs:
        place = places.get(path)
        if place is None:
            raise CheckpointInvalid(
                source,
                f"scales the input of {path}, which no norm or linear op puts out: no site can; {ADVICE}",
            )
        if place not in moved:
            moved.add(place)
            _move(source, place, ia3.inputs, scale, backbone)
    return scale


def hook_in(model: nn.Module, ia3: Ia3) -> nn.Module:
    """Make a model compute what PEFT's does, in place: each module's input or output times its vector."""
    for path, vector in ia3.outputs.items():
        module = model.get_submodule(path)
        shaped = vector.view(-1, 1, 1) if isinstance(module, nn.Conv2d) else vector
        module.register_forward_hook(lambda _module, _args, y, shaped=shaped: y * shaped)
    for path, vector in ia3.inputs.items():
        model.get_submodule(path).register_forward_pre_hook(
            lambda _module, args, vector=vector: (args[0] * vector, *args[1:])
        )
    return model


def _checked(
    read: PeftAdapter, name: str, tensor: Tensor, place: Place, backbone: Backbone
) -> tuple[Tensor, bool]:
    """Return a vector, flat, and whether it scales the input."""
    module = backbone.model.get_submodule(place.path)
    feedforward = read.config.is_feedforward(name)
    outputs, inputs = _shapes(read.source, name, module, place)
    expected, other = (inputs, outputs) if feedforward else (outputs, inputs)
    shape = list(tensor.shape)
    if shape == other != expected:
        does = "name it" if feedforward else "do not name it"
        kind = "output" if feedforward else "input"
        raise CheckpointInvalid(
            read.source, f"scales the {kind} of {name} ({shape}), but its feedforward_modules {does}"
        )
    if shape != expected:
        raise CheckpointInvalid(read.source, f"holds the vector of {name} as {shape}, not as {expected}")
    if not tensor.isfinite().all():
        raise CheckpointInvalid(read.source, f"holds NaN or an infinity in {name}")
    return tensor.float().flatten(), feedforward


def _shapes(source: str, name: str, module: nn.Module, place: Place) -> tuple[list[int], list[int]]:
    """Return the shapes of a vector that scales the output, and of one that scales the input."""
    if isinstance(module, nn.Conv2d):
        return [1, module.out_channels, 1, 1], [1, module.in_channels, 1, 1]
    if isinstance(module, nn.Linear):
        return [module.out_features // place.of, 1], [1, module.in_features]
    raise CheckpointInvalid(source, f"scales {name}, which is no linear op or convolution")


def _alike(source: str, path: str, parts: State, layout: Layout) -> Tensor:
    """Return the one vector that all parts of a module read their common input with."""
    first, vector = next(iter(parts.items()))
    for name, place in layout.places.items():
        if place.path == path and not torch.equal(parts.get(name, torch.ones_like(vector)), vector):
            raise _apart(source, first, name)
    return vector


def _move(source: str, place: Source, inputs: State, scale: State, backbone: Backbone) -> None:
    """Scale an output by what all its readers scale their input by."""
    first = next(reader for reader in place.readers if reader in inputs)
    vector = inputs[first]
    for reader in place.readers:
        if not torch.equal(inputs.get(reader, torch.ones_like(vector)), vector):
            raise _apart(source, first, reader)
    whole = scale.setdefault(place.site, torch.ones(backbone.sites.widths[place.site]))
    whole.chunk(place.of)[place.part].mul_(vector)


def _apart(source: str, one: str, other: str) -> CheckpointInvalid:
    return CheckpointInvalid(
        source, f"scales the inputs of {one} and {other} apart, which are one output: no site can; {ADVICE}"
    )


def _check_called(source: str, path: str, backbone: Backbone) -> None:
    if path.endswith(".qkv") and is_split(backbone.model.get_submodule(path.rpartition(".")[0])):
        raise CheckpointInvalid(source, f"scales {path}, which timm never calls: its bias lies beside it")


def _without_ones(vectors: Mapping[str, Tensor]) -> State:
    return {path: vector for path, vector in vectors.items() if bool((vector != 1).any())}
