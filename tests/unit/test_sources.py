from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.data import load_dataset, split
from adapters.errors import DataInvalid
from adapters.sources import open_data
from backbone.preprocess import ImageSpec, preprocess
from tests.builders import IMAGENET_MEAN, IMAGENET_STD
from tests.pictures import write_folder

SPEC = ImageSpec(16, 16, IMAGENET_MEAN, IMAGENET_STD)


def test_folders_and_csv_files_come_through_the_same_door(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tints", each=3)
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in folder.rglob("*.png")]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    known = load_dataset(folder, SPEC)
    for name in ("tints", "list.csv"):
        for part in ("train", "test"):
            opened = open_data(str(tmp_path / name), SPEC, part=part)
            assert torch.equal(opened.pixels, known.pixels)
            assert opened.digest == known.digest and opened.labels == known.labels and opened.fixed is None


def test_a_folder_gives_800_images_to_train_on_and_200_to_validate(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "tints", each=340))
    drawn, again = (open_data(folder, SPEC, protocol="1k") for _ in range(2))
    assert drawn.digest == again.digest and drawn.source.name == "tints (1k)"
    assert len({original.name for original in drawn.originals}) == len(drawn) == 1000
    for seed in (0, 1):
        parted = split(drawn, 0.5, seed)
        assert torch.equal(parted.train, torch.arange(800))
        assert torch.equal(parted.val, torch.arange(800, 1000))
    assert len(open_data(folder, SPEC, protocol="1k", part="test")) == 1020


def test_an_original_is_at_full_size_and_gives_the_same_pixels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tints", each=1)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "red/turned.jpg", exif=turned)
    dataset = open_data(str(folder), SPEC)
    original = dataset.original(3)
    assert dataset.originals[3].name == str(folder / "red/turned.jpg") and original.size == (50, 30)
    for index in range(4):
        pixels = torch.from_numpy(preprocess(dataset.original(index), SPEC))
        assert torch.equal(pixels, dataset.pixels[index])


def test_an_original_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tints", each=1)
    dataset = open_data(str(folder), SPEC)
    (folder / "green/000.png").unlink()
    with pytest.raises(DataInvalid, match=r"green/000\.png: cannot be read as an image"):
        dataset.original(1)


def test_too_few_images_a_protocol_and_a_part_that_are_none_are_told(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "tints", each=3))
    with pytest.raises(DataInvalid, match="tints: has 9 images where the protocol 1k draws 1000"):
        open_data(folder, SPEC, protocol="1k")
    with pytest.raises(ValueError, match="1K is none of full, 1k"):
        open_data(folder, SPEC, protocol="1K")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="val is none of train, test"):
        open_data(folder, SPEC, part="val")  # type: ignore[arg-type]
