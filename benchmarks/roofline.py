"""The floor of a forward on this host: its operations and bytes over rates measured here, in the same run.

    floor = max(operations ÷ matmul rate, bytes ÷ copy rate)

Operations are those of products and attention (an n-bit multiply-add counts two). Bytes are what cannot be
saved by fusing: each weight read once a batch, each input and output of a convolution or Linear moved once.
A depthwise convolution cannot reach the rate of a large product, and small maps stay in the cache: the floor
is a yardstick, not a promise.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

SIDES = (1024, 2048)  # of the square products that the matmul rate is measured with
COPIED_BYTES = 256 * 2**20
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Rates:
    """What this host reaches: operations per second in one dtype, bytes read and written per second."""

    operations: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Work:
    """Of one image, and the bytes of all weights, in the dtype that is run."""

    operations: float
    activation_bytes: float
    weight_bytes: float

    def floor(self, batch: int, rates: Rates) -> float:
        """Return the seconds that a batch cannot beat."""
        moved = self.weight_bytes + batch * self.activation_bytes
        return max(batch * self.operations / rates.operations, moved / rates.bytes)


def measure_rates(device: str, dtype: torch.dtype) -> Rates:
    """Take the best of a few tries; about two seconds on two cores."""
    source = torch.zeros(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * COPIED_BYTES / _best(lambda: target.copy_(source), device)
    return Rates(max(_matmul_rate(side, device, dtype) for side in SIDES), copied)


def measure_work(model: nn.Module, size: int, dtype: torch.dtype) -> Work:
    """Count on the CPU in fp32, on one image [1, 3, size, size]."""
    width, moved = dtype.itemsize, 0

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += (inputs[0].numel() + output.numel()) * width

    products = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [module.register_forward_hook(note) for module in products]
    counter = FlopCounterMode(display=False)
    # attention is spelt out as products, so that no version's choice of kernel changes the count
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    weights = sum(parameter.numel() for parameter in model.parameters()) * width
    return Work(counter.get_total_flops(), moved, weights)


def _matmul_rate(side: int, device: str, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    return float(2 * side**3 / _best(lambda: a @ b, device))


def _best(run: Callable[[], object], device: str) -> float:
    def timed() -> float:
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    return min(timed() for _ in range(_REPEATS))
