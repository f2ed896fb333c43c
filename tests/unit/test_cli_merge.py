"""The verb `merge`: the file it writes is a plain timm checkpoint that computes what the adapter does."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from adapters.errors import ProbeMismatch
from adapters.file import Adapter, digest, read_adapter, write_adapter
from adapters.merged_file import MERGED_KEY, create_arguments, merge_checked, write_merged
from backbone.load import Backbone, load_backbone
from backbone.tuned import TunedModel
from server.cli import main
from tests.models import KINDS, SIZE, create_plain, make_adapter, make_backbone, unmergeable

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5  # of the largest logit: rounding of the weights and of another order of operations
NAME, SOURCE = "vit_tiny_patch16_224", "random:0"


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ssfserve", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run_main


@torch.no_grad()
def tuned_logits(backbone: Backbone, adapter: Adapter, images: Tensor) -> Tensor:
    tuned = TunedModel(backbone.model, backbone.sites)
    tuned.set_vectors(adapter.scale, adapter.shift)
    return tuned(images) @ adapter.head_weight.T + adapter.head_bias


def make_images(size: int = SIZE) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_loads_strictly_and_computes_what_the_adapter_does(kind: str) -> None:
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, without=unmergeable(kind, backbone))
    state = load(write_merged(merge_checked(backbone, adapter), backbone, adapter, "d" * 64))
    plain = create_plain(kind, num_classes=5)
    plain.load_state_dict(state, strict=True)
    expected = tuned_logits(backbone, adapter, make_images())
    with torch.no_grad():
        got = plain(make_images())
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_an_adapter_whose_probe_the_merged_model_misses_is_refused() -> None:
    backbone = make_backbone("vit")
    adapter = make_adapter(backbone)
    adapter.scale["norm"].mul_(1.01)
    with pytest.raises(ProbeMismatch):
        merge_checked(backbone, adapter)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone(NAME, source=SOURCE, input_size=SIZE)


@pytest.fixture
def file(tmp_path: Path, tiny: Backbone) -> Path:
    path = tmp_path / "pets.safetensors"
    path.write_bytes(write_adapter(make_adapter(tiny, std=0.1)))
    return path


def test_merge_writes_what_timm_loads(run: Run, file: Path, tmp_path: Path, tiny: Backbone) -> None:
    out = tmp_path / "made/merged.safetensors"
    result = run("merge", file, "--out", out, "--backbone-source", SOURCE)
    assert result.code == 0, result.err
    call = f"timm.create_model({NAME!r}, num_classes=5, img_size={SIZE}, checkpoint_path={str(out)!r})"
    assert call in result.out
    model = timm.create_model(NAME, num_classes=5, img_size=SIZE, checkpoint_path=str(out)).eval()
    expected = tuned_logits(tiny, read_adapter(file.read_bytes()), make_images())
    with torch.no_grad():
        torch.testing.assert_close(model(make_images()), expected, rtol=0, atol=TOLERANCE)


def test_the_file_says_what_it_is(run: Run, file: Path, tmp_path: Path, tiny: Backbone) -> None:
    out = tmp_path / "merged.safetensors"
    assert run("merge", file, "--out", out, "--backbone-source", SOURCE).code == 0
    with safe_open(out, "pt") as opened:
        facts = json.loads(opened.metadata()[MERGED_KEY])
    assert facts["labels"] == [f"class {index}" for index in range(5)]
    assert facts["adapter"] == digest(file.read_bytes())
    assert facts["backbone"] == {"name": NAME, "fingerprint": tiny.fingerprint}
    assert facts["create_model"] == {"model_name": NAME, "num_classes": 5, "img_size": SIZE}
    assert facts["preprocessing"]["height"] == SIZE and facts["ssfserve"]


def test_a_model_that_takes_any_size_is_created_without_one() -> None:
    assert "img_size" not in create_arguments(make_backbone("efficientnet"), 3)


def test_a_file_is_never_overwritten_silently(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    out.write_bytes(b"precious")
    refused = run("merge", file, "--out", out, "--backbone-source", SOURCE)
    assert refused.code == 2 and "--force overwrites it" in refused.err
    assert out.read_bytes() == b"precious"
    assert run("merge", file, "--out", out, "--backbone-source", SOURCE, "--force").code == 0
    assert len(load(out.read_bytes())) > 100


def test_an_adapter_is_never_overwritten_by_what_is_made_from_it(run: Run, file: Path) -> None:
    before = file.read_bytes()
    refused = run("merge", file, "--out", file, "--backbone-source", SOURCE, "--force")
    assert refused.code == 2 and "is what it is made from" in refused.err
    assert file.read_bytes() == before


@pytest.mark.parametrize("source", ["random:1", "nowhere.safetensors"])
def test_another_backbone_leaves_no_file(run: Run, file: Path, tmp_path: Path, source: str) -> None:
    result = run("merge", file, "--out", tmp_path / "merged", "--backbone-source", source)
    assert result.code == 1 and result.err.startswith("ssfserve: ")
    assert list(tmp_path.iterdir()) == [file]


def test_where_no_exact_merge_exists_the_site_is_named(run: Run, tmp_path: Path) -> None:
    name = "vit_xsmall_patch16_clip_224"
    backbone = load_backbone(name, source=SOURCE, input_size=SIZE)
    file = tmp_path / "clip.safetensors"
    file.write_bytes(write_adapter(make_adapter(backbone, std=0.02)))
    result = run("merge", file, "--out", tmp_path / "merged", "--backbone-source", SOURCE)
    assert result.code == 1
    assert "cannot be merged into plain weights: site patch_embed.proj has no bias" in result.err
    assert list(tmp_path.iterdir()) == [file]
