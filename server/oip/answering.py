"""From logits to the answer of an inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from pydantic_core import to_json

from registry.models import Version
from server.answering import best, softmax
from server.errors import RequestInvalid, ValueInvalid
from server.oip.bodies import JSON_LENGTH
from server.oip.schemas import InferRequest
from server.oip.tensors import join_elements

OUTPUTS = ("probabilities", "logits")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output as asked for; `classes`: so many of the best, as text, 0 for the numbers of all."""

    name: str
    binary: bool
    classes: int = 0


def wanted_outputs(request: InferRequest) -> list[Wanted]:
    """Return the outputs that a request asks for: all of them if it names none.

    Raises:
        RequestInvalid, ValueInvalid
    """
    by_default = request.parameters.binary_data_output
    if not request.outputs:
        return [Wanted(name, by_default) for name in OUTPUTS]
    names = [output.name for output in request.outputs]
    for name in names:
        if name not in OUTPUTS:
            raise ValueInvalid("outputs", f"no output {name[:40]!r}; there are {', '.join(OUTPUTS)}")
    if len(set(names)) != len(names):
        raise ValueInvalid("outputs", "an output is named twice")
    if any(output.parameters.shared_memory_region is not None for output in request.outputs):
        raise RequestInvalid("shared memory is not supported")
    return [
        Wanted(
            output.name,
            by_default if output.parameters.binary_data is None else output.parameters.binary_data,
            output.parameters.classification,
        )
        for output in request.outputs
    ]


def probabilities_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax of each row [n, K]."""
    return np.stack([softmax(row) for row in logits]).astype(np.float32)


def respond(
    request: InferRequest,
    version: Version,
    logits: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    wanted: Sequence[Wanted],
) -> Response:
    """Return the answer to a request: JSON, and behind it the binary tensors, if any."""
    values = {"logits": logits, "probabilities": probabilities}
    outputs, tails = [], []
    for output in wanted:
        if output.classes:
            head, tail = _classes(output, values[output.name], logits, version.manifest.labels)
        else:
            head, tail = _numbers(output, values[output.name])
        outputs.append(head)
        tails.append(tail)
    content: dict[str, Any] = {"model_name": version.task, "model_version": str(version.version)}
    if request.id:
        content["id"] = request.id
    content |= {"parameters": {"digest": version.digest}, "outputs": outputs}
    json = to_json(content)
    if not any(output.binary for output in wanted):
        return Response(json, media_type="application/json")
    return Response(
        b"".join([json, *tails]),
        headers={JSON_LENGTH: str(len(json))},
        media_type="application/octet-stream",
    )


def _numbers(output: Wanted, values: NDArray[np.float32]) -> tuple[dict[str, Any], bytes]:
    head: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(values.shape)}
    if not output.binary:
        return head | {"data": values.ravel().tolist()}, b""
    tail = values.astype("<f4").tobytes()
    return head | {"parameters": {"binary_data_size": len(tail)}}, tail


def _classes(
    output: Wanted, values: NDArray[np.float32], logits: NDArray[np.float32], labels: Sequence[str]
) -> tuple[dict[str, Any], bytes]:
    """Return each row's best classes as `value:index:label`, the value with six decimals as Triton's."""
    texts = [
        f"{row[index]:.6f}:{index}:{labels[index]}"
        for row, scores in zip(values, logits, strict=True)
        for index in best(scores, output.classes).tolist()
    ]
    shape = [len(values), len(texts) // len(values)]
    head: dict[str, Any] = {"name": output.name, "datatype": "BYTES", "shape": shape}
    if not output.binary:
        return head | {"data": texts}, b""
    tail = join_elements(text.encode() for text in texts)
    return head | {"parameters": {"binary_data_size": len(tail)}}, tail
