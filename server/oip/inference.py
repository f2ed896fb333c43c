"""One inference, from the request to the answer."""

import time

import numpy as np
from fastapi import Request, Response

from server.client import patience
from server.contracts import Job
from server.errors import OutputInvalid
from server.middleware import exchange_of
from server.oip.answering import probabilities_of, respond, wanted_outputs
from server.oip.bodies import read_call
from server.oip.images import count_images, read_images
from server.oip.together import together
from server.parts import parts_of
from server.routes.predict import patience_seconds


async def infer(request: Request, task: str, number: int | None = None) -> Response:
    """Answer an inference by a version of a task, `production` if no number is given.

    All images are read before the first is computed, and one that fails fails the request: the protocol has
    no place for an error beside answers.

    Raises:
        RegistryError, ServerError, ClientGone
    """
    parts, exchange = parts_of(request), exchange_of(request)
    seconds = patience_seconds(request, parts)
    version = await parts.catalog.resolve(task, number)
    exchange.task, exchange.version = task, version.version
    with parts.statistics.counting(version) as inference:
        parts.quotas.refuse_spent(exchange.caller)
        call = await read_call(request, parts.settings)
        received = time.monotonic()
        wanted = wanted_outputs(call.json)
        if call.json.parameters.timeout:
            seconds = min(seconds, call.json.parameters.timeout / 1e6)
        count = count_images(call, parts.settings)
        with parts.quotas.key(exchange.caller, count), parts.quotas.task(task, count):
            async with patience(request, seconds):
                images = await read_images(call, parts)
                inference.compute_input = time.monotonic() - received
                jobs = [Job(version, image, received + seconds) for image in images]
                outcomes = await together(parts.engine.predict(job) for job in jobs)
        inference.computed(outcomes)
        computed = time.monotonic()
        logits = np.stack([outcome.logits for outcome in outcomes])
        if not np.isfinite(logits).all():
            raise OutputInvalid(task, version.version)
        probabilities = probabilities_of(logits)
        response = respond(call.json, version, logits, probabilities, wanted)
        inference.compute_output = time.monotonic() - computed
    for top1 in probabilities.max(axis=1).tolist():
        parts.metrics.observe_prediction(task, top1, exchange.seconds)
    return response
