import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backbone.executors import openvino_graph, openvino_lane
from backbone.executors.base import FoldedAdapter
from backbone.executors.choose import cpu_has_bfloat16
from backbone.executors.openvino_executor import OpenVinoExecutor
from backbone.executors.openvino_files import at_batch, options
from backbone.executors.openvino_graph import load_graph
from backbone.executors.openvino_lane import Lane, cut
from backbone.executors.quiet_openvino import openvino
from backbone.heads import Head
from backbone.load import Backbone
from tests.models import SIZE, make_backbone


@pytest.fixture
def backbone() -> Backbone:
    return make_backbone("vit")


def make_executor(backbone: Backbone, threads: int) -> OpenVinoExecutor:
    """Return an executor with one adapter, in slot 1: the plain backbone and a head."""
    executor = OpenVinoExecutor(backbone, dtype="float32", slots=1, threads=threads)
    weight = torch.randn(3, backbone.head_width, generator=torch.Generator().manual_seed(0))
    executor.load(1, FoldedAdapter(executor.bank.rows[0].clone(), Head(weight, torch.zeros(3))))
    return executor


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Backbone]:
    """Count conversions; the graph is a real one, of something small."""
    made: list[Backbone] = []

    def convert(backbone: Backbone) -> openvino.Model:
        made.append(backbone)
        images = openvino.opset13.parameter([-1, 3, SIZE, SIZE], np.uint8, name="images")
        rows = openvino.opset13.parameter([-1, 2], np.float32, name="rows")
        return openvino.Model([openvino.opset13.add(rows, np.float32(1))], [images, rows], "small")

    monkeypatch.setattr(openvino_graph, "convert", convert)
    return made


@given(images=st.integers(2, 200), streams=st.integers(1, 4), sizes=st.sampled_from([(2, 4), (2, 4, 8)]))
def test_a_batch_is_cut_into_pieces_that_cover_it_once(
    images: int, streams: int, sizes: tuple[int, ...]
) -> None:
    pieces = list(cut(images, streams, sizes))
    assert [i for p in pieces for i in range(p.start, p.start + p.count)] == list(range(images))
    assert all(p.size == min(size for size in sizes if size >= p.count) for p in pieces)
    assert len(pieces) <= streams * (1 + images // streams // sizes[-1])


def test_a_graph_is_converted_once(backbone: Backbone, tmp_path: Path, conversions: list[Backbone]) -> None:
    first = load_graph(backbone, tmp_path)
    again = load_graph(backbone, tmp_path)
    assert len(conversions) == 1
    assert first.inputs[1].partial_shape == again.inputs[1].partial_shape
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_weights_are_another_graph(tmp_path: Path, conversions: list[Backbone]) -> None:
    load_graph(make_backbone("vit", seed=1), tmp_path)
    load_graph(make_backbone("vit", seed=2), tmp_path)
    assert len(conversions) == 2


@pytest.mark.parametrize("file", ["graph.xml", "graph.bin", "sha256"])
def test_a_damaged_graph_is_made_anew(
    file: str,
    backbone: Backbone,
    tmp_path: Path,
    conversions: list[Backbone],
    caplog: pytest.LogCaptureFixture,
) -> None:
    load_graph(backbone, tmp_path)
    (damaged,) = tmp_path.glob(f"*/{file}")
    damaged.unlink()
    with caplog.at_level(logging.WARNING):
        load_graph(backbone, tmp_path)
    assert len(conversions) == 2 and "made anew" in caplog.text
    load_graph(backbone, tmp_path)
    assert len(conversions) == 2


@pytest.mark.parametrize("file", ["graph.xml", "graph.bin"])
def test_a_graph_whose_bytes_have_changed_is_made_anew(
    file: str, backbone: Backbone, tmp_path: Path, conversions: list[Backbone]
) -> None:
    load_graph(backbone, tmp_path)
    (damaged,) = tmp_path.glob(f"*/{file}")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    load_graph(backbone, tmp_path)
    assert len(conversions) == 2


def test_a_cache_that_cannot_be_written_costs_a_warning(
    backbone: Backbone, tmp_path: Path, conversions: list[Backbone], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert load_graph(backbone, tmp_path / "file" / "graphs") is not None
    assert len(conversions) == 1 and "not kept" in caplog.text


def test_a_failed_piece_leaves_no_lane_running(backbone: Backbone) -> None:
    executor = make_executor(backbone, threads=2)
    images = [np.full((3, SIZE, SIZE), value, np.uint8) for value in range(0, 190, 10)]
    answers = executor.run(images, [1] * len(images))
    wrong = [*images[:-1], np.zeros((3, SIZE, SIZE + 1), np.uint8)]
    for _ in range(executor.lanes + 1):  # a lane that is lost would be missed
        with pytest.raises(ValueError, match="broadcast"):
            executor.run(wrong, [1] * len(wrong))
    for _ in range(executor.lanes):
        assert np.array_equal(executor.run(images, [1] * len(images)), answers)


class SlowRequest:
    """A request that computes until it is waited for."""

    def __init__(self, *_: object) -> None:
        self.started = self.running = False

    def fill(self, images: list[str], *_: object) -> None:
        assert not self.running, "its buffers are read"
        if "wrong" in images:
            raise ValueError("a wrong image")

    def start(self) -> None:
        self.started = self.running = True

    def settle(self) -> None:
        self.running = False

    def collect(self, _: object) -> None:
        self.settle()


def test_an_error_leaves_no_request_running(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SlowRequest] = []
    monkeypatch.setattr(openvino_lane, "Request", lambda *_: made.append(SlowRequest()) or made[-1])
    lane: Any = Lane(dict.fromkeys((1, 2, 4)), 2, np.zeros((1, 2, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wrong image"):
        lane.run(["good"] * 18 + ["wrong"], [0] * 19, np.zeros((19, 2), np.float32))
    assert sum(request.started for request in made) > 2
    assert not any(request.running for request in made)


def test_a_batch_smaller_than_the_streams_is_answered(backbone: Backbone) -> None:
    executor = make_executor(backbone, threads=4)
    images = [np.full((3, SIZE, SIZE), value, np.uint8) for value in (0, 200)]
    alone = [executor.run([image], [1])[0] for image in images]
    assert np.array_equal(executor.run(images, [1, 1]), alone)


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU does not compute in bfloat16")
def test_no_token_is_computed_in_fp32_where_bfloat16_is_asked_for(backbone: Backbone) -> None:
    size = 2
    graph = at_batch(load_graph(backbone, None), size)
    compiled = openvino.Core().compile_model(graph, "CPU", options("bfloat16", 1, 1))
    tokens = [
        (op.get_friendly_name(), op.rt_info["outputPrecisions"].value)
        for op in compiled.get_runtime_model().get_ordered_ops()
        if ".blocks." in op.get_friendly_name() and op.get_output_shape(0)[0] == size
    ]
    assert tokens and [name for name, precision in tokens if precision != "bf16"] == []


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    program = """
import backbone.executors.openvino_executor
from backbone.executors.quiet_openvino import openvino
import openvino.tools.ovc.telemetry_utils as used
print(used.tm.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("telemetry_stub")
    assert not (tmp_path / "intel").exists()
