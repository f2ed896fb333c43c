"""The CPU executor on OpenVINO: the same model, sites and bank, compiled to fused kernels.

A batch is cut into pieces of at most four images that run on several streams at once: their activations stay
in the cache, and no stream waits for another between ops. Sizes are compiled ahead; a piece that is not full
is padded with slot 0. A single image has all threads to itself.

Numerics: products and activations in the executor's dtype; γ' and β' come as fp32 and are rounded to it.
A sample's bits do not depend on its piece: OpenVINO sums alike in all sizes, as tests/unit/test_executor.py
measures.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from backbone.bank import IDENTITY, Bank
from backbone.executors.base import FoldedAdapter, Image, Logits
from backbone.executors.openvino_ahead import Ahead
from backbone.executors.openvino_files import PIECES, Wanted, compile_graph
from backbone.executors.openvino_graph import key, load_graph
from backbone.executors.quiet_openvino import openvino
from backbone.heads import Heads
from backbone.load import Backbone

_IN_FLIGHT = 2  # requests a stream, so that it finds the next one filled


@dataclass(frozen=True, slots=True)
class Piece:
    """Images `start` to `start + count` of a batch, run as `size`."""

    start: int
    count: int
    size: int


def cut(images: int, streams: int) -> Iterator[Piece]:
    """Cut a batch into pieces, shared out evenly between the streams."""
    bounds = [images * stream // streams for stream in range(streams + 1)]
    for begin, end in pairwise(bounds):
        for start in range(begin, end, PIECES[-1]):
            count = min(PIECES[-1], end - start)
            yield Piece(start, count, next(size for size in PIECES if size >= count))


class _Lane:
    """One inference request and its own buffers: filled, started, collected."""

    def __init__(self, compiled: openvino.CompiledModel, size: int, backbone: Backbone) -> None:
        shape = (size, 3, backbone.spec.height, backbone.spec.width)
        self._images = np.zeros(shape, np.uint8)
        self._rows = np.zeros((size, 2, backbone.sites.total_width), np.float32)
        self._request = compiled.create_infer_request()
        for index, array in enumerate((self._images, self._rows)):
            self._request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))

    def start(self, images: Sequence[Image], bank: np.ndarray, slots: Sequence[int]) -> None:
        """Run images with rows of the bank [S, 2, P]; what is beyond them runs as slot 0."""
        for place, image in enumerate(images):
            self._images[place] = image
        padded = [*slots, *[IDENTITY] * (len(self._rows) - len(slots))]
        np.take(bank, padded, axis=0, out=self._rows, mode="clip")  # other modes make a copy first
        self._request.start_async()

    def collect(self, features: np.ndarray) -> None:
        """Wait, and copy the features [count, D] out."""
        self._request.wait()
        features[:] = self._request.get_output_tensor(0).data[: len(features)]

    def settle(self) -> None:
        self._request.wait()


class OpenVinoExecutor:
    """Implements `Executor` for a CPU, for every family whose model converts to a graph."""

    name = "openvino"
    device = "cpu"
    lanes = 1
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
            dtype: float32 or bfloat16.
            slots: Adapters in the bank beside the identity.
            threads: CPU threads of one batch.
            cache: Directory for converted graphs.
            ahead: What is being compiled already.
        """
        self.backbone, self.dtype = backbone, dtype
        self.bank = Bank(backbone.fold, slots)
        self._heads = Heads(backbone.head_width)
        self._rows: np.ndarray = self.bank.rows.numpy()
        self._lock, self._lock_beside = threading.Lock(), threading.Lock()
        wanted = Wanted(
            graph=key(backbone),
            dtype=dtype,
            threads=threads,
            height=backbone.spec.height,
            width=backbone.spec.width,
            row_width=backbone.sites.total_width,
        )
        compiled = None if ahead is None else ahead.take(wanted)
        if compiled is None:
            compiled = compile_graph(load_graph(backbone, cache), wanted)

        def lanes(size: int, count: int) -> list[_Lane]:
            return [_Lane(compiled[size], size, backbone) for _ in range(count)]

        self._streams = wanted.streams
        self._alone, self._beside = lanes(1, 2)
        self._lanes = {size: lanes(size, self._streams * _IN_FLIGHT) for size in PIECES}

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        self.bank.write(slot, adapter.row)
        self._heads.write(slot, adapter.head)

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        features = np.empty((len(images), self.backbone.head_width), np.float32)
        with self._lock:
            if len(images) == 1:
                self._alone.start(images, self._rows, slots)
                self._alone.collect(features)
            else:
                self._run_pieces(images, slots, features)
        return [logits.numpy() for logits in self._heads.apply(torch.from_numpy(features), slots)]

    def _run_pieces(self, images: Sequence[Image], slots: Sequence[int], features: np.ndarray) -> None:
        busy: dict[_Lane, Piece] = {}
        turns = dict.fromkeys(PIECES, 0)
        try:
            for piece in cut(len(images), self._streams):
                lanes = self._lanes[piece.size]
                lane = lanes[turns[piece.size] % len(lanes)]
                turns[piece.size] += 1
                if lane in busy:
                    _collect(lane, busy.pop(lane), features)
                where = slice(piece.start, piece.start + piece.count)
                lane.start(images[where], self._rows, slots[where])
                busy[lane] = piece
            while busy:
                _collect(*busy.popitem(), features)
        finally:
            for lane in busy:  # after an error, none may be left running on its buffers
                lane.settle()

    def run_beside_bank(self, image: Image, adapter: FoldedAdapter) -> Logits:
        features = np.empty((1, self.backbone.head_width), np.float32)
        with self._lock_beside:
            self._beside.start([image], adapter.row.unsqueeze(0).numpy(), [0])
            self._beside.collect(features)
        heads = Heads(self.backbone.head_width)
        heads.write(0, adapter.head)
        logits: Logits = heads.apply(torch.from_numpy(features), [0])[0].numpy()
        return logits


def _collect(lane: _Lane, piece: Piece, features: np.ndarray) -> None:
    lane.collect(features[piece.start : piece.start + piece.count])
