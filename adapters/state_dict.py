"""From the state dict of a fine-tuned timm model to an adapter, if only biases, norms or the head were tuned.

It is compared with the frozen backbone tensor by tensor; adapters/tuned_weights.py tells what may differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adapters.checkpoint_file import load_checkpoint, tensors_of
from adapters.converted import assemble, check_against, unknown_run
from adapters.errors import CheckpointInvalid
from adapters.file import Adapter
from adapters.linear_head import one_head
from adapters.training import Parts
from adapters.tuned_weights import frozen_head, method_of, tunable, tuned_vectors
from backbone.checkpoint import COMPUTED, classifier_paths
from backbone.load import Backbone

NESTED = ("state_dict", "model")
AVERAGED = ("state_dict_ema", "model_ema")
HEADS = ("head", "fc", "classifier", "")  # in a file that holds a head and nothing else

State = dict[str, Tensor]


@dataclass(frozen=True)
class StateDict:
    """The weights of a file.

    Attributes:
        source: The file's name.
        tensors: By name, in the dtypes of the file.
        averaged: What the file calls the averaged weights that it has beside these, and that were not taken.
    """

    source: str
    tensors: State
    averaged: str | None


def read_state_dict(path: Path) -> StateDict:
    """Read a state dict, bare or within the checkpoint of a trainer.

    Raises:
        CheckpointInvalid: If it cannot be read safely, or is no state dict.
    """
    content = load_checkpoint(path)
    averaged = next((key for key in AVERAGED if isinstance(content.get(key), Mapping)), None)
    inner = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), content)
    return StateDict(path.name, tensors_of(path.name, inner), averaged)


def convert_state_dict(
    read: StateDict, backbone: Backbone, *, labels: Sequence[str] | None = None, command: str | None = None
) -> Adapter:
    """Return the adapter of a fine-tuned timm model.

    Args:
        read: From `read_state_dict`.
        backbone: What it was fine-tuned from, at the input size of training.
        labels: Names of its classes in order; their numbers if None.
        command: Goes into the training record.

    Raises:
        CheckpointInvalid: If something else than biases, norms and the head was tuned, or there is no head.
        ProbeMismatch: If the adapter does not compute what the model does.
    """
    body, rest = _split(read, backbone)
    trained = _head(read.source, rest, backbone, alone=not body)
    _check_whole(read.source, body, backbone)
    tuned = tuned_vectors(read.source, body, backbone)
    head = frozen_head(read.source, backbone, tuned, trained)
    adapter = assemble(
        read.source,
        backbone,
        Parts(tuned.scale, tuned.shift, *head),
        method=method_of(tuned.scale, tuned.shift, backbone.sites),
        labels=labels,
        training=unknown_run({"converted_from": read.source}, command),
    )
    check_against(adapter, backbone, tuned.model, trained)
    return adapter


def _split(read: StateDict, backbone: Backbone) -> tuple[State, State]:
    """Return what the backbone has as well, and the rest."""
    own = backbone.model.state_dict().keys()
    body = {name: tensor for name, tensor in read.tensors.items() if name in own}
    rest = {name: t for name, t in read.tensors.items() if name not in own and not name.endswith(COMPUTED)}
    return body, rest


def _head(source: str, rest: State, backbone: Backbone, *, alone: bool) -> tuple[Tensor, Tensor]:
    paths = list(classifier_paths(backbone.model))
    if alone:
        paths = [path for path in (*paths, *HEADS) if _below(path, "weight") in rest][:1] or paths
    for name in rest:
        if name not in {_below(path, kind) for path in paths for kind in ("weight", "bias")}:
            raise CheckpointInvalid(source, f"holds {name}, which {backbone.name} has not")
    return one_head(source, rest, paths, backbone.head_width)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_whole(source: str, body: State, backbone: Backbone) -> None:
    """Let what was not tuned be left out, all of it or nothing: half of a model is a damaged file."""
    own = {name for name, tensor in backbone.model.state_dict().items() if tensor.is_floating_point()}
    missing = sorted(own - body.keys())
    if missing and body.keys() & (own - tunable(backbone)):
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise CheckpointInvalid(source, f"lacks {missing[0]}{more}, though it holds weights that stay frozen")
