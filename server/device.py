"""The device of a replica: one frozen backbone, its bank and its executor, behind `contracts.Device`."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch

from adapters.errors import AdapterIncompatible
from adapters.file import Adapter, read_adapter
from adapters.folding import fold_adapter, preprocessing_of
from adapters.manifest import Manifest
from adapters.probe import check_probe, check_reference, probe_image
from backbone.cpu_memory import keep_large_buffers
from backbone.executors.base import Executor
from backbone.executors.base import FoldedAdapter as FoldedTensors
from backbone.executors.choose import choose_device, choose_dtype, open_executor
from backbone.executors.device_memory import CudaLimits, in_use
from backbone.load import load_backbone
from server.contracts import BackboneInfo, FoldedAdapter, Image, Logits
from server.settings import Settings

if TYPE_CHECKING:  # OpenVINO may not be installed
    from backbone.executors.openvino_ahead import Ahead

logger = logging.getLogger(__name__)


class BackboneDevice:
    """Implements `contracts.Device` with any executor."""

    def __init__(self, executor: Executor, *, slots: int) -> None:
        self._executor = executor
        self._backbone = executor.backbone
        self._info = _describe(executor, slots=slots)

    @classmethod
    def open(cls, settings: Settings, *, ahead: "Ahead | None" = None) -> "BackboneDevice":
        """Load the backbone and allocate the bank. Takes seconds.

        Args:
            settings: As checked by `server.preflight`.
            ahead: What is being compiled already.

        Raises:
            BackboneError: If the model is not supported, or its weights or the device cannot be had.
        """
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        if device == "cpu":
            keep_large_buffers()
            torch.set_num_threads(settings.threads or torch.get_num_threads())
        backbone = load_backbone(
            settings.backbone, source=settings.backbone_source, input_size=settings.input_size
        )
        executor = open_executor(
            backbone,
            name=settings.executor,
            device=device,
            dtype=dtype,
            slots=settings.slots,
            threads=settings.threads or torch.get_num_threads(),
            cache=settings.graph_cache,
            limits=CudaLimits(settings.max_batch, settings.max_classes, settings.gpu_memory_fraction),
            ahead=ahead,
        )
        logger.info(
            "backbone %s loaded from %s: %s, %s on %s",
            backbone.name, backbone.source, executor.name, dtype, device,
        )  # fmt: skip
        return cls(executor, slots=settings.slots)

    @property
    def info(self) -> BackboneInfo:
        return self._info

    def memory(self) -> Mapping[str, int]:
        return in_use(self._executor.device)

    def fold(self, data: bytes) -> FoldedAdapter:
        return self._fold(read_adapter(data))

    def validate(self, data: bytes, *, new: bool = True) -> Manifest:
        adapter = read_adapter(data)
        folded = self._fold(adapter)
        image = probe_image(self._backbone.spec.height, self._backbone.spec.width)
        logits = self._executor.run_beside_bank(image, folded)
        check_probe(adapter.manifest.probe, logits, self._info.dtype)
        if new:
            check_reference(self._backbone, adapter)  # bf16 alone would not see a site left out
        return adapter.manifest

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        self._executor.load(slot, cast(FoldedTensors, adapter))

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        logits: list[Logits] = self._executor.run(images, slots)
        return logits

    def _fold(self, adapter: Adapter) -> FoldedTensors:
        most, classes = self._executor.max_classes, adapter.manifest.num_classes
        if most is not None and classes > most:
            raise AdapterIncompatible("classes", f"at most {most} (SSFSERVE_MAX_CLASSES)", str(classes))
        return fold_adapter(self._backbone, adapter)


def _describe(executor: Executor, *, slots: int) -> BackboneInfo:
    backbone = executor.backbone
    return BackboneInfo(
        name=backbone.name,
        fingerprint=backbone.fingerprint,
        source=backbone.source,
        family=backbone.family.name,
        executor=executor.name,
        device=executor.device,
        dtype=executor.dtype,
        parameters=backbone.parameters,
        head_width=backbone.head_width,
        preprocessing=preprocessing_of(backbone),
        sites=backbone.sites.widths,
        slots=slots,
        lanes=executor.lanes,
        memory=executor.memory,
    )
