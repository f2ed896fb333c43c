"""Ten thousand tasks on one engine with a few hundred slots: throughput, waiting, correctness, memory.

    python -m benchmarks.scale [--only mixes|cycles] [--tasks 10000] [--slots 256] [--seconds 8]
                               [--cycles 100000]

Adapters lie in an embedded registry on disk, and are fetched, folded and loaded as in a server. Each answer
is compared with the one its own adapter must give. Mixes of what is asked, with a closed loop of clients:

    identical   one task                              resident    as many tasks as half the slots
    zipf        all tasks, skewed (exponent 1.1)      uniform     all tasks alike: most requests load
    sweep       all tasks in turn, the worst case for least-recently-used eviction
    hot+sweep   every eighth request is for one task: does it wait for the loads of the others?

Then adapters are loaded and evicted `--cycles` times, and the process's memory is watched.
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from adapters.file import Adapter, write_adapter
from adapters.folding import preprocessing_of
from adapters.manifest import BackboneRef, Manifest, Probe, SiteWidth
from backbone.executors.choose import choose_device, choose_dtype, open_executor
from backbone.load import Backbone, load_backbone
from backbone.tuned import TunedModel
from benchmarks.common import Row, load, percentile, save, table
from registry.embedded import EmbeddedRegistry
from registry.models import Version
from server.contracts import Job, Tier
from server.device import BackboneDevice
from server.engine import LocalEngine
from server.events import NoEvents
from server.limits import EngineLimits

MODEL, SIZE, CLASSES = "test_vit", 64, 10
IN_FLIGHT = 64
HOT = 8  # every eighth request
COLUMNS = ["mix", "tasks", "slots", "images_per_s", "vs_identical", "loads_per_s", "p50_ms", "p99_ms",
           "max_ms", "hot_p99_ms", "wrong"]  # fmt: skip


@dataclass
class Seen:
    """What one mix saw; latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    hot: list[float] = field(default_factory=list)
    wrong: int = 0


class World(NoEvents):
    """The registry, the engine and what each task must answer."""

    def __init__(self, registry: EmbeddedRegistry, device: BackboneDevice, slots: int) -> None:
        limits = EngineLimits(host_bytes=64 * 2**20)
        self.engine = LocalEngine(device, registry.fetch, limits=limits, events=self)
        self.registry, self.slots = registry, slots
        self.versions: list[Version] = []
        self.loads = 0
        self._image = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
        self._without_bias: np.ndarray | None = None

    def loaded(self, tier: Tier, seconds: float) -> None:
        self.loads += 1

    async def register(self, backbone: Backbone, tasks: int) -> None:
        """Give every task the same vectors and a head whose bias tells the task."""
        template = make_adapter(backbone)
        for task in tqdm(range(tasks), desc="registering", leave=False, disable=None):
            adapter = Adapter(
                template.manifest, template.scale, template.shift, template.head_weight, bias_of(task)
            )
            added = await self.registry.add_version(f"t{task:05d}", write_adapter(adapter), template.manifest)
            self.versions.append(added.version)

    async def ask(self, task: int) -> bool:
        """Return whether the answer is the task's own: logits differ between tasks by their biases alone."""
        outcome = await self.engine.predict(Job(self.versions[task], self._image))
        rest = outcome.logits - bias_of(task).numpy()
        if self._without_bias is None:
            self._without_bias = rest
        return bool(np.allclose(rest, self._without_bias, atol=1e-3))


def bias_of(task: int) -> torch.Tensor:
    """Return a bias [K] that no other task has: its number in base 10, a digit a class."""
    return torch.tensor([float(digit) for digit in f"{task:010d}"])


def make_adapter(backbone: Backbone) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    tuned = TunedModel(backbone.model, backbone.sites, generator=generator)
    weight = torch.randn(CLASSES, backbone.head_width, generator=generator)
    manifest = Manifest(
        method="ssf",
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint),
        sites=tuple(SiteWidth(name=name, width=width) for name, width in backbone.sites.widths.items()),
        head_width=backbone.head_width,
        labels=tuple(str(i) for i in range(CLASSES)),
        preprocessing=preprocessing_of(backbone),
        probe=Probe(dtype="float32", logits=(0.0,) * CLASSES, spread=1.0),  # loading does not look at it
    )
    return Adapter(manifest, tuned.scale(), tuned.shift(), weight, bias_of(0))


