"""The reference executor: mixed-task batches in plain PyTorch, for every family and device."""

import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from backbone.bank import Bank
from backbone.executors.base import FoldedAdapter, Image, Logits
from backbone.heads import Heads
from backbone.load import Backbone
from backbone.mixed import MixedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchExecutor:
    """Runs batches of any mix of tasks over one frozen backbone.

    Safe from several threads, one forward at a time; `load` must not write a slot that a running `run` uses.
    """

    name = "torch"
    lanes = 1
    max_classes: int | None = None
    memory: Mapping[str, int] = MappingProxyType({})

    def __init__(self, backbone: Backbone, *, device: str, dtype: str, slots: int) -> None:
        """Put a copy of the backbone and a bank of `slots` rows (and the identity) on the device."""
        self.device, self.dtype, self.backbone = device, dtype, backbone
        self._dtype = DTYPES[dtype]
        self.bank = Bank(backbone.fold, slots, device, self._dtype)
        self._heads = Heads(backbone.head_width, device)
        layout = torch.channels_last if backbone.family.channels_last else torch.contiguous_format
        self._model = MixedModel(backbone.model, backbone.sites).to(
            self.device, self._dtype, memory_format=layout
        )
        self._layout = layout
        if dtype == "float32":
            torch.backends.cudnn.allow_tf32 = False  # its default would cut fp32 convolutions to 10 bits
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
    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        """One forward, whatever the mix."""
        rows = self.bank.gather(torch.tensor(slots, device=self.device))
        features = self._features(torch.from_numpy(np.stack(images)), rows)
        return [logits.cpu().numpy() for logits in self._heads.apply(features, slots)]

    @torch.inference_mode()
    def run_beside_bank(self, image: Image, adapter: FoldedAdapter) -> Logits:
        row = adapter.row.to(self.device, self._dtype)
        features = self._features(torch.from_numpy(image).unsqueeze(0), row.unsqueeze(0))
        heads = Heads(self.backbone.head_width, self.device)
        heads.write(0, adapter.head)
        logits: Logits = heads.apply(features, [0])[0].cpu().numpy()
        return logits

    def _features(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return pooled features [B, D] of uint8 images [B, 3, H, W] with rows [B, 2, P]."""
        pixels = images.to(self.device, torch.float32, memory_format=self._layout)
        normalized = torch.addcmul(self._pixel_shift, pixels, self._pixel_scale).to(self._dtype)
        with self._lock:  # the sites read the rows of one batch at a time
            features: Tensor = self._model(normalized, rows)
        return features
