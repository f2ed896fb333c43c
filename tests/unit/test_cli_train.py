"""The verbs `train` and `eval`, run in this process on a small random backbone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from adapters.file import digest, read_adapter
from adapters.recipe import Recipe
from server.cli import main
from server.cli.recipe_options import NOT_HERE
from tests.pictures import write_folder
from tests.torchvision_folders import write_eurosat

NAME, SOURCE, SIZE = "vit_tiny_patch16_224", "random:0", "32"
BACKBONE = ("--backbone", NAME, "--backbone-source", SOURCE, "--input-size", SIZE)
QUICK = ("--epochs", "2", "--dtype", "float32", "--threads", "1", "--val-fraction", "0.25")


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tints", each=8)


def test_train_writes_a_file_that_eval_measures(run: Run, folder: Path, tmp_path: Path) -> None:
    out, png = tmp_path / "made/tints.safetensors", tmp_path / "matrix.png"
    trained = run("train", folder, "--out", out, *BACKBONE, *QUICK, "--lr", "0.02", "--head-lr", "0.02")
    assert trained.code == 0, trained.err
    assert "epoch 2: train loss" in trained.out
    assert f"{out} (" in trained.out and digest(out.read_bytes())[:12] in trained.out
    record = read_adapter(out.read_bytes()).manifest.training
    assert record is not None and record.command is not None
    assert record.command.startswith(f"ssfserve train {folder} --out {out} --backbone {NAME}")

    measured = run("eval", out, folder, *BACKBONE, "--dtype", "float32", "--json", "--png", png)
    assert measured.code == 0, measured.err
    found = json.loads(measured.out)
    assert found["images"] == 24 and sum(map(sum, found["confusion"])) == 24
    assert found["accuracy"] > 0.9
    assert found["digest"] == digest(out.read_bytes())
    assert png.read_bytes().startswith(b"\x89PNG")

    plain = run("eval", out, folder, *BACKBONE, "--reference", "--json")
    assert json.loads(plain.out)["loss"] == pytest.approx(found["loss"], rel=1e-3)
    unknown = run("eval", out, folder, *BACKBONE, "--dtype", "int4")
    assert unknown.code == 2 and "is none of auto, bfloat16, float32, int8" in " ".join(unknown.err.split())
    text = run("eval", out, folder, *BACKBONE, "--dtype", "bfloat16")
    assert (
        text.out.startswith("accuracy ") and "true \\ predicted" in text.out and "bfloat16 on cpu" in text.out
    )


def test_the_same_command_gives_the_same_numbers(run: Run, folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        assert run("train", folder, "--out", file, *BACKBONE, *QUICK, "--seed", "7").code == 0
    one, other = (read_adapter(file.read_bytes()) for file in files)
    assert all(torch.equal(one.tensors()[name], tensor) for name, tensor in other.tensors().items())
    assert one.manifest.training is not None and one.manifest.training.seed == 7


def test_linear_writes_a_file_without_sites(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe.safetensors"
    result = run("train", folder, "--out", out, *BACKBONE, "--method", "linear", "--epochs", "20")
    assert result.code == 0, result.err
    manifest = read_adapter(out.read_bytes()).manifest
    assert manifest.method == "linear" and manifest.sites == ()


def test_the_file_is_named_after_the_task_and_never_overwritten_silently(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets.safetensors").write_bytes(b"precious")
    refused = run("train", folder, "--task", "pets", *BACKBONE, *QUICK)
    assert refused.code == 2 and "--force overwrites it" in refused.err
    assert (tmp_path / "pets.safetensors").read_bytes() == b"precious"
    assert run("train", folder, "--task", "pets", *BACKBONE, *QUICK, "--force").code == 0
    assert read_adapter((tmp_path / "pets.safetensors").read_bytes()).manifest.labels == (
        "blue",
        "green",
        "red",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "0"), "--epochs"),
        (("--augment", "mirror"), "no augmentation mirror"),
        (("--method", "lora"), "--method"),
        (("--val-fraction", "1.5"), "--val-fraction"),
        (("--store", "int8"), "--store"),
        (("--method", "linear", "--sites", "norm"), "linear trains no sites"),
        (("--sites", "blocks.99.*"), "no site matches"),
        (("--method", "norm", "--sites", "blocks.0.attn.qkv"), "norm trains none of them"),
        (("--device", "wobble"), "is none of auto, cpu, cuda"),
        (("--dtype", "wobble"), "is none of auto, bfloat16"),
        (("--dtype", "int8"), "is none of auto, bfloat16"),
        (("--warmup", "1e308"), "--warmup"),
    ],
)
def test_a_wrong_option_is_named(run: Run, folder: Path, options: tuple[str, ...], message: str) -> None:
    result = run("train", folder, "--out", folder / "x.safetensors", *BACKBONE, *options)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())


def test_a_damaged_image_is_one_line_and_leaves_no_file(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "red/003.png").write_bytes(b"junk")
    result = run("train", folder, "--out", tmp_path / "x.safetensors", *BACKBONE, *QUICK)
    assert result.code == 1
    assert result.err.startswith("ssfserve: ") and "red/003.png: cannot be read as an image" in result.err
    assert list(tmp_path.glob("*x.safetensors*")) == []


def test_eval_refuses_classes_the_adapter_does_not_know(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    assert run("train", folder, "--out", out, *BACKBONE, *QUICK).code == 0
    (folder / "red").rename(folder / "crimson")
    result = run("eval", out, folder, *BACKBONE)
    assert result.code == 1 and "does not know: crimson" in result.err


def test_eval_refuses_a_folder_that_is_not_there_before_it_works(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.safetensors").touch()  # no adapter, which would be told next
    png = tmp_path / "no" / "x.png"
    result = run("eval", tmp_path / "x.safetensors", folder, "--png", png, *BACKBONE)
    assert result.code == 2 and "Invalid value for --png" in result.err


def test_copies_are_warned_of(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "red/copy.png").write_bytes((folder / "red/000.png").read_bytes())
    result = run("train", folder, "--out", tmp_path / "x.safetensors", *BACKBONE, *QUICK)
    assert result.code == 0 and "1 images are copies of others" in result.err


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from server.cli import build; build(['train']); build(['eval']);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_are_the_fields_of_a_recipe(run: Run) -> None:
    shown = run("train", "--help").out
    for name in Recipe.model_fields.keys() - NOT_HERE:
        assert f"--{name.replace('_', '-')}" in shown, name


@pytest.mark.parametrize("method", ["bias", "norm"])
def test_a_small_method_is_trained_as_any_other(method: str, run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run("train", folder, "--out", out, *BACKBONE, *QUICK, "--method", method, "--test", folder)
    assert result.code == 0, result.err
    assert "images/s in training" in result.out
    record = read_adapter(out.read_bytes()).manifest.training
    assert record is not None
    assert f"test {record.metrics['test_accuracy']:.4f}" in result.out
    assert record.metrics["images_per_s"] > 0
    assert record.metrics["peak_memory_bytes"] >= 0  # none, where this process had enough left over


def test_a_recipe_by_name_can_be_changed_by_options(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    options = ("--recipe", "vtab/dtd", "--epochs", "1", "--cooldown", "0", "--dtype", "float32")
    result = run("train", folder, "--out", out, *BACKBONE, *options)
    assert result.code == 0 and "resized images without keeping their aspect" in result.err
    record = read_adapter(out.read_bytes()).manifest.training
    assert record is not None
    recipe = record.recipe
    assert (recipe["preset"], recipe["lr"], recipe["epochs"]) == ("vtab/dtd", 5e-3, 1)
    refused = run("train", folder, "--out", tmp_path / "y", *BACKBONE, "--recipe", "vtab/none")
    assert refused.code == 2 and "no recipe vtab/none" in " ".join(refused.err.replace("│", " ").split())


def test_several_seeds_share_a_split_and_the_best_counts(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run("train", folder, "--out", out, *BACKBONE, *QUICK, "--seeds", "2", "--seed", "5")
    assert result.code == 0, result.err
    assert "2 seeds: validation accuracy" in result.out and " ± " in result.out
    again = run("train", folder, "--out", tmp_path / "x-seed5.safetensors", *BACKBONE, *QUICK)
    assert again.code == 2 and "--force overwrites it" in again.err
    out.unlink()
    refused = run("train", folder, "--out", out, *BACKBONE, *QUICK, "--seeds", "2", "--seed", "5")
    assert refused.code == 2 and "--force overwrites it" in refused.err
    (tmp_path / "x-seed6.safetensors").write_bytes(b"junk")
    resumed = run("train", folder, "--out", out, *BACKBONE, *QUICK, "--seeds", "2", "--seed", "5", "--resume")
    assert resumed.code == 0 and resumed.out.count("\nepoch 2:") == 1
    files = {path.name: path.read_bytes() for path in tmp_path.glob("x*.safetensors")}
    assert set(files) == {"x.safetensors", "x-seed5.safetensors", "x-seed6.safetensors"}
    records = [read_adapter(data).manifest.training for name, data in files.items() if "seed" in name]
    assert all(record is not None and record.recipe["split_seed"] == 5 for record in records)
    assert files["x.safetensors"] in (files["x-seed5.safetensors"], files["x-seed6.safetensors"])


def test_a_training_that_was_killed_is_resumed(run: Run, folder: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "x.safetensors", tmp_path / "whole.safetensors"
    command = ("train", folder, "--out", out, *BACKBONE, *QUICK, "--epochs", "6")
    arguments = [sys.executable, "-m", "server.cli", *map(str, command)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3"):
            process.kill()
            break
    process.stdout.close()
    process.wait()
    assert not out.exists() and (tmp_path / ".x.safetensors.training").exists()
    refused = run(*command)
    assert refused.code == 2
    assert "begun and not finished; --resume goes on" in " ".join(refused.err.replace("│", " ").split())
    resumed = run(*command, "--resume")
    assert resumed.code == 0 and "epoch 1:" not in resumed.out and "epoch 6:" in resumed.out
    assert not (tmp_path / ".x.safetensors.training").exists()
    assert run("train", folder, "--out", whole, *BACKBONE, *QUICK, "--epochs", "6").code == 0
    one, other = (read_adapter(file.read_bytes()).tensors() for file in (out, whole))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_method_for_comparison_says_that_no_server_takes_it(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run("train", folder, "--out", out, *BACKBONE, *QUICK, "--method", "full", "--test", folder)
    assert result.code == 0 and "full makes no adapter" in result.err and ", test " in result.out
    assert "no server takes it" in run("inspect", out).err


def test_a_set_of_torchvision_is_trained_on_and_tested_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_eurosat(tmp_path / "sets", each=10)
    monkeypatch.chdir(tmp_path)
    sets = ("torchvision:eurosat", "--data-root", tmp_path / "sets")
    result = run("train", *sets, "--test", "torchvision:eurosat", *BACKBONE, *QUICK, "--augment", "none")
    assert result.code == 0, result.err
    record = read_adapter((tmp_path / "eurosat.safetensors").read_bytes()).manifest.training
    assert record is not None and record.dataset == "torchvision:eurosat"
    assert record.train_images + record.val_images == 80
    measured = run("eval", "eurosat.safetensors", *sets, *BACKBONE, "--dtype", "float32", "--json")
    found = json.loads(measured.out)
    assert found["images"] == 20
    assert found["accuracy"] == pytest.approx(record.metrics["test_accuracy"])
    missing = run("train", "torchvision:dtd", "--data-root", tmp_path / "none", *BACKBONE)
    assert missing.code == 1 and "none is no folder" in missing.err
    unknown = run("train", "torchvision:birds", "--data-root", tmp_path, *BACKBONE)
    assert unknown.code == 1 and "birds" in unknown.err


def test_a_file_that_cannot_be_written_is_one_line(run: Run, folder: Path) -> None:
    result = run(
        "train", folder, "--out", "/proc/none/x.safetensors", *BACKBONE, *QUICK, "--method", "linear"
    )
    assert result.code == 1 and result.err.startswith("ssfserve: /proc/none: ")
