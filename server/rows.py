"""The rows of `/v1/predict`: each a pair of image and task, each answered or refused for itself."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from registry.models import Version
from server.answering import answer
from server.answers import report
from server.auth import Caller
from server.batch_body import Batch, Upload
from server.contracts import Image, Job
from server.errors import ConcurrencyLimited, DeadlineExceeded, RateLimited
from server.middleware import Exchange
from server.parts import Parts
from server.queries import Shown
from server.selection import parse_ref

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows of one request share. `deadline` is a time of `time.monotonic()`."""

    parts: Parts
    exchange: Exchange
    query: Shown
    deadline: float

    async def answer(self, batch: Batch) -> list[dict[str, Any]]:
        """Return the content of `schemas.Row` or `schemas.RowError` for each pair, in order."""
        versions = await self._resolve_all(batch)
        with ExitStack() as held:
            refused = self._hold_tasks(held, batch, versions)
            chosen = {
                ref: refused.get(version.task, version) if isinstance(version, Version) else version
                for ref, version in versions.items()
            }
            needed = {index for index, ref in batch.pairs if isinstance(chosen[ref], Version)}
            async with asyncio.TaskGroup() as group:
                images = {
                    index: group.create_task(_attempt(self._decode(batch.uploads[index]))) for index in needed
                }
                rows = [
                    group.create_task(self._row(index, ref, images.get(index), versions[ref], chosen[ref]))
                    for index, ref in batch.pairs
                ]
                answers = await asyncio.gather(*rows)
                for image in images.values():
                    image.cancel()  # one that outlasted the deadline of all its rows is of no use any more
        return answers

    async def _resolve_all(self, batch: Batch) -> dict[str, Version | Exception]:
        refs = list(dict.fromkeys(ref for _, ref in batch.pairs))
        caller = self.exchange.caller
        found = await asyncio.gather(*(_attempt(_resolve(self.parts, caller, ref)) for ref in refs))
        return dict(zip(refs, found, strict=True))

    def _hold_tasks(
        self, held: ExitStack, batch: Batch, versions: Mapping[str, Version | Exception]
    ) -> dict[str, Exception]:
        """Count the rows of each task until `held` is closed; return the tasks that may not have theirs."""
        refused: dict[str, Exception] = {}
        chosen = (versions[ref] for _, ref in batch.pairs)
        for task, rows in Counter(v.task for v in chosen if isinstance(v, Version)).items():
            try:
                held.enter_context(self.parts.quotas.task(task, rows))
            except (RateLimited, ConcurrencyLimited) as error:
                refused[task] = error
        return refused

    async def _row(
        self,
        index: int,
        ref: str,
        image: asyncio.Task[Image | Exception] | None,
        version: Version | Exception,
        chosen: Version | Exception,
    ) -> dict[str, Any]:
        content = await _attempt(self._predict(image, chosen))
        if isinstance(content, Exception):
            status, body, _ = report(content)
            if isinstance(version, Version):
                self.parts.metrics.observe_failure(version.task, status)
            return {"image": index, "task": ref, "status": status, **body}
        top1 = content["predictions"][0]["probability"]
        self.parts.metrics.observe_prediction(content["task"], top1, self.exchange.seconds)
        return {"image": index, **content}

    async def _predict(
        self, image: asyncio.Task[Image | Exception] | None, version: Version | Exception
    ) -> dict[str, Any]:
        chosen = _unwrap(version)
        assert image is not None, "what has a version has its image decoded"
        limit = asyncio.timeout(self.deadline - time.monotonic())
        try:
            async with limit:
                pixels = _unwrap(await asyncio.shield(image))  # other rows wait for it too
                outcome = await self.parts.engine.predict(Job(chosen, pixels, self.deadline))
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded from None
            raise
        return answer(chosen, outcome.logits, top_k=self.query.top_k, with_logits=self.query.logits)

    async def _decode(self, upload: Upload) -> Image:
        return await self.parts.decoder.decode(await upload.read(), upload.content_type)


async def _resolve(parts: Parts, caller: Caller, ref: str) -> Version:
    task, version, alias = parse_ref(ref)
    caller.check_task(task)
    return await parts.catalog.resolve(task, version, alias)


async def _attempt(work: Awaitable[T]) -> T | Exception:
    """Return what fails instead of raising it: a row must not take its neighbours along."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001  (reported in the row)
        return error


def _unwrap(result: T | Exception) -> T:
    if isinstance(result, Exception):
        raise result
    return result
