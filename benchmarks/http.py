"""HTTP images/s at saturation, its latencies, and serving efficiency on this host.

    python -m benchmarks.http [--pixels 112 224] [--tasks 16] [--seconds 10] [--rounds 5] [--dtype auto]

efficiency   HTTP images/s at saturation ÷ images/s of the same engine called in-process on decoded images

Starts a server of its own and sends it JPEG photographs for mixed tasks over keep-alive connections, in a
closed loop; client and server share the host. The engine in this process and the server take turns, so that
both see the same noise; the idle one waits. Rows in another dtype or of another host are kept.
"""

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adapters.file import Adapter, digest, write_adapter
from adapters.folding import preprocessing_of
from adapters.manifest import BackboneRef, Manifest, SiteWidth
from adapters.probe import compute_probe
from backbone.load import Backbone, load_backbone
from backbone.preprocess import preprocess
from backbone.tuned import TunedModel
from benchmarks.common import Row, percentile, save_beside_others, table
from benchmarks.load import Load, closed_loop, post
from registry.models import Version
from server.contracts import Job
from server.cores import with_threads
from server.device import BackboneDevice
from server.engine import LocalEngine
from server.replica import limits_of
from server.settings import Settings

MODEL = "vit_small_patch14_dinov2"
CLASSES = 10
HOST = "127.0.0.1"
COLUMNS = ["pixels", "tasks", "connections", "http_images_per_s", "engine_images_per_s", "efficiency",
           "p50_ms", "p95_ms", "p99_ms", "mean_batch", "mean_distinct_tasks"]  # fmt: skip


def make_adapters(backbone: Backbone, count: int) -> list[bytes]:
    """Return adapter files with random vectors and heads."""
    generator, files = torch.Generator().manual_seed(0), []
    for _ in range(count):
        tuned = TunedModel(backbone.model, backbone.sites, generator=generator)
        weight = torch.randn(CLASSES, backbone.head_width, generator=generator)
        bias = torch.zeros(CLASSES)
        manifest = Manifest(
            method="ssf",
            backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint),
            sites=tuple(SiteWidth(name=name, width=width) for name, width in backbone.sites.widths.items()),
            head_width=backbone.head_width,
            labels=tuple(f"class {i}" for i in range(CLASSES)),
            preprocessing=preprocessing_of(backbone),
            probe=compute_probe(
                backbone, scale=tuned.scale(), shift=tuned.shift(), head_weight=weight, head_bias=bias
            ),
        )
        files.append(write_adapter(Adapter(manifest, tuned.scale(), tuned.shift(), weight, bias)))
    return files


def photograph() -> bytes:
    """Return a JPEG of 320 x 240 with structure at every scale, about 30 kB."""
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n * 3, n * 4, 3), dtype=np.uint8)).resize((320, 240))
        )
        for n in (2, 6, 20)
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.mean(layers, axis=0).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def serving(settings: dict[str, str], log: Path) -> Iterator[int]:
    """Run `ssfserve serve` until the block ends; give its port once it is ready."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SSFSERVE_")}
    environment |= {f"SSFSERVE_{k}": v for k, v in settings.items()} | {"SSFSERVE_PORT": str(port)}
    command = [str(Path(sys.executable).with_name("ssfserve")), "serve"]
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_until_ready(server, port, log)
            yield port
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.25)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def upload(port: int, task: str, data: bytes) -> None:
    request = urllib.request.Request(
        f"http://{HOST}:{port}/v1/tasks/{task}/versions",
        data=data,
        headers={"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        json.load(answer)


async def engine_rate(engine: LocalEngine, jobs: list[Job], *, in_flight: int, seconds: float) -> float:
    """Return images/s of an engine that always has `in_flight` jobs."""
    done, start = 0, time.perf_counter()
    until = start + seconds

    async def client(index: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await engine.predict(jobs[index % len(jobs)])
            done += 1
            index += 1

    await asyncio.gather(*(client(i) for i in range(in_flight)))
    return done / (time.perf_counter() - start)


def batch_counters(port: int) -> tuple[float, float, float]:
    """Return the number of batches, images and distinct tasks summed over batches so far."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    names = ("ssfserve_batch_size_count", "ssfserve_batch_size_sum", "ssfserve_batch_distinct_tasks_sum")
    totals = [
        sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[:1] == [n]) for n in names
    ]
    return totals[0], totals[1], totals[2]


