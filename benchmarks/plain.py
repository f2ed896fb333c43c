"""The plain timm model with one head, in every way this host can run it: what the mixed batch has to meet."""

from collections.abc import Callable

import numpy as np
import timm
import torch
from torch import nn

from backbone.load import Backbone

Run = Callable[[], object]
CLASSES = 10
PIECES = (4, 8)  # images; what is best for the mixed batch need not be for the plain model


def plain_model(backbone: Backbone) -> nn.Module:
    try:
        model = timm.create_model(backbone.name, num_classes=CLASSES, img_size=backbone.spec.height)
    except TypeError:  # convolutional models take any size and no such argument
        model = timm.create_model(backbone.name, num_classes=CLASSES)
    plain: nn.Module = model.eval()
    return plain


def torch_runs(backbone: Backbone, batch: int, device: str, dtype: torch.dtype) -> dict[str, Run]:
    """Eager PyTorch on normalised images in the model's dtype, in both memory layouts."""
    size = backbone.spec.height
    runs: dict[str, Run] = {}
    for name, layout in (("torch", torch.contiguous_format), ("torch channels_last", torch.channels_last)):
        model = plain_model(backbone).to(device, dtype, memory_format=layout)
        images = torch.randn(batch, 3, size, size).to(device, dtype, memory_format=layout)
        runs[name] = torch.inference_mode()(lambda model=model, images=images: model(images))
    return runs


def compiled_run(backbone: Backbone, batch: int, device: str, dtype: torch.dtype) -> Run:
    """`torch.compile` on normalised images, in the layout that suits the family; up to a minute to make."""
    size = backbone.spec.height
    layout = torch.channels_last if backbone.family.channels_last else torch.contiguous_format
    model = torch.compile(plain_model(backbone).to(device, dtype, memory_format=layout), dynamic=False)
    images = torch.randn(batch, 3, size, size).to(device, dtype, memory_format=layout)
    run: Run = torch.inference_mode()(lambda: model(images))
    run()
    return run


def openvino_runs(
    backbone: Backbone, batch: int, dtype: str, threads: int, batches: int = 1
) -> dict[str, Run]:
    """OpenVINO on normalised images: a batch as one request, and cut into pieces on streams as ours is.

    A run is so many batches, the next one queued while one is computed.
    """
    from backbone.executors.openvino_files import MAX_STREAMS, options
    from backbone.executors.openvino_graph import trace
    from backbone.executors.quiet_openvino import openvino

    size = backbone.spec.height
    graph = trace(plain_model(backbone), (torch.zeros(2, 3, size, size),))
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)

    def run(piece: int, streams: int) -> Run:
        shaped = graph.clone()
        shaped.reshape([piece, 3, size, size])
        compiled = openvino.Core().compile_model(shaped, "CPU", options(dtype, threads, streams))
        lanes = [[compiled.create_infer_request() for _ in range(batch // piece)] for _ in range(2)]
        for requests in lanes:
            for index, request in enumerate(requests):
                part = np.ascontiguousarray(images[index * piece : (index + 1) * piece])
                request.set_input_tensor(0, openvino.Tensor(part, shared_memory=True))

        def infer() -> None:
            for number in range(batches + 1):
                for request in lanes[number % 2] if number < batches else ():
                    request.start_async()
                for request in lanes[(number - 1) % 2] if number else ():
                    request.wait()

        return infer

    streams = min(threads, MAX_STREAMS)
    pieces = {f"openvino {size}s": run(min(batch, size), streams) for size in PIECES}
    return {"openvino": run(batch, 1)} | pieces
