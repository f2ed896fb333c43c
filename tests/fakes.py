"""Fakes with behaviour: a device that answers from what was loaded, blobs, an engine, a clock, executors."""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adapters.errors import AdapterFileInvalid, AdapterIncompatible, ProbeMismatch
from adapters.manifest import Manifest, Preprocessing
from registry.errors import BlobNotFound
from registry.models import Version
from server.contracts import AdapterState, BackboneInfo, FoldedAdapter, Image, Job, Logits, Outcome, Tier
from server.errors import Draining, PinLimit
from tests.builders import FINGERPRINT, IMAGENET_MEAN, IMAGENET_STD, make_manifest

MAGIC = b"FAKEADAPTER1\n"
WRONG_PROBE, NOT_FINITE, CRASHES = b"wrong-probe", b"not-finite", b"crashes"


def make_adapter_file(payload: bytes = b"", manifest: Manifest | None = None) -> bytes:
    """Return a file that FakeDevice reads. The payloads WRONG_PROBE, NOT_FINITE, CRASHES do as they say."""
    return MAGIC + (manifest or make_manifest()).to_json().encode() + b"\n" + payload


def make_version(task: str = "pets", number: int = 1, data: bytes | None = None) -> Version:
    """Return the version whose bytes are `data`, by default a file of its own for each task and number."""
    data = make_adapter_file(f"{task}/{number}".encode()) if data is None else data
    digest = hashlib.sha256(data).hexdigest()
    manifest, _ = parse_adapter_file(data)
    return Version(task=task, version=number, digest=digest, size=len(data), created=1.0e9, manifest=manifest)


def make_image(seed: int = 0, size: int = 32) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (3, size, size), dtype=np.uint8)


