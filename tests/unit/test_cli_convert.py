"""The verb `convert official`, run in this process on the golden checkpoints."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from timm.models import _registry

from adapters.file import digest, read_adapter
from adapters.folding import fold_adapter
from backbone.load import load_backbone
from backbone.mixed import MixedModel
from server.cli import main
from tests.golden_data import GOLDEN, GOLDENS

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5  # logits are of order 3


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*arguments: object) -> Result:
        verb = ("inspect",) if len(arguments) == 1 else ("convert", "official")
        monkeypatch.setattr(sys, "argv", ["ssfserve", *verb, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run_main


@pytest.fixture(autouse=True, scope="module")
def small_models() -> Iterator[None]:
    """Let timm know the goldens' small models by a name."""
    known = dict(_registry._model_entrypoints)
    for family, golden in GOLDENS.items():

        def make(pretrained: bool = False, golden: Any = golden, **given: Any) -> torch.nn.Module:
            return timm.create_model(golden.name, pretrained, **{**golden.arguments, **given})

        _registry._model_entrypoints[f"golden_{family}"] = make
    yield
    _registry._model_entrypoints.clear()
    _registry._model_entrypoints.update(known)


@pytest.mark.parametrize("family", GOLDENS)
def test_a_checkpoint_becomes_a_backbone_and_an_adapter_that_serve(
    run: Run, tmp_path: Path, family: str
) -> None:
    out, rebuilt = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    where = ("--backbone", f"golden_{family}", "--input-size", "64", "--out", out, "--weights", "raw")
    result = run(GOLDEN / f"{family}.pth", *where, "--backbone-out", rebuilt)
    assert result.code == 0, result.err
    assert "raw weights" in result.out and digest(out.read_bytes())[:12] in result.out
    backbone = load_backbone(f"golden_{family}", source=str(rebuilt), input_size=64)
    folded = fold_adapter(backbone, read_adapter(out.read_bytes()))
    arrays = np.load(GOLDEN / f"{family}.npz")
    images = torch.from_numpy(arrays["input"])
    with torch.no_grad():
        features = MixedModel(backbone.model, backbone.sites)(images, folded.row.expand(4, -1, -1))
    got = features @ folded.head.weight.T + folded.head.bias
    torch.testing.assert_close(got, torch.from_numpy(arrays["logits"]), rtol=0, atol=TOLERANCE)

    again = tmp_path / "again.safetensors"
    where = (*where[:4], "--out", again, *where[6:])
    assert run(GOLDEN / f"{family}.pth", *where, "--backbone-source", rebuilt).code == 0
    one, other = read_adapter(out.read_bytes()), read_adapter(again.read_bytes())
    assert all(torch.equal(one.tensors()[name], tensor) for name, tensor in other.tensors().items())


VIT = (GOLDEN / "vit.pth", "--backbone", "golden_vit", "--input-size", "64")


def test_classes_are_named_by_a_file(run: Run, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"kind {index}" for index in range(7)))
    out = tmp_path / "a.safetensors"
    result = run(*VIT, "--out", out, "--backbone-out", tmp_path / "b", "--labels", labels)
    assert result.code == 0 and "ema weights" in result.out
    assert read_adapter(out.read_bytes()).manifest.labels[2] == "kind 2"
    shown = run(out).out
    assert "torch/cifar100, images not recorded" in shown and "top1_of_the_trainer 93.99" in shown


def test_another_backbone_leaves_no_file(run: Run, tmp_path: Path) -> None:
    result = run(*VIT, "--out", tmp_path / "a", "--backbone-source", "random")
    assert result.code == 1 and "--backbone-out writes them to a file" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--out", "--backbone-out"])
def test_no_file_is_overwritten_silently(run: Run, tmp_path: Path, option: str) -> None:
    files = {"--out": tmp_path / "a", "--backbone-out": tmp_path / "b"}
    files[option].write_bytes(b"precious")
    result = run(*VIT, *(part for pair in files.items() for part in pair))
    assert result.code == 2 and f"Invalid value for {option}" in result.err
    assert list(tmp_path.iterdir()) == [files[option]] and files[option].read_bytes() == b"precious"
