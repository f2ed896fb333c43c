"""The GPU's tax benchmark on a toy model and a device of tests: every mix, and right answers only."""

from collections.abc import Iterator

import pytest
import torch

from backbone.executors.cuda_executor import CudaExecutor
from backbone.load import Backbone
from benchmarks import gpu_tax
from benchmarks.plain import plain_model
from tests.fake_gpu import FakeGpu
from tests.models import SIZE, make_backbone

BATCH = 4


class SettledGpu(FakeGpu):
    """Has no host that waits for it where the benchmark calls `torch.cuda.synchronize`, so it never lags."""

    def replay(self, graph: object) -> None:
        super().replay(graph)
        self.settle()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone("vit")

    def plain(_: Backbone, batch: int, *_rest: object) -> dict[str, gpu_tax.Run]:
        model, images = plain_model(backbone), torch.randn(batch, 3, SIZE, SIZE)
        return {"torch": torch.inference_mode()(lambda: model(images))}

    monkeypatch.setattr(gpu_tax, "load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(gpu_tax, "torch_runs", plain)
    monkeypatch.setattr(gpu_tax, "compiled", lambda backbone, batch, _: plain(backbone, batch)["torch"])
    monkeypatch.setattr(gpu_tax, "CudaGpu", SettledGpu)
    monkeypatch.setattr(gpu_tax, "REPEATS", 2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")


def test_rows_have_every_way_and_mix() -> None:
    rows = list(gpu_tax.measure("vit", SIZE, BATCH, "float32", rounds=1))
    assert {(row["way"], row["mix"]) for row in rows} == {
        ("plain torch", ""),
        ("plain compiled", ""),
        *((way, mix) for way in ("host", "device") for mix in ("identical", "uniform", "skewed", "distinct")),
    }
    assert max(row["vs_plain_best"] for row in rows if not row["mix"]) == 1
    assert {row["vs_identical"] for row in rows if row["mix"] == "identical"} == {1}
    assert next(row["tasks"] for row in rows if row["mix"] == "distinct") == BATCH


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CudaExecutor.run_beside_bank
    monkeypatch.setattr(CudaExecutor, "run_beside_bank", lambda *args: right(*args) + 10)
    with pytest.raises(AssertionError):
        list(gpu_tax.measure("vit", SIZE, BATCH, "float32", rounds=1))