def make_info(*, slots: int = 4, size: int = 32) -> BackboneInfo:
    return BackboneInfo(
        name="vit_tiny_patch16_224",
        fingerprint=FINGERPRINT,
        source="fake",
        family="vit",
        executor="fake",
        device="cpu",
        dtype="float32",
        parameters=1000,
        head_width=32,
        preprocessing=Preprocessing(height=size, width=size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        sites={"blocks.0.attn.qkv": 96},
        slots=slots,
    )


def fake_logits(digest: str, classes: int, image: Image) -> Logits:
    """Return the one right answer [K] of an adapter for an image; another of either gives another."""
    seed = digest.encode() + image.tobytes()
    words = np.frombuffer(hashlib.shake_256(seed).digest(4 * classes), dtype="<u4")
    return (words / 2**32).astype(np.float32)


def parse_adapter_file(data: bytes) -> tuple[Manifest, bytes]:
    """Return manifest and payload.

    Raises:
        AdapterFileInvalid
        ManifestInvalid
    """
    header, newline, payload = data.removeprefix(MAGIC).partition(b"\n")
    if not data.startswith(MAGIC) or not newline:
        raise AdapterFileInvalid("magic", "not a fake adapter")
    return Manifest.from_json(header), payload


@dataclass(frozen=True)
class FakeAdapter:
    digest: str
    manifest: Manifest
    payload: bytes
    nbytes: int


class FakeDevice:
    """Answers with `fake_logits` of whatever the slot holds; breaches of the Device contract are kept.

    `running` is held during a run, so a test that holds it stops the device; `entered` tells that a run was
    begun, `full` that all lanes were taken; `batches` are the runs' slots.
    """

    def __init__(self, *, slots: int = 4, lanes: int = 1) -> None:
        self.info = replace(make_info(slots=slots), lanes=lanes)
        self.bank: dict[int, FakeAdapter] = {}
        self.batches: list[tuple[int, ...]] = []
        self.breaches: list[str] = []
        self.running = threading.Lock()
        self.entered = threading.Event()
        self.before_load: Callable[[FakeAdapter], None] = lambda adapter: None
        self.full = threading.Event()
        self._in_use: list[tuple[int, ...]] = []

    def memory(self) -> dict[str, int]:
        return {}

    def fold(self, data: bytes) -> FakeAdapter:
        manifest, payload = parse_adapter_file(data)
        if manifest.backbone.fingerprint != self.info.fingerprint:
            raise AdapterIncompatible("backbone", self.info.fingerprint, manifest.backbone.fingerprint)
        return FakeAdapter(hashlib.sha256(data).hexdigest(), manifest, payload, len(data))

    def validate(self, data: bytes, *, new: bool = True) -> Manifest:
        adapter = self.fold(data)
        if adapter.payload.startswith(WRONG_PROBE):
            raise ProbeMismatch(1.0, 0.01)
        return adapter.manifest

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        assert isinstance(adapter, FakeAdapter)
        self.before_load(adapter)
        if any(slot in slots for slots in self._in_use):
            self.breaches.append(f"slot {slot} was loaded while a run used it")
        if not 1 <= slot <= self.info.slots:
            self.breaches.append(f"slot {slot} does not exist")
        self.bank[slot] = adapter

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        if len(self._in_use) >= self.info.lanes:
            self.breaches.append("more runs at once than lanes")
        mine = tuple(slots)
        self._in_use.append(mine)
        self.entered.set()
        if len(self._in_use) == self.info.lanes:
            self.full.set()
        try:
            with self.running:
                self.batches.append(tuple(slots))
                return [
                    self._answer(image, self.bank[slot]) for image, slot in zip(images, slots, strict=True)
                ]
        finally:
            self._in_use.remove(mine)

    def _answer(self, image: Image, adapter: FakeAdapter) -> Logits:
        if adapter.payload.startswith(CRASHES):
            raise RuntimeError("the kernel failed")
        logits = fake_logits(adapter.digest, adapter.manifest.num_classes, image)
        return logits * np.float32("nan") if adapter.payload.startswith(NOT_FINITE) else logits


@dataclass
class FakeBlobs:
    """The bytes of versions, with a registry's `fetch`. A digest in `closed` waits until it is opened."""

    data: dict[str, bytes] = field(default_factory=dict)
    fetched: Counter[str] = field(default_factory=Counter)
    error: Exception | None = None
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def add(self, task: str = "pets", number: int = 1, payload: bytes | None = None) -> Version:
        data = make_adapter_file(f"{task}/{number}".encode() if payload is None else payload)
        version = make_version(task, number, data)
        self.data[version.digest] = data
        return version

    def close(self, digest: str) -> None:
        self._gates[digest] = asyncio.Event()

    def open(self, digest: str) -> None:
        self._gates.pop(digest).set()

    async def fetch(self, digest: str) -> bytes:
        self.fetched[digest] += 1
        if (gate := self._gates.get(digest)) is not None:
            await gate.wait()
        if self.error is not None:
            raise self.error
        if digest not in self.data:
            raise BlobNotFound(digest)
        return self.data[digest]


class FakeEngine:
    """An Engine that answers at once, one job per batch. `error` is raised instead of the next answers;
    while `gate` is clear, answers wait."""

    def __init__(self, *, slots: int = 4, max_pinned: int = 2) -> None:
        self.device = FakeDevice(slots=slots)
        self.max_pinned = max_pinned
        self.error: Exception | None = None
        self.broken: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.jobs: list[Job] = []
        self.forgotten: list[str] = []
        self.pinned: set[str] = set()
        self.resident: dict[str, float] = {}
        self.draining = False

    @property
    def backbone(self) -> BackboneInfo:
        return self.device.info

    async def predict(self, job: Job) -> Outcome:
        self._refuse()
        self.jobs.append(job)
        await self.gate.wait()
        self.resident[job.version.digest] = 1.0e9
        logits = fake_logits(job.version.digest, job.version.manifest.num_classes, job.image)
        return Outcome(logits=logits, queue_seconds=0.001, compute_seconds=0.01, batch_size=1, batch_tasks=1)

    async def validate(self, data: bytes, *, new: bool = True) -> Manifest:
        return self.device.validate(data, new=new)

    async def prefetch(self, version: Version) -> Tier:
        self._refuse()
        tier = self.state(version.digest).tier
        self.resident[version.digest] = 1.0e9
        return tier

    async def pin(self, version: Version) -> None:
        if version.digest not in self.pinned and len(self.pinned) >= self.max_pinned:
            raise PinLimit(self.max_pinned)
        await self.prefetch(version)
        self.pinned.add(version.digest)

    async def unpin(self, version: Version) -> None:
        self.pinned.discard(version.digest)

    def state(self, digest: str) -> AdapterState:
        used = self.resident.get(digest)
        tier = Tier.STORED if used is None else Tier.DEVICE
        return AdapterState(tier=tier, pinned=digest in self.pinned, last_used=used)

    def forget(self, digest: str) -> None:
        self.forgotten.append(digest)
        self.pinned.discard(digest)
        self.resident.pop(digest, None)

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken

    async def drain(self) -> None:
        self.draining = True
        await self.gate.wait()

    def _refuse(self) -> None:
        if self.draining:
            raise Draining
        if self.error is not None:
            raise self.error


class FakeClock:
    """Time that moves only when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class InlineExecutor(Executor):
    """Runs each call at once in the caller's thread, so that an event loop's order is reproducible."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (an executor carries any error)
            future.set_exception(error)
        return future


@contextmanager
def stopped(device: FakeDevice) -> Iterator[None]:
    """Keep the device from finishing a run inside the block."""
    with device.running:
        yield
