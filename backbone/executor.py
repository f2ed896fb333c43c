"""The reference executor: mixed-task batches in plain PyTorch, for every family and device."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbone.bank import Bank
from backbone.errors import DeviceUnavailable
from backbone.heads import Head, Heads
from backbone.load import Backbone
from backbone.mixed import MixedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """An adapter ready for the bank, in host memory: row [2, P] fp32 and its head."""

    row: Tensor
    head: Head

    @property
    def nbytes(self) -> int:
        return int(self.row.nbytes) + self.head.nbytes


class TorchExecutor:
    """Runs batches of any mix of tasks over one frozen backbone.

    Safe from several threads, one forward at a time; `load` must not write a slot that a running `run` uses.
    """

    name = "torch"

    def __init__(self, backbone: Backbone, *, device: str, dtype: str, slots: int) -> None:
        """Put a copy of the backbone and a bank of `slots` rows (and the identity) on the device."""
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.backbone = backbone
        self.bank = Bank(backbone.fold, slots, self.device, self.dtype)
        self._heads = Heads(backbone.head_width, self.device)
        layout = torch.channels_last if backbone.family.channels_last else torch.contiguous_format
        self._model = MixedModel(backbone.model, backbone.sites).to(
            self.device, self.dtype, memory_format=layout
        )
        self._layout = layout
        self._lock = threading.Lock()
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) * 255 for v in self._statistics())
        self._pixel_scale, self._pixel_shift = 1 / std, -mean / std

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.backbone.spec.mean, self.backbone.spec.std

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        """Copy an adapter into a slot."""
        self.bank.write(slot, adapter.row)
        self._heads.write(slot, adapter.head)

    @torch.inference_mode()
    def run(self, images: Sequence[NDArray[np.uint8]], slots: Sequence[int]) -> list[NDArray[np.float32]]:
        """Return logits [K of its adapter] of each image [3, H, W]. One forward, whatever the mix."""
        rows = self.bank.gather(torch.tensor(slots, device=self.device))
        features = self._features(torch.from_numpy(np.stack(images)), rows)
        return [logits.cpu().numpy() for logits in self._heads.apply(features, slots)]

    @torch.inference_mode()
    def run_beside_bank(self, image: NDArray[np.uint8], adapter: FoldedAdapter) -> NDArray[np.float32]:
        """Return the logits [K] of one image [3, H, W] with an adapter that is in no slot."""
        row = adapter.row.to(self.device, self.dtype)
        features = self._features(torch.from_numpy(image).unsqueeze(0), row.unsqueeze(0))
        heads = Heads(self.backbone.head_width, self.device)
        heads.write(0, adapter.head)
        logits: NDArray[np.float32] = heads.apply(features, [0])[0].cpu().numpy()
        return logits

    def _features(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return pooled features [B, D] of uint8 images [B, 3, H, W] with rows [B, 2, P]."""
        pixels = images.to(self.device, torch.float32, memory_format=self._layout)
        normalized = torch.addcmul(self._pixel_shift, pixels, self._pixel_scale).to(self.dtype)
        with self._lock:  # the sites read the rows of one batch at a time
            features: Tensor = self._model(normalized, rows)
        return features


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
