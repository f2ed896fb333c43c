"""The floor is counted right, and a matrix that was cut off continues."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbone.load import load_backbone
from benchmarks import common, matrix
from benchmarks.matrix import Host, Kept, Plan, random_adapters, run_model
from benchmarks.roofline import Rates, Work, measure_work
from tests.models import make_backbone

RATES = Rates(operations=1e9, bytes=1e9)
HOST = Host("cpu", "float32", RATES)
PLAN = Plan(batches=(1, 4, 64), compiled=(), case_seconds=100, until=float("inf"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keep rows in a directory of the test, under conditions that it can change."""
    conditions = {"commit": "abc", "host": "h", "cores": 2, "torch": "t", "load": 1.0}
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(matrix, "RESULTS", tmp_path)
    monkeypatch.setattr(matrix, "PATH", tmp_path / "matrix.json")
    monkeypatch.setattr(matrix, "conditions", lambda: dict(conditions))
    return conditions


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace the timing by a model of it: 0.5 s an image; note which batches were run."""
    batches: list[int] = []

    def measure(backbone: object, work: Work, batch: int, host: Host, plan: Plan) -> list[dict[str, Any]]:
        batches.append(batch)
        return [{"bench": "matrix", "model": "tf_efficientnet_lite0", "batch": batch, "executor": "plain",
                 "mix": "torch", "dtype": host.dtype, "round_seconds": 0.5 * batch}]  # fmt: skip

    backbone = make_backbone("efficientnet")
    monkeypatch.setattr(matrix, "measure", measure)
    monkeypatch.setattr(matrix, "load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(matrix, "plain_model", lambda _: nn.Conv2d(3, 4, 1))
    return batches


def test_operations_and_bytes_of_a_known_model_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(8 * 16, 10))
    work = measure_work(model, 16, torch.bfloat16)
    assert work.operations == 2 * (16 * 8 * 3 * 16) + 2 * (128 * 10)
    assert work.activation_bytes == 2 * ((3 * 256 + 128) + (128 + 10))
    assert work.weight_bytes == 2 * (8 * 3 * 16 + 8 + 128 * 10 + 10)


def test_attention_counts_as_operations() -> None:
    vit = make_backbone("vit").model
    tokens, width, blocks = 17, 32, 2
    products = 2 * tokens * 12 * width * width * blocks + 2 * 16 * 3 * 64 * width
    assert measure_work(vit, 32, torch.float32).operations == products + 4 * tokens**2 * width * blocks


def test_the_floor_is_the_slower_of_computing_and_moving() -> None:
    assert Work(2e9, 1.0, 1.0).floor(3, RATES) == 6
    assert Work(1.0, 1e9, 2e9).floor(3, RATES) == 5


def test_a_matrix_that_was_cut_off_continues(measured: list[int], here: dict[str, Any]) -> None:
    run_model("tf_efficientnet_lite0", HOST, PLAN, Kept("float32"))
    assert measured == [1, 4]  # 64 images would take 160 s
    run_model("tf_efficientnet_lite0", HOST, PLAN, Kept("float32"))
    assert measured == [1, 4]
    here["commit"] = "def"
    run_model("tf_efficientnet_lite0", HOST, PLAN, Kept("float32"))
    assert measured == [1, 4, 1, 4]
    assert [row["commit"] for row in Kept("float32").rows] == ["def", "def"]


def test_no_case_starts_after_the_time_is_over(measured: list[int]) -> None:
    over = Plan(PLAN.batches, PLAN.compiled, PLAN.case_seconds, until=0.0)
    run_model("tf_efficientnet_lite0", HOST, over, Kept("float32"))
    assert measured == []


def test_a_model_of_no_family_is_listed_until_it_is_supported(
    measured: list[int], here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(matrix, "load_backbone", load_backbone)
        run_model("xcit_nano_12_p16_224", HOST, PLAN, Kept("float32"))
    (row,) = Kept("float32").rows
    assert (row["model"], row["batch"]) == ("xcit_nano_12_p16_224", 0) and "no supported family" in row[
        "unsupported"
    ]
    assert measured == []


def test_supporting_a_model_removes_its_line(here: dict[str, Any]) -> None:
    Kept("float32").put("m", 0, [{"model": "m", "batch": 0, "unsupported": "why"}])
    Kept("float32").put("m", 4, [{"model": "m", "batch": 4}])
    assert [row["batch"] for row in Kept("float32").rows] == [4]


def test_rows_in_another_dtype_stay(measured: list[int], here: dict[str, Any]) -> None:
    for dtype in ("bfloat16", "float32"):
        rows = [{"model": "m", "batch": 4, "dtype": dtype}]
        Kept(dtype).put("m", 4, rows)
        Kept(dtype).put("m", 4, rows)
    kept = Kept("float32")
    assert [row["dtype"] for row in kept.rows] == ["bfloat16", "float32"]
    assert [row["dtype"] for row in kept.done("m", 4)] == ["float32"]


def test_rows_of_another_host_stay_and_are_not_done_here(here: dict[str, Any]) -> None:
    for host in ("h", "other"):
        here["host"] = host
        assert Kept("float32").done("m", 4) == []
        Kept("float32").put("m", 4, [{"model": "m", "batch": 4, "dtype": "float32"}])
    assert [row["host"] for row in Kept("float32").rows] == ["h", "other"]


def test_random_adapters_differ_and_fit_the_bank() -> None:
    backbone = make_backbone("vit")
    first, second = random_adapters(backbone, 2)
    assert first.row.shape == (2, backbone.sites.total_width)
    assert not torch.equal(first.row, second.row)
