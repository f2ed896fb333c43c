"""A start compiles what the last one needed, and never runs anything else than what it needs itself."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.executors.base import FoldedAdapter
from backbone.executors.openvino_ahead import Ahead
from backbone.executors.openvino_executor import OpenVinoExecutor
from backbone.executors.openvino_files import Wanted, compile_graph
from backbone.executors.openvino_graph import key, load_graph
from backbone.heads import Head
from backbone.load import Backbone
from tests.models import SIZE, make_backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone("vit")


@pytest.fixture
def cache(tmp_path: Path, backbone: Backbone) -> Path:
    load_graph(backbone, tmp_path)
    return tmp_path


@pytest.fixture
def wanted(backbone: Backbone) -> Wanted:
    return Wanted(key(backbone), "float32", 1, 4)


def test_the_second_start_finds_it_compiled(cache: Path, wanted: Wanted) -> None:
    assert Ahead(cache, "settings").take(wanted) is None
    made = Ahead(cache, "settings").take(wanted)
    assert made is not None and set(made) == {1, 2, 4}


@pytest.mark.parametrize(
    "change",
    [{"graph": "other"}, {"dtype": "bfloat16"}, {"dtype": "int8"}, {"threads": 2}, {"largest_piece": 8}],
    ids=str,
)
def test_a_wrong_guess_is_not_used(cache: Path, wanted: Wanted, change: dict[str, object]) -> None:
    Ahead(cache, "settings").take(wanted)
    assert Ahead(cache, "settings").take(replace(wanted, **change)) is None  # type: ignore[arg-type]


def test_a_first_start_is_remembered(tmp_path: Path, wanted: Wanted) -> None:
    Ahead(tmp_path / "new/graphs", "settings").take(wanted)  # whose directory is made later
    assert list(tmp_path.glob("new/graphs/last-*.json"))


def test_other_settings_have_their_own_guess(cache: Path, wanted: Wanted) -> None:
    Ahead(cache, "settings").take(wanted)
    assert Ahead(cache, "others").take(wanted) is None
    assert Ahead(cache, "settings").take(wanted) is not None


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"graph": 1}', b"\xff"], ids=repr)
def test_a_damaged_note_is_no_guess(cache: Path, wanted: Wanted, note: bytes) -> None:
    Ahead(cache, "settings").take(wanted)
    next(cache.glob("last-*.json")).write_bytes(note)
    assert Ahead(cache, "settings").take(wanted) is None
    assert Ahead(cache, "settings").take(wanted) is not None


def test_a_damaged_graph_is_left_to_those_who_mend_it(cache: Path, wanted: Wanted) -> None:
    Ahead(cache, "settings").take(wanted)
    weights = cache / wanted.graph / "graph.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert Ahead(cache, "settings").take(wanted) is None


def test_it_answers_as_what_is_compiled_in_time(cache: Path, backbone: Backbone) -> None:
    def logits(ahead: Ahead | None) -> list[np.ndarray]:
        executor = OpenVinoExecutor(backbone, dtype="float32", slots=2, threads=1, cache=cache, ahead=ahead)
        weight = torch.from_numpy(np.eye(3, backbone.head_width, dtype=np.float32))
        executor.load(1, FoldedAdapter(backbone.fold.row({}, {}), Head(weight, torch.zeros(3))))
        images = list(np.random.default_rng(0).integers(0, 256, (5, 3, SIZE, SIZE), np.uint8))
        return executor.run(images, [1] * 5)

    first, second = logits(Ahead(cache, "settings")), logits(Ahead(cache, "settings"))
    assert [one.tobytes() for one in first] == [one.tobytes() for one in second]


def test_it_loads_no_torch() -> None:
    code = "import sys, backbone.executors.openvino_ahead; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_compiled_is_what_was_read(cache: Path, backbone: Backbone, wanted: Wanted) -> None:
    compiled = compile_graph(load_graph(backbone, cache), wanted)
    assert {size: tuple(graph.inputs[0].shape) for size, graph in compiled.items()} == {
        size: (size, 3, SIZE, SIZE) for size in (1, 2, 4)
    }
