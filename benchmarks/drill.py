"""What a fleet does when its parts are killed and paused under load, every answer checked.

    python -m benchmarks.drill [--moves 100] [--fleets 1x2 2x1]

Servers with replicas of a small model on one real Redis (appendonly, appendfsync always) answer predictions
on many tasks, uploads, and moves of an alias forth and back, each waiting for all replicas. Meanwhile a
replica is killed, Redis is killed and started again, paused and resumed, and the replicas are restarted one
after another. Every answer must have the logits of the version it names; none may come from a version that
a confirmed move had ended before it was asked for; each upload that was acknowledged must be there at the
end. What fails is counted by kind, and must be what the documentation says. The exit code is 1 if not.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from backbone.load import load_backbone
from benchmarks.common import Row, save, table
from benchmarks.drill_clients import ROLLED, Clients
from benchmarks.drill_records import Phase, Records
from server.run_dir import RESTART
from tests.e2e.adapters import Known, make_known, make_png
from tests.e2e.servers import SMALL, START_SECONDS, Server, eventually, started
from tests.redis_servers import BINARY, MISSING, RedisServer, redis_server

TASKS = 8
ADAPTERS = 6
PREDICTORS = 4
REDIS_SECONDS = 5.0  # for Redis to answer the servers, the default: a starved host may well need a second
AWAY_SECONDS = 3.0
PAUSED_SECONDS = 12.0  # longer than the lease of a replica
COLUMNS = ["phase", "seconds", "predictions", "predictions_failed", "moves", "moves_failed", "uploads",
           "uploads_failed", "recovery_s", "move_p50_ms", "move_max_ms", "errors"]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """`moves` are shared out between the phases."""

    moves: int = 100
    servers: int = 1
    replicas: int = 2
    away_seconds: float = AWAY_SECONDS
    paused_seconds: float = PAUSED_SECONDS
    restart: bool = True
    lease_ms: int = 10_000


@dataclass
class Drill:
    options: Options
    servers: Sequence[Server]
    redis: RedisServer
    clients: Clients
    progress: Callable[[str], None] = lambda _: None

    @property
    def records(self) -> Records:
        return self.clients.records

    async def run(self) -> None:
        """Go through the phases, with clients at work from the first to the last."""
        phases = [
            ("steady", self._nothing),
            ("replica killed", self._kill_replica),
            ("redis killed", self._kill_redis),
            ("redis paused", self._pause_redis),
            *([("rolling restart", self._restart)] if self.options.restart else []),
            ("steady again", self._nothing),
        ]
        share, rest = divmod(self.options.moves, len(phases))
        for number, (name, fault) in enumerate(phases):
            self.progress(name)
            phase = Phase(name, time.perf_counter())
            self.records.phases.append(phase)
            moves = share + (number < rest)
            async with asyncio.TaskGroup() as group:
                group.create_task(fault(phase))
                group.create_task(self._move(moves))
            phase.end = time.perf_counter()

    async def _move(self, times: int) -> None:
        for _ in range(times):
            await self.clients.move()

    async def _nothing(self, phase: Phase) -> None:
        phase.over = phase.began

    async def _kill_replica(self, phase: Phase) -> None:
        server = self.servers[0]
        before = self._replicas(server)
        os.kill(before[0], signal.SIGKILL)
        phase.over = time.perf_counter()
        gone = {before[0]}

        def is_replaced() -> bool:
            return len(set(self._replicas(server)) - gone) == self.options.replicas

        await asyncio.to_thread(eventually, is_replaced, START_SECONDS, "the new replica")
        await self._until_ready(server)
        phase.extra["replaced_s"] = time.perf_counter() - phase.over

    async def _until_ready(self, server: Server) -> None:
        """Wait until as many replicas answer as there should be."""
        found: set[str] = set()
        while len(found) < self.options.replicas:
            found |= await self.clients.who_answers(self.servers.index(server))
            await asyncio.sleep(0.1)

    async def _kill_redis(self, phase: Phase) -> None:
        self.redis.kill()
        await asyncio.sleep(self.options.away_seconds)
        await asyncio.to_thread(self.redis.start)
        phase.over = time.perf_counter()

    async def _pause_redis(self, phase: Phase) -> None:
        with self.redis.paused():
            await asyncio.sleep(self.options.paused_seconds)
        phase.over = time.perf_counter()

    async def _restart(self, phase: Phase) -> None:
        phase.over = phase.began
        for server in self.servers:
            server.process.send_signal(RESTART)
        for server in self.servers:
            await asyncio.to_thread(eventually, partial(was_restarted, server), START_SECONDS, "the restart")

    def _replicas(self, server: Server) -> list[int]:
        return server.pids("ray::ServeReplica")


def was_restarted(server: Server) -> bool:
    return "all replicas were replaced" in server.output


@contextmanager
def fleet(folder: Path, redis: RedisServer, options: Options) -> Iterator[list[Server]]:
    settings = {
        "registry": f"{redis.url}?timeout={REDIS_SECONDS}",
        "replicas": options.replicas,
        "lease_ms": options.lease_ms,
        "threads": 1,
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(started(folder / f"server{n}", **settings)) for n in range(options.servers)
        ]


@asynccontextmanager
async def loaded(clients: Clients, template: Known) -> AsyncIterator[None]:
    """Keep the clients at work while the block runs."""
    async with asyncio.TaskGroup() as group:
        for number in range(PREDICTORS):
            group.create_task(clients.keep_predicting(2 * number))
        group.create_task(clients.keep_uploading(template))
        try:
            yield
        finally:
            clients.over.set()


def make_adapters() -> list[Known]:
    torch.set_num_threads(1)
    backbone = load_backbone(
        SMALL["SSFSERVE_BACKBONE"],
        source=SMALL["SSFSERVE_BACKBONE_SOURCE"],
        input_size=int(SMALL["SSFSERVE_INPUT_SIZE"]),
    )
    return [make_known(backbone, seed) for seed in range(ADAPTERS)]


async def drill(options: Options, folder: Path, progress: Callable[[str], None]) -> Records:
    """Run all of it; return what was seen."""
    adapters, records = await asyncio.to_thread(make_adapters), Records()
    tasks = [ROLLED, *(f"task{n}" for n in range(TASKS - 1))]
    known = {(task, v + 1): adapters[(n + v) % ADAPTERS] for n, task in enumerate(tasks) for v in range(2)}
    progress("starting")
    with redis_server() as redis, fleet(folder, redis, options) as servers:
        clients = Clients([s.url for s in servers], known, [make_png(seed) for seed in range(3)], records)
        for (task, _), adapter in known.items():
            await clients.seed(task, adapter)
        for image in clients.images:
            for adapter in adapters:
                adapter.logits(image)
        run = Drill(options, servers, redis, clients, progress)
        for server in servers:
            await run._until_ready(server)
        async with loaded(clients, adapters[0]):
            await run.run()
        await clients.check_uploads()
        await clients.close()
    return records


def rows_of(records: Records, options: Options) -> list[Row]:
    totals: Row = {
        "phase": "all",
        "wrong": len(records.wrong),
        "stale": len(list(records.stale(ROLLED))),
        "lost_uploads": len(records.lost),
        "undocumented": len(records.undocumented()),
        "moves": sum(c.actor == "move" and c.failure is None for c in records.calls),
        "predictions": sum(c.actor == "prediction" for c in records.calls),
        "uploads": sum(c.actor == "upload" and c.failure is None for c in records.calls),
    }
    shape = {"bench": "drill", "servers": options.servers, "replicas": options.replicas}
    return [shape | row for row in [*map(records.row, records.phases), totals]]


def complaints(records: Records) -> list[str]:
    """Return everything that must not have happened."""
    found: dict[str, Sequence[Any]] = {
        "wrong": records.wrong,
        "stale": list(records.stale(ROLLED)),
        "lost": records.lost,
        "undocumented": records.undocumented(),
    }
    return [f"{kind}: {item}" for kind, items in found.items() for item in items]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--fleets", nargs="+", default=["1x2", "2x1"], help="servers x replicas of each")
    given = parser.parse_args()
    if BINARY is None:
        print(MISSING)
        return 1
    rows: list[Row] = []
    found: list[str] = []
    for shape in given.fleets:
        servers, _, replicas = shape.partition("x")
        options = Options(moves=given.moves, servers=int(servers), replicas=int(replicas))
        with tempfile.TemporaryDirectory() as folder, tqdm(leave=False, disable=None) as bar:
            records = asyncio.run(drill(options, Path(folder), bar.set_description))
        mine = rows_of(records, options)
        print(table(mine[:-1], COLUMNS))
        print({key: value for key, value in mine[-1].items() if key not in {"bench", "phase"}})
        rows += mine
        found += complaints(records)
    print(f"rows: {save('drill', rows)}")
    for complaint in found:
        print(complaint)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
