"""One batch on OpenVINO: cut into pieces that run on several streams at once.

Two lanes let one batch be filled while another is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
from numpy.typing import NDArray

from backbone.bank import IDENTITY
from backbone.executors.base import Image
from backbone.executors.openvino_files import Compiled
from backbone.executors.openvino_rows import PieceRows
from backbone.executors.quiet_openvino import openvino

_IN_FLIGHT = 2  # requests a stream, so that it finds the next one filled

Rows = NDArray[np.float32]  # a bank [S, 2, P], or one row [2, P]
Features = NDArray[np.float32]  # [B, D]


@dataclass(frozen=True, slots=True)
class Piece:
    """Images `start` to `start + count` of a batch, run as `size`."""

    start: int
    count: int
    size: int

    @property
    def where(self) -> slice:
        return slice(self.start, self.start + self.count)


def cut(images: int, streams: int, sizes: Sequence[int]) -> Iterator[Piece]:
    """Cut a batch into pieces of these sizes (ascending), shared out evenly between the streams."""
    bounds = [images * stream // streams for stream in range(streams + 1)]
    for begin, end in pairwise(bounds):
        for start in range(begin, end, sizes[-1]):
            count = min(sizes[-1], end - start)
            yield Piece(start, count, next(size for size in sizes if size >= count))


class Request:
    """An inference request of one size and its own buffers: filled, started, collected."""

    def __init__(self, compiled: openvino.CompiledModel, size: int) -> None:
        images, *vectors = (tuple(value.shape) for value in compiled.inputs)
        self._size = size
        self._images = np.zeros(images, np.uint8)
        self._rows = PieceRows([shape[1:] for shape in vectors], size)
        self._request = compiled.create_infer_request()
        tensors = [openvino.Tensor(self._images, shared_memory=True), *self._rows.tensors]
        for place, tensor in enumerate(tensors):
            self._request.set_input_tensor(place, tensor)

    def fill(self, images: Sequence[Image], bank: Rows, slots: Sequence[int]) -> None:
        """Take images and their rows of a bank; what is beyond them runs as slot 0."""
        self._rows.gather(bank, [*slots, *[IDENTITY] * (self._size - len(slots))])
        for place, image in enumerate(images):
            self._images[place] = image

    def fill_beside_bank(self, image: Image, row: Rows) -> None:
        """Take one image and a row [2, P]; only for a request of one."""
        self._rows.put(row)
        self._images[0] = image

    def start(self) -> None:
        self._request.start_async()

    def collect(self, features: Features) -> None:
        """Wait, and copy as many features out as there is room for."""
        self._request.wait()
        features[:] = self._request.get_output_tensor(0).data[: len(features)]

    def settle(self) -> None:
        self._request.wait()


class Lane:
    """Requests of every size, for one batch at a time."""

    def __init__(self, compiled: Compiled, streams: int, bank: Rows) -> None:
        """Make requests of what is compiled: for one image with all threads, and for pieces on streams."""
        self._streams, self._bank = streams, bank
        self._pieces = sorted(compiled.keys() - {1})
        counts = dict.fromkeys(self._pieces, streams * _IN_FLIGHT) | {1: 1}
        self._requests = {
            size: [Request(compiled[size], size) for _ in range(count)] for size, count in counts.items()
        }

    def run(self, images: Sequence[Image], slots: Sequence[int], features: Features) -> None:
        """Write the features [B, D] of images, each with the row of its slot."""
        busy: dict[Request, Piece] = {}
        try:
            self._run(images, slots, features, busy)
        finally:
            for request in busy:  # after an error, none may be left running on its buffers
                request.settle()

    def _run(
        self,
        images: Sequence[Image],
        slots: Sequence[int],
        features: Features,
        busy: dict[Request, Piece],
    ) -> None:
        pieces = self._cut(len(images))
        turns = {size: cycle(requests) for size, requests in self._requests.items()}
        filled: dict[Request, Piece] = {}
        for number, piece in enumerate(pieces, start=1):
            request = next(turns[piece.size])
            if request in busy:
                request.collect(features[busy.pop(request).where])
            request.fill(images[piece.where], self._bank, slots[piece.where])
            filled[request] = piece
            # all streams begin together: the first might take this thread's core
            if number >= self._streams or number == len(pieces):
                for request, its_piece in filled.items():
                    request.start()
                    busy[request] = its_piece
                filled = {}
        while busy:
            request, piece = busy.popitem()
            request.collect(features[piece.where])

    def _cut(self, images: int) -> list[Piece]:
        return [Piece(0, 1, 1)] if images == 1 else list(cut(images, self._streams, self._pieces))
