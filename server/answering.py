"""From logits to the answer of a prediction. The hot path: built once, never validated again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from pydantic_core import to_json

from registry.models import Version
from server.contracts import Logits, Outcome
from server.errors import OutputInvalid

SORT_ALL = 256  # below this many classes a full sort is as fast as looking for the best first


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Return probabilities [K], in fp64 and shifted by the maximum, so that none overflows."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(shifted / shifted.sum())


def best(logits: Logits, k: int) -> NDArray[np.intp]:
    """Return the indices of the k largest logits [K], largest first; of equal ones the lower index first."""
    if k >= len(logits) or len(logits) <= SORT_ALL:
        return np.argsort(-logits, kind="stable")[:k]
    least = np.partition(logits, -k)[-k]
    candidates = np.flatnonzero(logits >= least)
    return candidates[np.argsort(-logits[candidates], kind="stable")[:k]]


def answer(version: Version, logits: Logits, *, top_k: int, with_logits: bool) -> dict[str, Any]:
    """Return the content of `schemas.Predictions`.

    Raises:
        OutputInvalid: If a logit is not finite: JSON could not carry it, and no class would be right.
    """
    if not np.isfinite(logits).all():
        raise OutputInvalid(version.task, version.version)
    labels = version.manifest.labels
    indices = best(logits, top_k)
    ranked = zip(indices.tolist(), softmax(logits)[indices].tolist(), strict=True)
    content: dict[str, Any] = {
        "task": version.task,
        "version": version.version,
        "digest": version.digest,
        "predictions": [{"label": labels[i], "index": i, "probability": p} for i, p in ranked],
    }
    if with_logits:
        content["logits"] = logits.tolist()
    return content


def server_timing(decode_seconds: float, outcome: Outcome) -> str:
    """Return the `Server-Timing` header: milliseconds of decoding, waiting and computing."""
    parts = (
        ("decode", decode_seconds),
        ("queue", outcome.queue_seconds),
        ("compute", outcome.compute_seconds),
    )
    return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in parts)


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON of plain values, without the validation that FastAPI gives to models."""
    return Response(to_json(content), status, headers, media_type="application/json")
