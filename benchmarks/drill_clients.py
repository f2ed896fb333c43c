"""The drill's clients: predictions on many tasks, uploads, and an alias that is moved forth and back."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import httpx
import numpy as np

from adapters.file import write_adapter
from benchmarks.drill_records import Actor, Call, Records
from tests.e2e.adapters import Known

PNG = {"content-type": "image/png"}
TOLERANCE = 2e-4
ROLLED = "rolled"
PACE_SECONDS = 0.02  # between the calls of one client, so that the servers are not saturated
RETRY_SECONDS = 0.1
SENT_AT_ONCE = 4  # after each move, on connections of their own


@dataclass
class Clients:
    """Speak to one or more servers on one registry, in turn. `known` holds what each version must answer."""

    urls: Sequence[str]
    known: dict[tuple[str, int], Known]
    images: Sequence[bytes]
    records: Records
    uploaded: dict[tuple[str, int], str] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    moves: int = 0

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # a connection each: every replica is met
        self._http = [httpx.AsyncClient(base_url=url, timeout=90, limits=limits) for url in self.urls]
        self._turn = itertools.cycle(self._http)
        self._images = itertools.cycle(self.images)

    async def seed(self, task: str, known: Known) -> None:
        """Register a version before anything else happens."""
        answer = await self._http[0].post(f"/v1/tasks/{task}/versions", content=known.data)
        answer.raise_for_status()

    async def who_answers(self, server: int) -> set[str]:
        """Return the names of replicas of one server that have just answered; none if it did not."""
        try:
            listed = (await self._http[server].get("/v1/replicas")).json().get("replicas", ())
        except httpx.TransportError:
            return set()
        return {replica["replica"] for replica in listed if replica["answers"]}

    async def close(self) -> None:
        for client in self._http:
            await client.aclose()

    async def call(
        self, actor: Actor, method: str, path: str, **request: object
    ) -> tuple[Call, httpx.Response]:
        """Send one request and record how it ended, if it failed."""
        sent = time.perf_counter()
        try:
            answer = await next(self._turn).request(method, path, **request)  # type: ignore[arg-type]
        except httpx.TransportError:
            answer = httpx.Response(599, json={"error_type": "connection lost"})
        failure = None if answer.is_success else failure_of(answer)
        call = Call(actor, sent, time.perf_counter(), failure)
        return call, answer

    async def predict(self, task: str) -> None:
        image = next(self._images)
        path = f"/v1/tasks/{task}/predict?logits=true"
        call, answer = await self.call("prediction", "POST", path, content=image, headers=PNG)
        version = answer.json()["version"] if call.failure is None else 0
        self.records.calls.append(replace(call, task=task, version=version))
        if call.failure is None and not self.is_right(answer.json(), image):
            self.records.wrong.append(f"{task} version {version}")

    def is_right(self, body: dict[str, object], image: bytes) -> bool:
        """Tell whether an answer is that of the version it names, which is one of the task's."""
        known = self.known.get((str(body["task"]), int(str(body["version"]))))
        if known is None or body["digest"] != known.digest:
            return False
        right = known.logits(image)
        return bool(np.allclose(body["logits"], right, rtol=TOLERANCE, atol=TOLERANCE * np.abs(right).max()))  # type: ignore[arg-type]

    async def keep_predicting(self, first: int) -> None:
        tasks = sorted({task for task, _ in self.known})
        for task in itertools.cycle(tasks[first:] + tasks[:first]):
            if self.over.is_set():
                return
            await self.predict(task)
            await asyncio.sleep(PACE_SECONDS)

    async def move(self) -> None:
        """Move the alias, for all replicas; repeat what failed, until it has succeeded. Then ask at once."""
        version = 2 - self.moves % 2
        path = f"/v1/tasks/{ROLLED}/aliases/production?wait=true"
        while True:
            call, _ = await self.call("move", "PUT", path, json={"version": version})
            self.records.calls.append(replace(call, task=ROLLED, version=version))
            if call.failure is None:
                break
            await asyncio.sleep(RETRY_SECONDS)
        self.moves += 1
        await asyncio.gather(*(self.predict(ROLLED) for _ in range(SENT_AT_ONCE)))

    async def keep_uploading(self, template: Known) -> None:
        """Upload a file of its own each time, to a few tasks; repeat what failed, until it has succeeded."""
        for number in itertools.count():
            if self.over.is_set():
                return
            data = renamed(template, number)
            await self.upload(f"uploads-{number % 3}", data)
            await asyncio.sleep(10 * PACE_SECONDS)

    async def upload(self, task: str, data: bytes) -> None:
        while True:
            call, answer = await self.call("upload", "POST", f"/v1/tasks/{task}/versions", content=data)
            self.records.calls.append(replace(call, task=task))
            if call.failure is None:
                break
            await asyncio.sleep(RETRY_SECONDS)
        body = answer.json()
        self.uploaded[task, body["version"]] = body["digest"]
        if body["digest"] != sha256(data).hexdigest():
            self.records.wrong.append(f"{task} version {body['version']} was stored as {body['digest']}")

    async def check_uploads(self) -> None:
        """Download all that was acknowledged."""
        for (task, version), digest in self.uploaded.items():
            path = f"/v1/tasks/{task}/versions/{version}/adapter"
            answer = await next(self._turn).get(path)
            if answer.status_code != 200 or sha256(answer.content).hexdigest() != digest:
                self.records.lost.append(f"{task} version {version}: {answer.status_code}")


def failure_of(answer: httpx.Response) -> str:
    try:
        error_type = answer.json()["error_type"]
    except (ValueError, KeyError, TypeError):
        error_type = f"not an error of ours: {answer.text[:60]!r}"
    return error_type if answer.status_code == 599 else f"{answer.status_code} {error_type}"


def renamed(template: Known, number: int) -> bytes:
    """Return an adapter file that differs in its labels alone."""
    labels = tuple(f"upload{number}-class{k}" for k in range(len(template.adapter.manifest.labels)))
    manifest = template.adapter.manifest.model_copy(update={"labels": labels})
    return write_adapter(replace(template.adapter, manifest=manifest))
