"""What every benchmark shares: interleaved timing, the conditions of a run, rows as JSON."""

import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_CODE = ("--", ".", ":!benchmarks/results", ":!docs")  # what a number depends on

# what a CPU multiplies matrices with, by flag, the best first
UNITS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}

Row = dict[str, Any]
Name = TypeVar("Name")


def interleave(
    contenders: Mapping[Name, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[Name, list[float]]:
    """Time each contender once per round, so that a noisy host disturbs all alike; seconds.

    Every round has an order of its own: who comes after whom decides what the caches hold.
    """
    shuffled = random.Random(0)
    turns = list(contenders.items())
    for _ in range(warmup):
        for run in contenders.values():
            run()
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        shuffled.shuffle(turns)
        for name, run in turns:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def paired_ratio(of: list[float], to: list[float]) -> float:
    """Return the median over rounds of to/of: how much faster `of` is than `to`, noise in common removed."""
    return statistics.median(b / a for a, b in zip(of, to, strict=True))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def conditions() -> Row:
    """Return what a number means nothing without: commit, host and its load, versions, threads, date."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "--porcelain", *_CODE) else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "host": _cpu_name(),
        "cores": torch.get_num_threads(),
        "load": round(
            os.getloadavg()[0], 1
        ),  # processes that wanted a core in the last minute, ours included
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save(name: str, rows: list[Row], *, beside: list[Row] | None = None) -> Path:
    """Write rows, each with its conditions, to `benchmarks/results/<name>.json`, after rows that are kept."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    here = conditions()
    path.write_text(json.dumps([*(beside or []), *(row | here for row in rows)], indent=1) + "\n")
    return path


def load(name: str) -> list[Row]:
    """Return the rows of a benchmark; none where it has never run."""
    path = RESULTS / f"{name}.json"
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return rows


def dtype_and_host(row: Row) -> tuple[str, str]:
    """Return what parts rows that may be compared from those that may not."""
    return row["dtype"], row["host"]


def save_beside_others(name: str, rows: list[Row], *, part: Callable[[Row], object] = dtype_and_host) -> Path:
    """Write rows as `save` does; of those on disk, the ones of another part are kept."""
    new = {part(row | {"host": _cpu_name()}) for row in rows}
    return save(name, rows, beside=[row for row in load(name) if part(row) not in new])


def table(rows: list[Row], columns: list[str]) -> str:
    """Lay rows out as a Markdown table."""
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return cpu_name(found.get("model name", platform.machine()), found.get("flags", "").split())


def cpu_name(model: str, flags: Sequence[str]) -> str:
    """Name a CPU by its model and its best unit for products: a virtual machine's model may hide it."""
    unit = next((name for flag, name in UNITS.items() if flag in flags), None)
    return model if unit is None else f"{model} ({unit})"
