"""The mixed-task model as an OpenVINO graph: (uint8 images, each site's γ' and β') → pooled features.

Converting traces the site-replaced PyTorch module, which takes seconds, so graphs are kept in a directory by
all they depend on: weights (the fingerprint), input size, the model as timm builds it and the versions of
everything that takes part. Nothing of any adapter is in a graph.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from backbone.executors.openvino_files import FILE, SUMS, read, sums
from backbone.executors.openvino_rows import PixelsAndVectors, vector_shapes
from backbone.executors.quiet_openvino import openvino, torch_frontend
from backbone.load import Backbone

logger = logging.getLogger(__name__)

GRAPH_VERSION = 3  # raise it when the graph that this file makes changes
_EXAMPLE_BATCH = 2


def load_graph(backbone: Backbone, cache: Path | None) -> openvino.Model:
    """Return the graph, its batch size open: images [B, 3, H, W] uint8, and fp32 γ' of all sites, then β'.

    From the cache if it is there, else converted and put there; a cache that cannot be read or written costs
    a conversion and a warning, nothing more.
    """
    if cache is None:
        return convert(backbone)
    kept = cache / key(backbone)
    if kept.is_dir():
        try:
            return read(kept)
        except (OSError, RuntimeError, ValueError) as error:
            logger.warning("the graph in %s cannot be read and is made anew: %s", kept, error)
            shutil.rmtree(kept, ignore_errors=True)
    logger.info("converting %s to a graph, once", backbone.name)
    graph = convert(backbone)
    try:
        _keep(graph, kept)
    except (OSError, RuntimeError) as error:
        logger.warning("the graph is not kept in %s: %s", kept, error)
    return graph


def convert(backbone: Backbone) -> openvino.Model:
    """Trace and convert: some seconds.

    Raises:
        Exception: Of many kinds, if the model does what a graph cannot.
    """
    images = torch.zeros(_EXAMPLE_BATCH, 3, backbone.spec.height, backbone.spec.width, dtype=torch.uint8)
    shapes = vector_shapes(backbone, images) * 2
    vectors = [torch.zeros(_EXAMPLE_BATCH, *shape) for shape in shapes]
    graph = trace(PixelsAndVectors(backbone).eval(), (images, *vectors))
    _end_in_a_product(graph, backbone.head_width)
    graph.reshape({place: [-1, *shape] for place, shape in enumerate([images.shape[1:], *shapes])})
    return graph


def _end_in_a_product(graph: openvino.Model, width: int) -> None:
    """Multiply the output [?, width] by the identity, in place, which changes no number of the dtype.

    OpenVINO computes in fp32 whatever lies behind the last product on any way to the output. In a transformer
    without its head that is every op of the residual stream, with conversions between: a tenth of the time.
    """
    ops, result = openvino.opset13, graph.get_results()[0]
    identity = ops.constant(np.eye(width, dtype=np.float32))
    product = ops.matmul(result.input_value(0), identity, transpose_a=False, transpose_b=False)
    result.input(0).replace_source_output(product.output(0))


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> openvino.Model:
    """Return a module as a graph."""
    manager, decoder = torch_frontend()
    frontend = manager.load_by_framework("pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every Python branch, and of itself
        traced = decoder(module, example_input=example)
    return frontend.convert(frontend.load(traced))


def key(backbone: Backbone) -> str:
    """Return the name of a backbone's graph: a hash of all it depends on."""
    depends: dict[str, Any] = {
        "graph": GRAPH_VERSION,
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "sites": backbone.sites.widths,
        "spec": repr(backbone.spec),
        "model": repr(backbone.model),
        "openvino": openvino.__version__,
        "timm": timm.__version__,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]


def _keep(graph: openvino.Model, directory: Path) -> None:
    """Write a graph so that a reader, or an interrupt, meets all of it or nothing."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    making = tempfile.TemporaryDirectory(dir=directory.parent, prefix=".making-", ignore_cleanup_errors=True)
    with making as made:
        openvino.save_model(graph, Path(made) / FILE, compress_to_fp16=False)
        (Path(made) / SUMS).write_text(sums(Path(made)), encoding="ascii")
        for file in Path(made).iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if not directory.exists():
            Path(made).rename(directory)
