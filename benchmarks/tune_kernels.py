"""Measures tiles of `linear_affine` and cuBLAS on this host's GPU, and writes the best into its table.

    python -m benchmarks.tune_kernels [--batch 64] [--dtype bfloat16]

Rows of other architectures, dtypes and widths stay as they are. The widths are those of ViT-S and ViT-B. Each
contender is checked against the reference before it is timed, and runs what the forward runs: γ' and β', and
GELU or a residual where the layer has one.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.errors import OutOfResources

from backbone.kernels.affine import affine
from backbone.kernels.linear_affine import device_facts
from backbone.kernels.linear_affine.reference import linear_affine_reference
from backbone.kernels.linear_affine.tuning import CANDIDATES, TABLE, name_of
from benchmarks.common import Row, conditions
from benchmarks.kernel_cases import RELATIVE_ERROR, Maker
from benchmarks.kernels import microseconds

TOKENS = 197
LAYERS = {"qkv": (3, 1, "none"), "proj": (1, 1, "none"), "fc1": (4, 1, "gelu"), "fc2": (1, 4, "none")}
WIDTHS = (384, 768)


def contenders(
    inputs: tuple[Tensor, ...], residual: Tensor | None, act: str
) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Return each contender's place among the tiles, and its run; cuBLAS has the default tile's place."""
    from backbone.kernels.linear_affine.triton_impl import linear_affine_triton

    x, weight, scale, shift, slots = inputs
    arch, processors = device_facts(x.device)
    runs: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "cublas": (1, lambda: affine(F.linear(x, weight), scale, shift, slots, act=act, residual=residual))
    }
    for place, tile in enumerate(CANDIDATES):
        if tile.tma and arch < "sm_90":
            continue
        run = partial(linear_affine_triton, *inputs, residual, act=act, tile=tile, programs=processors)
        runs[str(place)] = (place, run)
    return runs


def tune(maker: Maker, n_out: int, n_in: int, act: str) -> Row:
    slots = maker.mixes["distinct"]
    x = maker.randn(maker.batch, TOKENS, n_in)
    weight = (maker.randn(n_out, n_in, dtype=torch.float32) / n_in**0.5).to(maker.dtype)
    residual = None if n_out > n_in or act != "none" else maker.randn(maker.batch, TOKENS, n_out)
    inputs = (x, weight, *maker.bank(n_out), slots)
    wide = (x.float(), weight.float(), *inputs[2:], None if residual is None else residual.float())
    expected = linear_affine_reference(*wide, act=act)
    times: dict[str, float] = {}
    runs = contenders(inputs, residual, act)
    for name, (_, run) in runs.items():
        try:
            out = run()
        except OutOfResources:
            continue  # more shared memory than this device has
        error = float((out.float() - expected).norm() / expected.norm())
        if not error <= RELATIVE_ERROR[maker.dtype]:
            raise ArithmeticError(f"{name} of [{n_out}, {n_in}]: relative error {error:.2e}")
        times[name] = microseconds(run)[1]
    best = min(times, key=times.__getitem__)
    print(f"[{n_out}, {n_in}] {act}: {best} {times[best]:.1f} us, cublas {times['cublas']:.1f} us")
    return {
        "arch": device_facts(x.device)[0],
        "dtype": name_of(maker.dtype),
        "n_out": n_out,
        "n_in": n_in,
        "use": "cublas" if best == "cublas" else "triton",
        "tile": asdict(CANDIDATES[runs[best][0]]),
        "rows": maker.batch * TOKENS,
        "us": times[best],
        "cublas_us": times["cublas"],
        "gpu": torch.cuda.get_device_name(),
        **conditions(),
    }


def merge(rows: list[Row]) -> None:
    """Put rows into the table in place of those with their key."""
    key = ("arch", "dtype", "n_out", "n_in")
    table = {tuple(row[name] for name in key): row for row in json.loads(TABLE.read_text())["rows"] + rows}
    TABLE.write_text(json.dumps({"rows": [table[k] for k in sorted(table)]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this host has no CUDA device")
    with torch.inference_mode():
        maker = Maker(torch.device("cuda"), getattr(torch, arguments.dtype), arguments.batch, TOKENS, 0)
        shapes = [(out * w, n * w, act) for w in WIDTHS for out, n, act in LAYERS.values()]
        merge([tune(maker, *shape) for shape in shapes])


if __name__ == "__main__":
    main()
