"""The GPU executor: the mixed-task forward on the kernels, replayed as CUDA graphs, two batches under way.

Everything that a request could run into is made at start: weights, bank, head pages, buffers and a graph for
every batch size, from a budget of the device's memory. See docs/gpu.md.
"""

import logging
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from backbone.bank import IDENTITY, Bank
from backbone.errors import BackboneError, DeviceUnavailable, ShapeMismatch
from backbone.executors.base import FoldedAdapter, Image, Logits
from backbone.executors.device_memory import Budget, CudaLimits, graph_bytes
from backbone.executors.gpu import Gpu
from backbone.executors.kernel_model import KernelModel
from backbone.executors.pipeline import LANES, Pipeline
from backbone.executors.torch_executor import DTYPES
from backbone.kernels.heads import HeadPool, heads
from backbone.kernels.heads.pool import PAGE_ROWS, pages_of
from backbone.load import Backbone

logger = logging.getLogger(__name__)

FP8 = "float8"
ARITHMETIC = {**DTYPES, FP8: torch.bfloat16}  # of what is between the products
FIXED_SLOTS = 2  # the identity, and one for an adapter that is checked and in no slot of its own


class CudaExecutor:
    """Implements `Executor` on a `Gpu`. Two runs may be under way; more wait for a lane.

    A sample's bits depend on no neighbour; they depend on the size its batch is padded to only where a
    vendor's kernel (attention, convolutions, cuBLAS where the tuned table says so) chooses by size.
    """

    name = "cuda"
    lanes = LANES

    def __init__(
        self,
        backbone: Backbone,
        gpu: Gpu,
        *,
        dtype: str,
        slots: int,
        limits: CudaLimits,
    ) -> None:
        """Copy the weights, share out the memory, and capture every batch size: seconds.

        Args:
            backbone: Its weights are copied.
            gpu: The device.
            dtype: float32, float16, bfloat16, or float8: linear layers multiply in e4m3, the rest is bf16.
            slots: Adapters in the bank beside the identity.
            limits: What else to make room for.

        Raises:
            DeviceMemoryShort: If it does not fit.
            DeviceUnavailable: If a kernel or a capture fails.
        """
        self.backbone, self.dtype = backbone, dtype
        self.device = str(gpu.device)
        self._pages = pages_of(limits.max_classes)
        self.max_classes: int | None = self._pages * PAGE_ROWS
        self._gpu, self._slots = gpu, slots
        self._loading, self._checking = threading.Lock(), threading.Lock()
        self._classes: dict[int, int] = {IDENTITY: 0}
        before = gpu.memory()
        limit = min(int(before.total * limits.memory_fraction), before.free)
        try:
            self._model = KernelModel(backbone, dtype=ARITHMETIC[dtype], device=gpu.device, fp8=dtype == FP8)
            shape = (limits.max_batch, 3, backbone.spec.height, backbone.spec.width)
            self._pipeline = Pipeline(gpu, shape, self._pages * PAGE_ROWS)
            self.budget = self._share_out(limit)
            self.budget.check()
            self._fill(slots)
            self._pipeline.capture(self._forward)
        except BackboneError:
            raise
        except Exception as error:  # what CUDA, its libraries and Triton's compiler raise has no base
            raise DeviceUnavailable("cuda", f"the warm-up of {backbone.name} failed: {error}") from error
        logger.info("device memory: %s", self.budget)

    @property
    def memory(self) -> Mapping[str, int]:
        """The device memory set aside at start, in bytes by part."""
        return self.budget.parts()

    def load(self, slot: int, adapter: FoldedAdapter) -> None:
        row = self.bank.rows[slot]
        if adapter.row.shape != row.shape:
            raise ShapeMismatch("row", str(list(row.shape)), str(list(adapter.row.shape)))
        copies: list[tuple[Tensor, Tensor]] = []

        def plan(target: Tensor, source: Tensor) -> None:
            copies.append((target, self._gpu.pinned(source)))

        with self._loading:
            self._pool.write(slot, adapter.head, plan)
            plan(row, self._model.prepared(adapter.row))
            self._pipeline.load(slot, copies)
            self._classes[slot] = len(adapter.head.bias)

    def run(self, images: Sequence[Image], slots: Sequence[int]) -> list[Logits]:
        classes = [self._classes[slot] for slot in slots]
        logits = self._pipeline.run(images, slots)
        return [row[:count] for row, count in zip(logits, classes, strict=True)]

    def run_beside_bank(self, image: Image, adapter: FoldedAdapter) -> Logits:
        with self._checking:
            self.load(self._slots + 1, adapter)
            return self.run([image], [self._slots + 1])[0]

    def replay(self, batch: int) -> None:
        """Queue the forward of a batch without its copies, over what the first lane holds: for measuring."""
        self._pipeline.replay(batch)

    def _forward(self, images: Tensor, slots: Tensor) -> Tensor:
        return heads(self._model(images, slots), self._pool, slots, top_k=1)[0]

    def _fill(self, slots: int) -> None:
        """Make room for adapters: tensors that keep their addresses, since graphs hold these."""
        rows, device = slots + FIXED_SLOTS, self._gpu.device
        self.bank = Bank(self.backbone.fold, rows - 1, device)
        self.bank.rows[IDENTITY].copy_(self._model.prepared(self.backbone.fold.row({}, {})))
        self._pool = HeadPool(
            self.backbone.head_width,
            slots=rows,
            max_classes=self._pages * PAGE_ROWS,
            pages=(rows - 1) * self._pages,  # the identity has no head
            device=device,
        )
        self._model.attach(self.bank)
        self._gpu.settle()

    def _share_out(self, limit: int) -> Budget:
        """Measure what the largest batch takes, with a bank of no adapter, and plan the rest."""
        self._fill(0)
        lane, row, weight = self._pipeline.lanes[0], self.bank.rows[0], self._pool.weight[0]
        peak = self._gpu.peak(lambda: lane.logits.copy_(self._forward(lane.images, lane.slots)))
        page = weight.nbytes + self._pool.bias[0].nbytes
        buffers = (lane.images, lane.slots, lane.logits)
        return Budget(
            limit=limit,
            weights=sum(tensor.nbytes for tensor in self._model.state_dict().values()),
            lanes=LANES * sum(buffer.nbytes for buffer in buffers),
            graphs=graph_bytes(peak),
            slot=row.nbytes + self._pages * page + self._pool.table[0].nbytes,
            fixed_slots=FIXED_SLOTS,
            slots=self._slots,
        )
