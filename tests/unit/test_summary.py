"""What `ssfserve inspect` says about an adapter file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from adapters.errors import AdapterFileInvalid
from adapters.file import Adapter, digest, write_adapter
from adapters.manifest import Training
from adapters.summary import block_of, kind_of, summarise
from server.cli import build
from tests.builders import make_manifest

WIDTHS = {"blocks.0.norm1": 2, "blocks.0.attn.qkv": 6, "blocks.1.norm1": 2, "norm": 4}
TRAINING = Training(
    dataset="pets", train_images=30, val_images=5, seed=7, recipe={"lr": 0.01, "sites": None},
    metrics={"accuracy": 0.75}, packages={"torch": "2"}, command="ssfserve train pets", seconds=12.0,
)  # fmt: skip


def make_adapter(labels: tuple[str, ...] = ("cat", "dog")) -> Adapter:
    """Each γ is 1.5 in norms and 1.1 elsewhere; β is 0.2 in block 0 and absent elsewhere."""
    manifest = make_manifest(labels=labels, sites=tuple(WIDTHS.items()), head_width=3)
    return Adapter(
        manifest.model_copy(update={"training": TRAINING}),
        {name: torch.full((width,), 1.5 if "norm" in name else 1.1) for name, width in WIDTHS.items()},
        {name: torch.full((width,), 0.2) for name, width in WIDTHS.items() if name.startswith("blocks.0")},
        torch.ones(len(labels), 3),
        torch.zeros(len(labels)),
    )


@pytest.mark.parametrize(
    ("site", "block", "kind"),
    [
        ("blocks.3.attn.qkv", "blocks.3", "attn.qkv"),
        ("blocks.2.1.bn1", "blocks.2.1", "bn1"),
        ("patch_embed.proj", "patch_embed.proj", "patch_embed.proj"),
        ("norm", "norm", "norm"),
        ("stem.0", "stem.0", "stem.0"),
    ],
)
def test_site_has_a_block_and_a_kind(site: str, block: str, kind: str) -> None:
    assert (block_of(site), kind_of(site)) == (block, kind)


def test_distances_are_root_mean_squares_over_channels() -> None:
    summary = summarise(write_adapter(make_adapter()))
    blocks = {moved.name: moved for moved in summary.blocks}
    assert list(blocks) == ["blocks.0", "blocks.1", "norm"]
    assert blocks["blocks.0"].channels == 8
    assert blocks["blocks.0"].scale == pytest.approx(((2 * 0.5**2 + 6 * 0.1**2) / 8) ** 0.5)
    assert blocks["blocks.0"].shift == pytest.approx(0.2)
    assert blocks["blocks.1"].shift == 0
    kinds = {moved.name: moved.scale for moved in summary.kinds}
    assert kinds == pytest.approx({"norm1": 0.5, "attn.qkv": 0.1, "norm": 0.5})


def test_sizes_and_norms_are_counted() -> None:
    data = write_adapter(make_adapter(), dtype=torch.bfloat16)
    summary = summarise(data)
    assert (summary.size, summary.digest, summary.dtypes) == (len(data), digest(data), ("bfloat16",))
    assert (summary.ssf_parameters, summary.head_parameters) == (14 + 8, 8)
    assert summary.head_weight_norm == pytest.approx(6**0.5)


def test_site_alone_keeps_the_sign_out() -> None:
    below = replace(make_adapter(), scale={name: torch.full((w,), 0.5) for name, w in WIDTHS.items()})
    assert {moved.scale for moved in summarise(write_adapter(below)).sites} == {0.5}


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[..., str]:
    def run(adapter: Adapter, *options: str) -> str:
        path = tmp_path / "pets.safetensors"
        path.write_bytes(write_adapter(adapter))
        result = CliRunner().invoke(build(["inspect"]), ["inspect", str(path), *options])
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_text_names_what_a_person_asks_for(inspect: Callable[..., str]) -> None:
    text = inspect(make_adapter())
    for said in ("vit_tiny_patch16_224", "cat, dog", "30 images", "accuracy 0.75", "ssfserve train pets"):
        assert said in text


def test_bars_grow_with_the_distance(inspect: Callable[..., str]) -> None:
    rows = inspect(make_adapter()).partition("moved, by op")[2].splitlines()
    bars = {row.split()[0]: row.count("█") for row in rows[1:]}
    assert bars["norm"] == 16
    assert bars["attn.qkv"] == 16 // 5 + 16  # γ moved a fifth as far; its β is the largest


def test_json_is_the_whole_summary(inspect: Callable[..., str]) -> None:
    value = json.loads(inspect(make_adapter(), "--json"))
    assert value["manifest"]["training"]["seed"] == 7
    assert [site["name"] for site in value["sites"]] == list(WIDTHS)


def test_long_lists_are_cut_in_text(inspect: Callable[..., str]) -> None:
    text = inspect(make_adapter(tuple(f"label{i}" for i in range(500))))
    assert "… 488 more" in text
    assert "label400" not in text


def test_label_cannot_steer_the_terminal(inspect: Callable[..., str]) -> None:
    text = inspect(make_adapter(("cat\x1b[2J", "dog\r\x07\x9b")))
    assert all(line.isprintable() for line in text.split("\n"))


def test_linear_probe_has_no_bars(inspect: Callable[..., str]) -> None:
    manifest = make_adapter().manifest.model_copy(update={"sites": (), "training": None, "method": "linear"})
    assert "moved" not in inspect(replace(make_adapter(), manifest=manifest, scale={}, shift={}))


def test_unmoved_adapter_has_empty_bars(inspect: Callable[..., str]) -> None:
    still = {name: torch.ones(width) for name, width in WIDTHS.items()}
    assert "█" not in inspect(replace(make_adapter(), scale=still, shift={}))


def test_file_that_is_no_adapter_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"nothing")
    result = CliRunner().invoke(build(["inspect"]), ["inspect", str(path)])
    assert isinstance(result.exception, AdapterFileInvalid)
