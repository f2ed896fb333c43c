"""Which implementation and tile a product gets: a committed table of measured rows, else a default by dtype.

The key has no batch in it: a tile that changed with the batch size could change the bits of a sample with it.
`python -m benchmarks.tune_kernels` measures on a GPU and writes the table; nothing is tuned while serving.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

TABLE = Path(__file__).with_name("tuning.json")


@dataclass(frozen=True, slots=True)
class Tile:
    """How the product is cut up. `flatten` lets one tile's loads overlap the end of the tile before."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    tma: bool = False
    flatten: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """`cublas` is the vendor's product and `affine` behind it: its bits may change with the batch size."""

    use: Literal["triton", "cublas"]
    tile: Tile


# what `benchmarks.tune_kernels` measures, for fp16 and bf16
CANDIDATES = [
    Tile(*blocks, num_warps=warps, num_stages=stages, tma=tma, flatten=flatten)
    for blocks, warps, stages in (
        ((128, 256, 64), 8, 3),
        ((128, 128, 64), 8, 3),
        ((128, 128, 64), 8, 4),
        ((128, 64, 64), 4, 4),
        ((64, 128, 64), 4, 4),
    )
    for tma, flatten in ((False, False), (True, False), (True, True))
]

LOW = 64  # rows of a tile; the least that Hopper's tensor cores take

Key = tuple[str, str, int, int]

DEFAULTS = {
    torch.float32: Tile(64, 64, 16, num_warps=4, num_stages=3),
    torch.float16: Tile(128, 128, 64, num_warps=8, num_stages=3),
    torch.bfloat16: Tile(128, 128, 64, num_warps=8, num_stages=3),
    torch.float8_e4m3fn: Tile(128, 128, 128, num_warps=8, num_stages=3),
}


@lru_cache
def choose(arch: str, dtype: torch.dtype, n_out: int, n_in: int, per_image: int) -> Choice:
    """Return what the table says of weights [n_out, n_in] on `arch` (`sm_90`), else the untuned default.

    Images shorter than a tile get the low one: a tile that meets several images gathers its bank values row
    by row, and a high one has no registers for that.
    """
    row = _table().get((arch, name_of(dtype), n_out, n_in)) or Choice("triton", DEFAULTS[dtype])
    if per_image >= row.tile.block_m or row.tile.block_m <= LOW:
        return row
    return replace(row, tile=replace(row.tile, block_m=LOW, block_n=min(row.tile.block_n, 128)))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@lru_cache
def _table() -> dict[Key, Choice]:
    return read_table(TABLE)


def read_table(path: Path) -> dict[Key, Choice]:
    """Read the rows of a table; a wrong one raises ValueError, KeyError or TypeError."""
    table: dict[Key, Choice] = {}
    for row in json.loads(path.read_text())["rows"]:
        key = (row["arch"], row["dtype"], row["n_out"], row["n_in"])
        if key in table or row["use"] not in {"triton", "cublas"}:
            raise ValueError(f"{path.name}: {key} is there twice, or names no implementation")
        table[key] = Choice(row["use"], Tile(**row["tile"]))
    return table
