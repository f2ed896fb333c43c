"""Every kernel compiles for sm_80, sm_90 and sm_100, as its launcher configures it, without a register spill.

Needs no GPU: a driver that knows only its target stands in for CUDA's, and launches stop after compiling.
"""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # a block may use; CUDA programming guide
BATCH = 2
SLOTS = torch.tensor([1, 0], dtype=torch.int32)


class CompileOnly:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> str:
        return f"sm_{self._capability}"

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


def bank(channels: int) -> tuple[Tensor, Tensor]:
    rows = torch.zeros(3, 2, 2 * channels)[:, :, channels:]
    return rows[:, 0], rows[:, 1]


def launch_affine(dtype: torch.dtype) -> None:
    from backbone.kernels.affine.triton_impl import affine_triton

    x = torch.zeros(BATCH, 197, 768, dtype=dtype)
    affine_triton(x, *bank(768), SLOTS, x, act="gelu")


def launch_norm(dtype: torch.dtype, channels: int) -> None:
    from backbone.kernels.norm_affine.triton_impl import norm_affine_triton

    x = torch.zeros(BATCH, 197, channels, dtype=dtype)
    norm_affine_triton(x, x, *bank(channels), SLOTS, kind="layer", eps=1e-6)


def launch_normalize(channels_last: bool) -> None:
    from backbone.kernels.normalize.triton_impl import normalize_triton

    images = torch.zeros(BATCH, 3, 224, 224, dtype=torch.uint8)
    normalize_triton(images, torch.ones(3), torch.ones(3), dtype=torch.bfloat16, channels_last=channels_last)


def launch_heads(max_classes: int) -> None:
    from backbone.kernels.heads.pool import HeadPool
    from backbone.kernels.heads.triton_impl import heads_triton

    pool = HeadPool(768, slots=3, max_classes=max_classes, pages=4)
    features = torch.zeros(BATCH, 768, dtype=torch.bfloat16)
    heads_triton(features, pool.weight, pool.bias, pool.table, pool.classes, SLOTS, top_k=5)


def launch_linear(dtype: torch.dtype, per_image: int, *, tma: bool = False) -> None:
    from backbone.kernels.linear_affine.triton_impl import linear_affine_triton
    from backbone.kernels.linear_affine.tuning import choose

    x, weight = torch.zeros(BATCH, per_image, 768, dtype=dtype), torch.zeros(3072, 768, dtype=dtype)
    tile = replace(choose("any", dtype, *weight.shape, per_image).tile, tma=tma)
    residual = torch.zeros(BATCH, per_image, 3072, dtype=dtype)
    linear_affine_triton(x, weight, *bank(3072), SLOTS, residual, act="gelu", tile=tile, programs=132)


def launch_quantize(channels: int) -> None:
    from backbone.kernels.quantize.triton_impl import quantize_triton

    quantize_triton(torch.zeros(BATCH, 197, channels, dtype=torch.bfloat16))


def launch_scaled(*, tma: bool = False) -> None:
    from backbone.kernels.linear_affine.triton_impl import linear_affine_triton
    from backbone.kernels.linear_affine.tuning import choose

    x, weight = (torch.zeros(*s, dtype=torch.float8_e4m3fn) for s in ((BATCH, 197, 768), (3072, 768)))
    tile = replace(choose("any", x.dtype, *weight.shape, 197).tile, tma=tma)
    residual = torch.zeros(BATCH, 197, 3072, dtype=torch.bfloat16)
    linear_affine_triton(
        x, weight, *bank(3072), SLOTS, residual,
        act="gelu", tile=tile, programs=132, row_scale=torch.ones(BATCH * 197), dtype=torch.bfloat16,
    )  # fmt: skip


LAUNCHES: dict[str, Callable[[], None]] = {
    "affine": lambda: launch_affine(torch.bfloat16),
    "norm_affine bf16": lambda: launch_norm(torch.bfloat16, 768),
    "norm_affine fp32 at its widest": lambda: launch_norm(torch.float32, 8192),
    "heads at their widest": lambda: launch_heads(8192),
    "linear_affine bf16": lambda: launch_linear(torch.bfloat16, 197),
    "linear_affine bf16, short images": lambda: launch_linear(torch.bfloat16, 49),
    "linear_affine fp32": lambda: launch_linear(torch.float32, 197),
    "normalize": lambda: launch_normalize(channels_last=False),
    "normalize to channels last": lambda: launch_normalize(channels_last=True),
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Return the list that every launch adds its compiled kernel to."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    return kernels


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_compiles_without_spills(
    launch: str, capability: int, compiled: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", CompileOnly(capability))
    LAUNCHES[launch]()
    assert compiled
    for kernel in compiled:
        usage = resource_usage(kernel.asm["cubin"], tmp_path)
        assert (usage["STACK"], usage["LOCAL"]) == (0, 0), usage
        assert kernel.metadata.shared <= SHARED_BYTES[capability]


@pytest.mark.parametrize(("capability", "product"), [(80, "mma.sync"), (90, "wgmma"), (100, "tcgen05.mma")])
def test_products_run_on_the_tensor_cores(
    capability: int, product: str, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", CompileOnly(capability))
    launch_linear(torch.bfloat16, 65, tma=capability >= 90)
    assembly = compiled[0].asm["ptx"]
    assert product in assembly
    assert ("cp.async.bulk.tensor" in assembly) == (capability >= 90)


@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize("channels", [768, 3072, 16384])
def test_quantising_compiles_without_spills(
    channels: int, capability: int, compiled: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", CompileOnly(capability))
    launch_quantize(channels)
    usage = resource_usage(compiled[0].asm["cubin"], tmp_path)
    assert (usage["STACK"], usage["LOCAL"]) == (0, 0), usage


@pytest.mark.parametrize(("capability", "product"), [(90, "wgmma"), (100, "tcgen05.mma")])
@pytest.mark.parametrize("tma", [False, True])
def test_fp8_products_run_on_the_tensor_cores(
    tma: bool,
    capability: int,
    product: str,
    compiled: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", CompileOnly(capability))
    launch_scaled(tma=tma)
    assembly = compiled[0].asm["ptx"]
    assert product in assembly
    assert "e4m3" in assembly or "f8f6f4" in assembly
    assert compiled[0].metadata.shared <= SHARED_BYTES[capability]
    usage = resource_usage(compiled[0].asm["cubin"], tmp_path)
    assert usage["LOCAL"] == 0
    assert usage["STACK"] <= (8 if tma else 0), (
        usage
    )  # TMA, which is for tuning to choose, spills 8 bytes on sm_90


def resource_usage(cubin: bytes, folder: Path) -> dict[str, int]:
    """Return what the assembler gave a kernel: REG, STACK (spills go there), LOCAL, …"""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: int(count) for name, count in re.findall(r"\b([A-Z]+):(\d+)", done.stdout)}
