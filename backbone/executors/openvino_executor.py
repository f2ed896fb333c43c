"""The CPU executor on OpenVINO: the same model, sites and bank, compiled to fused kernels.

A batch is cut into pieces of a few images that run on several streams at once: their activations stay
in the cache, and no stream waits for another between ops. Sizes are compiled ahead; a piece that is not full
is padded with slot 0. A single image has all threads to itself. While one batch is computed, the next one's
images and rows are copied.

Numerics: products and activations in the executor's dtype, with int8 only the products of linear layers
(`openvino_int8`) and fp32 between them; γ' and β' are fp32. A sample's bits do not depend on its piece:
OpenVINO sums alike in all sizes, as tests/unit/test_executor.py measures.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType

import numpy as np
import torch

from backbone.bank import Bank
from backbone.executors.base import FoldedAdapter, Image, Logits
from backbone.executors.openvino_ahead import Ahead
from backbone.executors.openvino_files import Wanted, compile_graph
from backbone.executors.openvino_graph import key, load_graph
from backbone.executors.openvino_lane import Lane, Request
from backbone.heads import HostHeads
from backbone.load import Backbone


def largest_piece(dtype: str) -> int:
    """Return how many images of a batch are best computed at once, on each stream.

    Larger pieces leave the cache, smaller ones use the units less: AMX is so fast that it wants more rows.
    """
    return 8 if dtype == "bfloat16" and torch.cpu._is_amx_tile_supported() else 4


class OpenVinoExecutor:
    """Implements `Executor` for a CPU, for every family whose model converts to a graph."""

    name = "openvino"
    device = "cpu"
    lanes = 2
    max_classes: int | None = None
    memory: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        backbone: Backbone,
        *,
        dtype: str,
        slots: int,
        threads: int,
        cache: Path | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        """Convert (or read from the cache) and compile; some seconds the first time, then about one.

        Args:
            backbone: Its weights are copied into the graph.
            dtype: float32, bfloat16 or int8.
            slots: Adapters in the bank beside the identity.
            threads: CPU threads of one batch.
            cache: Directory for converted graphs.
            ahead: What is being compiled already.

        Raises:
            DeviceUnavailable: If int8 is asked for and the model has nothing to multiply in it.
        """
        self.backbone, self.dtype = backbone, dtype
        self.bank = Bank(backbone.fold, slots)
        self._heads = HostHeads(backbone.head_width)
        self._lock_beside = threading.Lock()
        wanted = Wanted(
            graph=key(backbone),
            dtype=dtype,
            threads=threads,
            largest_piece=largest_piece(dtype),
        )
        compiled = None if ahead is None else ahead.take(wanted)
        if compiled is None:
            compiled = compile_graph(load_graph(backbone, cache), wanted)

        self._free: SimpleQueue[Lane] = SimpleQueue()
        for _ in range(self.lanes):
            self._free.put(Lane(compiled, wanted.streams, self.bank.rows.numpy()))
        self._beside = Request(compiled[1], 1)

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        self.bank.write(slot, adapter.row)
        self._heads.write(slot, adapter.head)

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        features = np.empty((len(images), self.backbone.head_width), np.float32)
        lane = self._free.get()
        try:
            lane.run(images, slots, features)
        finally:
            self._free.put(lane)
        return self._heads.apply(features, slots)

    def run_beside_bank(self, image: Image, adapter: FoldedAdapter) -> Logits:
        features = np.empty((1, self.backbone.head_width), np.float32)
        with self._lock_beside:
            self._beside.fill_beside_bank(image, adapter.row.numpy())
            self._beside.start()
            self._beside.collect(features)
        heads = HostHeads(self.backbone.head_width)
        heads.write(0, adapter.head)
        return heads.apply(features, [0])[0]
