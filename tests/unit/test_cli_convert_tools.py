"""The verbs `convert state-dict` and `convert peft`, run in this process."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _registry

from adapters.file import digest, read_adapter
from adapters.folding import check_adapter
from backbone.load import load_backbone
from server.cli import main
from tests.golden_data import GOLDEN
from tests.models import KINDS

pytestmark = pytest.mark.usefixtures("one_thread")

PEFT = GOLDEN / "peft"
SOURCE = str(PEFT / "vit.safetensors")
TINY = ("--backbone", "tiny_vit_of_a_test", "--input-size", 32, "--backbone-source", SOURCE)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ssfserve", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run_main


@pytest.fixture(autouse=True, scope="module")
def small_model() -> Iterator[None]:
    """Let timm know the small ViT by a name."""
    name, arguments = KINDS["vit"]

    def make(pretrained: bool = False, **given: Any) -> torch.nn.Module:
        return timm.create_model(name, pretrained, **{**arguments, **given})

    _registry._model_entrypoints["tiny_vit_of_a_test"] = make
    yield
    del _registry._model_entrypoints["tiny_vit_of_a_test"]


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A checkpoint of the small ViT of which the biases were tuned."""
    backbone = load_backbone("tiny_vit_of_a_test", source=SOURCE, input_size=32)
    model = timm.create_model("tiny_vit_of_a_test", num_classes=3)
    state = model.state_dict() | backbone.model.state_dict()
    state |= {name: tensor + 0.1 for name, tensor in state.items() if name.endswith("fc1.bias")}
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


def test_a_tuned_timm_model_becomes_a_file_that_a_server_takes(run: Run, tmp_path: Path, tuned: Path) -> None:
    out, labels = tmp_path / "a.safetensors", tmp_path / "labels.txt"
    labels.write_text("ant\nbee\ncat\n")
    result = run("state-dict", tuned, *TINY, "--out", out, "--labels", labels)
    assert result.code == 0, result.err
    assert (
        "vit, method bias, 2 sites, 3 classes" in result.out and digest(out.read_bytes())[:12] in result.out
    )
    adapter = read_adapter(out.read_bytes())
    check_adapter(load_backbone("tiny_vit_of_a_test", source=SOURCE, input_size=32), adapter)
    assert adapter.manifest.labels == ("ant", "bee", "cat")
    record = adapter.manifest.training
    assert record is not None and record.recipe == {"converted_from": "tuned.safetensors"}
    assert record.command is not None and record.command.startswith("ssfserve convert state-dict ")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"ant\nbee\nant\n", "names ant twice"),
        (b"ant\n \ncat\n", "has an empty line"),
        (b"\xff\xfe\n", "is not UTF-8"),
    ],
)
def test_labels_that_are_none_are_told(
    run: Run, tmp_path: Path, tuned: Path, labels: bytes, message: str
) -> None:
    (tmp_path / "labels.txt").write_bytes(labels)
    result = run("state-dict", tuned, *TINY, "--out", tmp_path / "a", "--labels", tmp_path / "labels.txt")
    assert result.code == 2 and message in " ".join(result.err.replace("│", "").split())


def test_a_checkpoint_is_never_overwritten_by_what_is_made_from_it(run: Run, tuned: Path) -> None:
    before = tuned.read_bytes()
    result = run("state-dict", tuned, *TINY, "--out", tuned, "--force")
    assert result.code == 2 and "made from" in result.err and tuned.read_bytes() == before


def test_a_file_of_a_peft_folder_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(PEFT / "vit_v5_ia3", tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    before = file.read_bytes()
    result = run("peft", folder, *TINY, "--out", file, "--force")
    assert result.code == 2 and "made from" in result.err and file.read_bytes() == before


def test_weights_that_an_average_was_kept_of_are_told(run: Run, tmp_path: Path) -> None:
    head = {"head.weight": torch.ones(2, 32), "head.bias": torch.zeros(2)}
    torch.save({"state_dict": head, "state_dict_ema": head}, tmp_path / "x.pth.tar")
    result = run("state-dict", tmp_path / "x.pth.tar", *TINY, "--out", tmp_path / "a")
    assert result.code == 0 and "has averaged weights too (state_dict_ema)" in result.err
    assert "method linear, 0 sites" in result.out


def test_an_adapter_of_peft_becomes_a_file_with_its_record(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    result = run("peft", PEFT / "vit_v5_ln", *TINY, "--out", out)
    assert result.code == 0, result.err
    assert "vit, method norm, 5 sites, 5 classes" in result.out
    assert "trained on a model it does not name, whose weights must be those of" in result.out
    record = read_adapter(out.read_bytes()).manifest.training
    assert record is not None and record.recipe["converted_from"] == "vit_v5_ln"
    assert record.recipe["peft_type"] == "LN_TUNING" and record.recipe["peft_version"] == "0.21.2"


@pytest.mark.parametrize("verb", ["state-dict", "peft"])
def test_no_file_is_overwritten_silently(run: Run, tmp_path: Path, tuned: Path, verb: str) -> None:
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"precious")
    source = tuned if verb == "state-dict" else PEFT / "vit_v5_ia3"
    result = run(verb, source, *TINY, "--out", out)
    assert result.code == 2 and "--force overwrites it" in result.err and out.read_bytes() == b"precious"
    assert run(verb, source, *TINY, "--out", out, "--force").code == 0
    assert read_adapter(out.read_bytes()).manifest.backbone.name == "tiny_vit_of_a_test"


@pytest.mark.parametrize("verb", ["state-dict", "peft"])
def test_another_backbone_leaves_no_file(run: Run, tmp_path: Path, tuned: Path, verb: str) -> None:
    source, reason = tuned, "it began from another backbone"
    if verb == "peft":
        source, reason = PEFT / "dinov2_v5_ln", "expected one without LayerScales"
    result = run(verb, source, *TINY, "--backbone-source", "random:7", "--out", tmp_path / "a")
    assert result.code == 1 and reason in result.err and not (tmp_path / "a").exists()


def test_the_size_of_training_is_an_option(run: Run, tmp_path: Path) -> None:
    save_file({"head.weight": torch.ones(2, 32)}, tmp_path / "head.safetensors")
    out = tmp_path / "a"
    result = run("state-dict", tmp_path / "head.safetensors", *TINY, "--input-size", 48, "--out", out)
    assert result.code == 0, result.err
    assert read_adapter(out.read_bytes()).manifest.preprocessing.height == 48