def mixes(tasks: int, slots: int) -> dict[str, tuple[int, Callable[[], Iterator[int]]]]:
    """Return, by mix, the number of tasks and what makes the stream of tasks asked."""

    def drawn(draw: Callable[[np.random.Generator], np.ndarray]) -> Callable[[], Iterator[int]]:
        def stream() -> Iterator[int]:
            rng = np.random.default_rng(0)
            while True:
                yield from draw(rng).tolist()

        return stream

    def sweep(hot: int) -> Callable[[], Iterator[int]]:
        def stream() -> Iterator[int]:
            position = 0
            while True:
                if hot and position % hot == 0:
                    yield 0
                yield 1 + position % (tasks - 1)
                position += 1

        return stream

    return {
        "identical": (1, drawn(lambda rng: np.zeros(1000, np.int64))),
        "resident": (slots // 2, drawn(lambda rng: rng.integers(0, slots // 2, 1000))),
        "zipf": (tasks, drawn(lambda rng: np.minimum(rng.zipf(1.1, 1000), tasks) - 1)),
        "uniform": (tasks, drawn(lambda rng: rng.integers(0, tasks, 1000))),
        "sweep": (tasks, sweep(0)),
        "hot+sweep": (tasks, sweep(HOT)),
    }


async def closed_loop(world: World, stream: Iterator[int], seconds: float) -> tuple[Seen, float]:
    """Keep `IN_FLIGHT` requests in flight; return what was seen, and the seconds it took."""
    seen, start = Seen(), time.perf_counter()

    async def client() -> None:
        while (asked := time.perf_counter()) < start + seconds:
            task = next(stream)
            seen.wrong += not await world.ask(task)
            took = time.perf_counter() - asked
            seen.latencies.append(took)
            if task == 0:
                seen.hot.append(took)

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return seen, time.perf_counter() - start


async def measure(world: World, seconds: float) -> list[Row]:
    rows: list[Row] = []
    tasks = len(world.versions)
    for mix, (count, stream) in mixes(tasks, world.slots).items():
        await closed_loop(world, stream(), min(2.0, seconds))  # what fits is loaded now
        before = world.loads
        seen, took = await closed_loop(world, stream(), seconds)
        rate = len(seen.latencies) / took
        rows.append(
            {
                "bench": "scale", "mix": mix, "tasks": count, "registered": tasks, "slots": world.slots,
                "images_per_s": rate, "vs_identical": rate / rows[0]["images_per_s"] if rows else 1.0,
                "loads_per_s": (world.loads - before) / took, "p50_ms": percentile(seen.latencies, 0.5) * 1e3,
                "p99_ms": percentile(seen.latencies, 0.99) * 1e3, "max_ms": max(seen.latencies) * 1e3,
                "hot_p99_ms": percentile(seen.hot, 0.99) * 1e3 if mix == "hot+sweep" else "",
                "wrong": seen.wrong, "in_flight": IN_FLIGHT, "seconds": seconds,
            }
        )  # fmt: skip
    return rows


async def cycle(world: World, cycles: int) -> Row:
    """Load and evict adapters; return how memory went."""
    memory: list[int] = []
    tasks, start = len(world.versions), time.perf_counter()
    first = world.loads
    position = 0
    with tqdm(total=cycles, desc="loading and evicting", leave=False, disable=None) as bar:
        while world.loads - first < cycles:
            wave = [(position + i) % tasks for i in range(1024)]
            position += len(wave)
            before = world.loads
            assert all(await asyncio.gather(*(world.ask(task) for task in wave)))
            bar.update(world.loads - before)
            memory.append(resident_bytes())
    settled = memory[len(memory) // 5 :]
    return {
        "bench": "scale", "mix": "cycles", "tasks": tasks, "slots": world.slots,
        "cycles": world.loads - first, "loads_per_s": cycles / (time.perf_counter() - start),
        "resident_mb_after_fifth": settled[0] / 1e6, "resident_mb_end": memory[-1] / 1e6,
        "resident_mb_median": statistics.median(settled) / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }  # fmt: skip


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def run(arguments: argparse.Namespace) -> list[Row]:
    device_name = choose_device("auto")
    dtype = choose_dtype("auto", device_name)
    backbone = load_backbone(MODEL, source="random", input_size=SIZE)
    threads = torch.get_num_threads()
    executor = open_executor(
        backbone, device=device_name, dtype=dtype, slots=arguments.slots, threads=threads
    )
    with tempfile.TemporaryDirectory() as directory:
        registry = EmbeddedRegistry(Path(directory))
        world = World(registry, BackboneDevice(executor, slots=arguments.slots), arguments.slots)
        started = time.perf_counter()
        await world.register(backbone, arguments.tasks)
        seconds = time.perf_counter() - started
        print(f"{arguments.tasks} tasks registered in {seconds:.0f} s, {len_of(world):.0f} kB an adapter")
        rows: list[Row] = []
        if arguments.only != "cycles":
            rows += await measure(world, arguments.seconds)
        if arguments.only != "mixes":
            rows.append(await cycle(world, arguments.cycles))
        await world.engine.drain()
        await registry.close()
    conditions = {"model": MODEL, "pixels": SIZE, "executor": executor.name, "dtype": dtype}
    return [row | conditions for row in rows]


def len_of(world: World) -> float:
    return statistics.median(version.size for version in world.versions) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=["mixes", "cycles"], help="keep the other rows as they are")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--cycles", type=int, default=100_000)
    arguments = parser.parse_args()
    rows = asyncio.run(run(arguments))
    mixed, cycled = split(rows)
    if mixed:
        print(table(mixed, COLUMNS))
    for row in cycled:
        print({key: value for key, value in row.items() if key not in {"bench", "mix"}})
    kept = {"mixes": 1, "cycles": 0}.get(arguments.only)
    others = [] if kept is None else split(load("scale"))[kept]
    print(f"rows: {save('scale', rows, beside=others)}")


def split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of the mixes, and of loading and evicting."""
    cycled = [row for row in rows if row["mix"] == "cycles"]
    return [row for row in rows if row not in cycled], cycled


if __name__ == "__main__":
    main()
