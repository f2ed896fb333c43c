"""A converted graph on disk, and compiled. Imports no torch: see `openvino_ahead`."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbone.executors.openvino_int8 import in_int8
from backbone.executors.quiet_openvino import hint, inference_num_threads, num_streams, openvino

MAX_STREAMS = 4  # so that a batch of 16 gives each a piece of 4
FILE, SUMS = "graph.xml", "sha256"
# with int8, of all but its products
_TYPES = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16, "int8": openvino.Type.f32}

Compiled = dict[int, openvino.CompiledModel]  # by images


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an executor compiles.

    Attributes:
        graph: The graph's name in the cache: the same name, the same graph.
        dtype: float32, bfloat16 or int8.
        threads: CPU threads of one batch.
        largest_piece: Images of the largest piece, a power of 2.
    """

    graph: str
    dtype: str
    threads: int
    largest_piece: int

    @property
    def streams(self) -> int:
        return min(self.threads, MAX_STREAMS)

    @property
    def pieces(self) -> tuple[int, ...]:
        """Sizes of the pieces of batches, in images."""
        return tuple(2**power for power in range(1, self.largest_piece.bit_length()))


def read(directory: Path) -> openvino.Model:
    """Read a kept graph.

    Raises:
        OSError, RuntimeError, ValueError: If it is not there, not whole, or not as it was written.
    """
    # a damaged weight would answer wrongly, not fail
    if (directory / SUMS).read_text(encoding="ascii") != sums(directory):
        raise ValueError("its bytes have changed")
    return openvino.Core().read_model(directory / FILE)


def sums(directory: Path) -> str:
    """Return what the kept files hash to, a line each; about 0.1 s per 100 MB."""
    files = sorted(directory.glob("graph.*"))
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)


def at_batch(graph: openvino.Model, batch: int) -> openvino.Model:
    """Return the graph for batches of one size."""
    shaped = graph.clone()
    shaped.reshape({place: [batch, *value.partial_shape[1:]] for place, value in enumerate(shaped.inputs)})
    return shaped


def without_last_product(graph: openvino.Model) -> openvino.Model:
    """Return the graph without the product by the identity at its end, which is there for bfloat16 alone."""
    ends_before = graph.clone()
    result = ends_before.get_results()[0]
    result.input(0).replace_source_output(result.input_value(0).get_node().input_value(0))
    return ends_before


def compile_graph(graph: openvino.Model, wanted: Wanted) -> Compiled:
    """Compile for one image with all threads, and for each size of piece on streams; about a second.

    Raises:
        DeviceUnavailable: If int8 is wanted of a model that has nothing to multiply in it.
    """
    core = openvino.Core()
    if wanted.dtype != "bfloat16":
        graph = without_last_product(graph)
    graph, more = in_int8(graph) if wanted.dtype == "int8" else (graph, {})

    def compiled(size: int) -> openvino.CompiledModel:
        streams = wanted.streams if size in wanted.pieces else 1
        how = options(wanted.dtype, wanted.threads, streams) | more
        return core.compile_model(at_batch(graph, size), "CPU", how)

    sizes = (1, *wanted.pieces)
    with ThreadPoolExecutor(wanted.threads) as pool:  # each takes half a second, mostly in one thread
        return dict(zip(sizes, pool.map(compiled, sizes), strict=True))


def options(dtype: str, threads: int, streams: int) -> dict[Any, Any]:
    """Return how a graph is compiled for the CPU."""
    return {
        hint.inference_precision: _TYPES[dtype],
        hint.enable_cpu_pinning: False,  # other processes and decoding share these cores
        inference_num_threads: threads,
        num_streams: streams,
    }