async def measure(pixels: int, arguments: argparse.Namespace) -> Row:
    with tempfile.TemporaryDirectory() as directory:
        common = {
            "BACKBONE": MODEL, "INPUT_SIZE": str(pixels), "DTYPE": arguments.dtype, "DATA_DIR": directory,
            "LOG_LEVEL": "warning",
        }  # fmt: skip
        settings = with_threads(Settings.model_validate({k.lower(): v for k, v in common.items()}))
        device = BackboneDevice.open(settings)
        backbone = load_backbone(MODEL, input_size=pixels)
        files = make_adapters(backbone, arguments.tasks)
        engine = LocalEngine(
            device, fetch=files_by_digest({digest(f): f for f in files}), limits=limits_of(settings)
        )
        jpeg = photograph()
        image = preprocess(Image.open(io.BytesIO(jpeg)), backbone.spec)
        jobs = [Job(version_of(f"task{i}", data, device), image) for i, data in enumerate(files)]
        with serving(common, Path(directory) / "server.log") as port:
            for i, data in enumerate(files):
                upload(port, f"task{i}", data)
            requests = [
                post(HOST, port, f"/v1/tasks/task{i}/predict", jpeg, "image/jpeg")
                for i in range(arguments.tasks)
            ]
            return await rounds(engine, jobs, port, requests, arguments) | {
                "pixels": pixels,
                "jpeg_bytes": len(jpeg),
            }


async def rounds(
    engine: LocalEngine, jobs: list[Job], port: int, requests: list[bytes], arguments: argparse.Namespace
) -> Row:
    inside: list[float] = []
    outside: list[Load] = []
    connections, seconds = arguments.connections, arguments.seconds
    await engine_rate(engine, jobs, in_flight=connections, seconds=3)
    await closed_loop(HOST, port, requests, connections=connections, seconds=3)
    before = batch_counters(port)
    for _ in range(arguments.rounds):
        inside.append(await engine_rate(engine, jobs, in_flight=connections, seconds=seconds))
        outside.append(await closed_loop(HOST, port, requests, connections=connections, seconds=seconds))
    batches, images, tasks = (b - a for a, b in zip(before, batch_counters(port), strict=True))
    await engine.drain()
    latencies = [latency for load in outside for latency in load.latencies]
    return {
        "bench": "http",
        "model": MODEL,
        "dtype": engine.backbone.dtype,
        "tasks": len(jobs),
        "connections": connections,
        "http_images_per_s": statistics.median(load.per_second for load in outside),
        "engine_images_per_s": statistics.median(inside),
        "efficiency": statistics.median(o.per_second / i for o, i in zip(outside, inside, strict=True)),
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p95_ms": percentile(latencies, 0.95) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "mean_batch": images / batches,
        "mean_distinct_tasks": tasks / batches,
        "not_200": sum(n for load in outside for status, n in load.statuses.items() if status != 200),
        "rounds": arguments.rounds,
        "seconds_each": seconds,
    }


def files_by_digest(files: dict[str, bytes]) -> Callable[[str], Awaitable[bytes]]:
    async def fetch(wanted: str) -> bytes:
        return files[wanted]

    return fetch


def version_of(task: str, data: bytes, device: BackboneDevice) -> Version:
    manifest = device.validate(data)
    return Version(task=task, version=1, digest=digest(data), size=len(data), created=0.0, manifest=manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--dtype", default="auto", help="as SSFSERVE_DTYPE")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = [asyncio.run(measure(pixels, arguments)) for pixels in arguments.pixels]
    print(table(rows, COLUMNS))
    print(f"rows: {save_beside_others('http', rows)}")


if __name__ == "__main__":
    main()
