"""The CPU executor on OpenVINO: the same model, sites and bank, compiled to fused kernels.

A batch is cut into pieces of a few images that run on several streams at once: their activations stay
in the cache, and no stream waits for another between ops. Sizes are compiled ahead; a piece that is not full
is padded with slot 0. A single image has all threads to itself.

Numerics: products, activations and the bank in the executor's dtype.
A sample's bits do not depend on its piece: OpenVINO sums alike in all sizes, as tests/unit/test_executor.py
measures.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from backbone.bank import IDENTITY, Bank
from backbone.executors.base import FoldedAdapter, Image, Logits
from backbone.executors.openvino_ahead import Ahead
from backbone.executors.openvino_files import Wanted, compile_graph
from backbone.executors.openvino_graph import key, load_graph
from backbone.executors.openvino_rows import PieceRows
from backbone.executors.quiet_openvino import openvino
from backbone.executors.torch_executor import DTYPES
from backbone.heads import HostHeads
from backbone.load import Backbone
from backbone.preprocess import ImageSpec

_IN_FLIGHT = 2  # requests a stream, so that it finds the next one filled


@dataclass(frozen=True, slots=True)
class Piece:
    """Images `start` to `start + count` of a batch, run as `size`."""

    start: int
    count: int
    size: int


def cut(images: int, streams: int, sizes: Sequence[int]) -> Iterator[Piece]:
    """Cut a batch into pieces of these sizes (ascending), shared out evenly between the streams."""
    bounds = [images * stream // streams for stream in range(streams + 1)]
    for begin, end in pairwise(bounds):
        for start in range(begin, end, sizes[-1]):
            count = min(sizes[-1], end - start)
            yield Piece(start, count, next(size for size in sizes if size >= count))


def largest_piece(dtype: str) -> int:
    """Return how many images of a batch are best computed at once, on each stream.

    Larger pieces leave the cache, smaller ones use the units less: AMX is so fast that it wants more rows.
    """
    return 8 if dtype == "bfloat16" and torch.cpu._is_amx_tile_supported() else 4


class _Lane:
    """One inference request and its own buffers: filled, started, collected."""

    def __init__(self, compiled: openvino.CompiledModel, size: int, bank: Bank, spec: ImageSpec) -> None:
        self._size = size
        self._images = np.zeros((size, 3, spec.height, spec.width), np.uint8)
        self._rows = PieceRows(bank.sites, size, bank.rows.dtype)
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(0, openvino.Tensor(self._images, shared_memory=True))
        self._request.set_input_tensor(1, self._rows.tensor)

    def fill(self, images: Sequence[Image], bank: Bank, slots: Sequence[int]) -> None:
        """Take images and their rows of the bank; what is beyond them runs as slot 0."""
        self._rows.gather(bank.rows, [*slots, *[IDENTITY] * (self._size - len(slots))])
        for place, image in enumerate(images):
            self._images[place] = image

    def fill_beside_bank(self, image: Image, row: Tensor) -> None:
        """Take one image and a row [2, P], in a lane for one."""
        self._rows.put(row)
        self._images[0] = image

    def start(self) -> None:
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
        self.bank = Bank(backbone.fold, slots, dtype=DTYPES[dtype])
        self._heads = HostHeads(backbone.head_width)
        self._lock, self._lock_beside = threading.Lock(), threading.Lock()
        wanted = Wanted(
            graph=key(backbone),
            dtype=dtype,
            threads=threads,
            height=backbone.spec.height,
            width=backbone.spec.width,
            row_width=backbone.sites.total_width,
            largest_piece=largest_piece(dtype),
        )
        compiled = None if ahead is None else ahead.take(wanted)
        if compiled is None:
            compiled = compile_graph(load_graph(backbone, cache), wanted)

        def lanes(size: int, count: int) -> list[_Lane]:
            return [_Lane(compiled[size], size, self.bank, backbone.spec) for _ in range(count)]

        self._streams, self._sizes = wanted.streams, wanted.pieces
        self._alone, self._beside = lanes(1, 2)
        self._lanes = {size: lanes(size, self._streams * _IN_FLIGHT) for size in self._sizes}

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        self.bank.write(slot, adapter.row)
        self._heads.write(slot, adapter.head)

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        features = np.empty((len(images), self.backbone.head_width), np.float32)
        with self._lock:
            if len(images) == 1:
                self._alone.fill(images, self.bank, slots)
                self._alone.start()
                self._alone.collect(features)
            else:
                self._run_pieces(images, slots, features)
        return self._heads.apply(features, slots)

    def _run_pieces(self, images: Sequence[Image], slots: Sequence[int], features: np.ndarray) -> None:
        pieces = list(cut(len(images), self._streams, self._sizes))
        busy: dict[_Lane, Piece] = {}
        turns = {size: cycle(lanes) for size, lanes in self._lanes.items()}
        waiting: list[_Lane] = []
        try:
            for number, piece in enumerate(pieces, start=1):
                lane = next(turns[piece.size])
                if lane in busy:
                    _collect(lane, busy.pop(lane), features)
                where = slice(piece.start, piece.start + piece.count)
                lane.fill(images[where], self.bank, slots[where])
                waiting.append(lane)
                busy[lane] = piece
                if number >= self._streams or number == len(pieces):
                    while waiting:
                        waiting.pop(0).start()
            while busy:
                _collect(*busy.popitem(), features)
        finally:
            for lane in busy:  # after an error, none may be left running on its buffers
                lane.settle()

    def run_beside_bank(self, image: Image, adapter: FoldedAdapter) -> Logits:
        features = np.empty((1, self.backbone.head_width), np.float32)
        with self._lock_beside:
            self._beside.fill_beside_bank(image, adapter.row)
            self._beside.start()
            self._beside.collect(features)
        heads = HostHeads(self.backbone.head_width)
        heads.write(0, adapter.head)
        return heads.apply(features, [0])[0]


def _collect(lane: _Lane, piece: Piece, features: np.ndarray) -> None:
    lane.collect(features[piece.start : piece.start + piece.count])
