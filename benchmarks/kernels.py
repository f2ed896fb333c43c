"""The kernels on this host's GPU, against what the device can move and multiply.

    python -m benchmarks.kernels [--batch 64] [--dtype bfloat16]

gb_per_s      bytes that must be read and written once ÷ median time
of_copy       gb_per_s ÷ that of a large device-to-device copy in the same run
tflops        operations ÷ median time
of_matmul     tflops ÷ that of a large square product of the same dtype in the same run
vs_plain      time of what the plain model runs in the op's place, in eager PyTorch ÷ time of the op

Every case is checked against the op's reference before it is timed. Caches are cleared between runs.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from backbone.kernels.linear_affine.tuning import name_of
from benchmarks.common import Row, save, table
from benchmarks.kernel_cases import Case, cases

COLUMNS = ["op", "shape", "dtype", "mix", "p50_us", "gb_per_s", "of_copy", "tflops", "of_matmul", "vs_plain"]
COPY_BYTES = 1 << 30
SQUARE = 8192


@dataclass(frozen=True)
class Ceilings:
    """What the device did in this run: bytes/s of a copy, operations/s of a product."""

    copy: float
    matmul: float


def microseconds(run: Callable[[], object]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile of the device time of a run."""
    from triton.testing import do_bench

    low, middle, high = do_bench(run, warmup=50, rep=200, quantiles=[0.2, 0.5, 0.8])
    return low * 1e3, middle * 1e3, high * 1e3


def measure_ceilings(dtype: torch.dtype) -> Ceilings:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * COPY_BYTES / microseconds(lambda: target.copy_(source))[1] * 1e6
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda").to(dtype) for _ in range(2))
    matmul = 2 * SQUARE**3 / microseconds(lambda: a @ b)[1] * 1e6
    return Ceilings(copy, matmul)


def measure(case: Case, ceilings: Ceilings) -> Row:
    case.check()
    low, middle, high = microseconds(case.run)
    row: Row = {
        "bench": "kernels",
        "op": case.op,
        "shape": case.shape,
        "dtype": case.dtype,
        "mix": case.mix,
        "p20_us": low,
        "p50_us": middle,
        "p80_us": high,
        "bytes": case.bytes,
        "operations": case.operations,
        "vs_plain": microseconds(case.plain)[1] / middle,
    }
    if case.operations:
        rate = case.operations / middle * 1e6
        return row | {"tflops": rate / 1e12, "of_matmul": rate / ceilings.matmul}
    rate = case.bytes / middle * 1e6
    return row | {"gb_per_s": rate / 1e9, "of_copy": rate / ceilings.copy}


def measure_all(batch: int, dtype: torch.dtype) -> Iterator[Row]:
    ceilings = measure_ceilings(dtype)
    conditions = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "copy_gb_per_s": ceilings.copy / 1e9,
        "matmul_tflops": ceilings.matmul / 1e12,
        "command": f"python -m benchmarks.kernels --batch {batch} --dtype {name_of(dtype)}",
    }
    for case in cases(torch.device("cuda"), dtype, batch):
        yield measure(case, ceilings) | conditions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("kernels: this host has no CUDA device; nothing was measured")
        return
    with torch.inference_mode():
        rows = list(measure_all(arguments.batch, getattr(torch, arguments.dtype)))
    print(table(rows, COLUMNS))
    print(f"rows: {save('kernels', rows)}")


if __name__ == "__main__":
    main()
