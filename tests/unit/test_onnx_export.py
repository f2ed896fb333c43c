"""Exported graphs give in onnxruntime what our executor gives, also for a batch of distinct tasks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load

from adapters.errors import AdapterIncompatible
from adapters.file import Adapter, digest, write_adapter
from adapters.folding import fold_adapter
from adapters.merged_file import merge_checked
from adapters.onnx_export import METADATA_KEY, export_merged, export_multi_task, write_tasks
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone, load_backbone
from server.cli import main
from tests.models import SIZE, make_adapter, make_backbone, unmergeable

pytestmark = pytest.mark.usefixtures("one_thread")

# one of every family, and what makes graphs differ: parts of qkv, gates, squeeze-excitation
FAMILIES = ("vit", "dinov3", "swin", "swin_v2", "convnext", "res_mlp", "g_mlp", "as_mlp", "mobilenet")
TOLERANCE = 2e-5  # of the largest logit, as between our executors
NAME, SOURCE = "vit_tiny_patch16_224", "random:0"
Images = NDArray[np.uint8]


def make_images(count: int) -> Images:
    return np.random.default_rng(5).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_tasks(graph: Path, file: bytes, tasks: list[str], images: Images) -> list[NDArray[np.float32]]:
    """Do what a client does: stack the tasks' rows, run, apply each task's head."""
    stored = load(file)
    rows = np.stack([stored[f"{task}/row"] for task in tasks])
    (features,) = session(graph).run(None, {"images": images, "rows": rows})
    return [
        stored[f"{task}/head.weight"] @ feature + stored[f"{task}/head.bias"]
        for task, feature in zip(tasks, features, strict=True)
    ]


def served(backbone: Backbone, adapters: list[Adapter], images: Images) -> list[NDArray[np.float32]]:
    executor = TorchExecutor(backbone, device="cpu", dtype="float32", slots=len(adapters))
    for slot, adapter in enumerate(adapters, start=1):
        executor.load(slot, fold_adapter(backbone, adapter))
    return executor.run(list(images), range(1, 1 + len(adapters)))


def assert_close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", FAMILIES)
def test_one_graph_answers_a_batch_of_distinct_tasks_as_the_server_does(kind: str, tmp_path: Path) -> None:
    backbone, images = make_backbone(kind), make_images(5)
    adapters = [make_adapter(backbone, seed=seed, classes=2 + seed) for seed in range(5)]
    names = [f"task-{seed}" for seed in range(5)]
    export_multi_task(backbone, tmp_path / "graph.onnx")
    file = write_tasks(backbone, {n: (a, "d" * 64) for n, a in zip(names, adapters, strict=True)})
    got = run_tasks(tmp_path / "graph.onnx", file, names, images)
    for ours, theirs in zip(served(backbone, adapters, images), got, strict=True):
        assert_close(theirs, ours)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_merged_graph_answers_as_the_server_does(kind: str, tmp_path: Path) -> None:
    backbone, images = make_backbone(kind), make_images(3)
    adapter = make_adapter(backbone, without=unmergeable(kind, backbone))
    export_merged(merge_checked(backbone, adapter), backbone, adapter, "d" * 64, tmp_path / "graph.onnx")
    (logits,) = session(tmp_path / "graph.onnx").run(None, {"images": images})
    for ours, theirs in zip(served(backbone, [adapter] * 3, images), logits, strict=True):
        assert_close(theirs, ours)


def test_an_adapter_of_another_backbone_gets_no_rows() -> None:
    other = make_adapter(make_backbone("vit", seed=1))
    with pytest.raises(AdapterIncompatible, match="fingerprint"):
        write_tasks(make_backbone("vit"), {"pets": (other, "d" * 64)})


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*arguments: object) -> Result:
        words = ["ssfserve", "export", *map(str, arguments), "--backbone-source", SOURCE]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run_main


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone(NAME, source=SOURCE, input_size=SIZE)


@pytest.fixture
def files(tmp_path: Path, tiny: Backbone) -> list[Path]:
    paths = [tmp_path / "pets.safetensors", tmp_path / "birds.safetensors"]
    for seed, path in enumerate(paths):
        path.write_bytes(write_adapter(make_adapter(tiny, seed=seed, classes=3 + seed, std=0.1)))
    return paths


def facts_of(graph: Path) -> dict[str, Any]:
    properties = {item.key: item.value for item in onnx.load(graph).metadata_props}
    facts: dict[str, Any] = json.loads(properties[METADATA_KEY])
    return facts


def test_export_writes_a_merged_graph_that_says_what_it_is(
    run: Run, files: list[Path], tmp_path: Path, tiny: Backbone
) -> None:
    out = tmp_path / "made/pets.onnx"
    result = run(files[0], "--out", out)
    assert result.code == 0, result.err
    assert session(out).run(None, {"images": make_images(4)})[0].shape == (4, 3)
    facts = facts_of(out)
    assert facts["labels"] == ["class 0", "class 1", "class 2"]
    assert facts["adapter"] == digest(files[0].read_bytes())
    assert facts["backbone"] == {"name": NAME, "fingerprint": tiny.fingerprint}
    assert facts["preprocessing"]["height"] == SIZE


def test_export_writes_one_graph_and_the_tasks_beside_it(run: Run, files: list[Path], tmp_path: Path) -> None:
    result = run(*files, "--multi-task", "--out", tmp_path / "all.onnx")
    assert result.code == 0, result.err
    tasks = tmp_path / "all.tasks.safetensors"
    got = run_tasks(tmp_path / "all.onnx", tasks.read_bytes(), ["pets", "birds", "pets"], make_images(3))
    assert [len(logits) for logits in got] == [3, 4, 3]
    with safe_open(tasks, "np") as opened:
        about = json.loads(opened.metadata()[METADATA_KEY])["tasks"]
    assert about["birds"] == {
        "adapter": digest(files[1].read_bytes()),
        "labels": [f"class {i}" for i in range(4)],
    }

    later = tmp_path / "later.safetensors"
    assert run(files[1], "--multi-task", "--tasks-only", "--out", later).code == 0
    again = run_tasks(tmp_path / "all.onnx", later.read_bytes(), ["birds"], make_images(3)[1:2])
    assert_close(again[0], got[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "x.onnx"), "--multi-task"),
        (("--out", "x.onnx", "--tasks-only"), "only with --multi-task"),
        (("--out", "all.onnx", "--multi-task"), "--force overwrites it"),
    ],
)
def test_a_wrong_option_is_named(
    run: Run,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.tasks.safetensors").write_bytes(b"precious")
    result = run(*files, *options)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert (tmp_path / "all.tasks.safetensors").read_bytes() == b"precious"


def test_without_the_package_it_says_what_to_install(
    run: Run, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = run(files[0], "--out", tmp_path / "x.onnx")
    assert result.code == 1 and "pip install onnx" in result.err
    assert not (tmp_path / "x.onnx").exists()


def test_rows_are_what_the_bank_holds(tiny: Backbone, files: list[Path]) -> None:
    adapter = make_adapter(tiny, seed=0, classes=3, std=0.1)
    stored = load(write_tasks(tiny, {"pets": (adapter, "d" * 64)}))
    assert torch.equal(torch.from_numpy(stored["pets/row"]), fold_adapter(tiny, adapter).row)
