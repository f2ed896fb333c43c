"""Which device, dtype and executor to use, where the settings leave it open."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from backbone.errors import DeviceUnavailable
from backbone.executors.base import Executor
from backbone.executors.device_memory import CudaLimits
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone

if TYPE_CHECKING:  # OpenVINO may not be installed
    from backbone.executors.openvino_ahead import Ahead

logger = logging.getLogger(__name__)

OPENVINO_DTYPES = ("float32", "bfloat16", "int8")
CUDA_DTYPES = ("float32", "float16", "bfloat16", "float8")
FP8_CAPABILITY = (8, 9)  # Ada; the tensor cores before it have no fp8


def open_executor(
    backbone: Backbone,
    *,
    name: str = "auto",
    device: str,
    dtype: str,
    slots: int,
    threads: int,
    cache: Path | None = None,
    limits: CudaLimits | None = None,
    ahead: "Ahead | None" = None,
) -> Executor:
    """Make the executor that is asked for; with `auto`, the fastest that runs this backbone here.

    A model that OpenVINO does not convert runs on torch; on a GPU, what fails at start is an error, for the
    next forward might have failed as well.

    Args:
        backbone: What it runs.
        name: auto, torch, openvino or cuda.
        device: As `choose_device` resolved it.
        dtype: As `choose_dtype` resolved it.
        slots: Adapters in its bank.
        threads: CPU threads of one batch.
        cache: Directory in which converted graphs are kept.
        limits: Of the cuda executor.
        ahead: What is being compiled for OpenVINO already.

    Raises:
        DeviceUnavailable: If the executor asked for does not run here.
        DeviceMemoryShort: If it does not fit on the GPU.
    """
    obstacle = _cuda_obstacle(device, dtype)
    if name == "cuda" and obstacle:
        raise DeviceUnavailable("cuda", obstacle)
    if name in {"auto", "cuda"} and not obstacle:
        return _open_cuda(backbone, device=device, dtype=dtype, slots=slots, limits=limits or CudaLimits())
    if dtype == "float8":
        raise DeviceUnavailable("float8", obstacle or "only the cuda executor computes in it")
    if name == "auto" and device.startswith("cuda") and dtype != "int8":
        logger.warning("the cuda executor is out of the question: %s; torch runs the GPU", obstacle)
    obstacle = _openvino_obstacle(device, dtype)
    if name == "openvino" and obstacle:
        raise DeviceUnavailable("openvino", obstacle)
    if dtype == "int8" and (obstacle or name == "torch"):
        raise DeviceUnavailable("int8", obstacle or "only the openvino executor computes in it")
    if name in {"auto", "openvino"} and not obstacle:
        try:
            return _open_openvino(
                backbone, dtype=dtype, slots=slots, threads=threads, cache=cache, ahead=ahead
            )
        except DeviceUnavailable:
            raise
        except Exception as error:  # what a graph compiler raises for a model it does not take has no base
            if name == "openvino" or dtype == "int8":
                raise DeviceUnavailable("openvino", f"{backbone.name} does not convert: {error}") from error
            logger.warning("%s does not run on openvino, so it runs on torch: %s", backbone.name, error)
    return TorchExecutor(backbone, device=device, dtype=dtype, slots=slots)


def choose_device(asked: str) -> str:
    """Resolve `auto`.

    Raises:
        DeviceUnavailable: If CUDA is asked for and not to be had.
    """
    has_cuda = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if has_cuda else "cpu"
    if asked.startswith("cuda") and not has_cuda:
        raise DeviceUnavailable(asked, "PyTorch sees no CUDA device")
    return asked


def choose_dtype(asked: str, device: str) -> str:
    """Resolve `auto`: bfloat16 where the device computes in it natively, else float32."""
    if asked != "auto":
        return asked
    native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else cpu_has_bfloat16()
    return "bfloat16" if native else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AVX-512 bf16 or AMX) rather than by way of float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def cpu_has_vnni() -> bool:
    """Whether the CPU multiplies int8 itself."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def _cuda_obstacle(device: str, dtype: str) -> str:
    """Return why the cuda executor is out of the question, or nothing."""
    if not device.startswith("cuda"):
        return f"it runs on a CUDA device, not on {device}"
    if dtype not in CUDA_DTYPES:
        return f"it computes in {' or '.join(CUDA_DTYPES)}, not in {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "the package `triton` is not installed"
    if dtype == "float8" and (found := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        least, has = (".".join(map(str, version)) for version in (FP8_CAPABILITY, found))
        return f"float8 takes compute capability {least}, and this device has {has}"
    return ""


def _open_cuda(backbone: Backbone, *, device: str, dtype: str, slots: int, limits: CudaLimits) -> Executor:
    from backbone.executors.cuda_executor import CudaExecutor
    from backbone.executors.gpu import CudaGpu

    return CudaExecutor(backbone, CudaGpu(device), dtype=dtype, slots=slots, limits=limits)


def _openvino_obstacle(device: str, dtype: str) -> str:
    """Return why OpenVINO is out of the question, or nothing."""
    if device != "cpu":
        return f"it runs on a CPU, not on {device}"
    if dtype not in OPENVINO_DTYPES:
        return f"it computes in {' or '.join(OPENVINO_DTYPES)}, not in {dtype}"
    if importlib.util.find_spec("openvino") is None:
        return "the package `openvino` is not installed"
    return ""


def _open_openvino(
    backbone: Backbone,
    *,
    dtype: str,
    slots: int,
    threads: int,
    cache: Path | None,
    ahead: "Ahead | None",
) -> Executor:
    from backbone.executors.openvino_executor import OpenVinoExecutor

    if dtype == "int8" and cpu_has_bfloat16():
        logger.warning(
            "int8 is meant for CPUs without bfloat16; on this one, measure what it gains over bfloat16"
        )
    elif dtype == "int8" and not cpu_has_vnni():
        logger.warning("this CPU has no AVX-512 VNNI, without which int8 was never measured")
    return OpenVinoExecutor(backbone, dtype=dtype, slots=slots, threads=threads, cache=cache, ahead=ahead)
