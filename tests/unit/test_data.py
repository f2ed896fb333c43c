import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.augment import AUGMENTATIONS, SHIFT_SHARE, augment
from adapters.augment_names import parse_augment
from adapters.data import load_dataset, split
from adapters.errors import DataInvalid
from adapters.listing import list_images
from backbone.preprocess import ImageSpec, preprocess
from tests.builders import IMAGENET_MEAN, IMAGENET_STD
from tests.pictures import write_folder

SPEC = ImageSpec(32, 32, IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", labels=("cat", "dog"), each=3)


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text)
    return path


def test_a_class_is_a_folder_and_classes_are_in_order(folder: Path) -> None:
    listing = list_images(folder)
    assert listing.labels == ("cat", "dog")
    assert [(path.name, target) for path, target in listing.images] == [
        (f"{n:03d}.png", target) for target in (0, 1) for n in range(3)
    ]


def test_pixels_are_those_that_serving_feeds_the_backbone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (57, 91, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a/wide.png")
    Image.fromarray(noise[:, :40, 0]).save(tmp_path / "b/grey.png")
    dataset = load_dataset(tmp_path, SPEC)
    for original, pixels in zip(dataset.originals, dataset.pixels, strict=True):
        assert torch.equal(pixels, torch.from_numpy(preprocess(original.read(), SPEC)))


def test_csv_and_folder_agree(folder: Path) -> None:
    rows = [
        f"{path.relative_to(folder)},{path.parent.name}"
        for path in sorted(folder.rglob("*.png"), reverse=True)
    ]
    by_csv = load_dataset(
        write_csv(folder.parent, "path,label\n" + "\n".join(f"pets/{r}" for r in rows)), SPEC
    )
    by_folder = load_dataset(folder, SPEC)
    assert by_csv.labels == by_folder.labels
    assert torch.equal(by_csv.pixels, by_folder.pixels)
    assert torch.equal(by_csv.targets, by_folder.targets)
    assert by_csv.digest == by_folder.digest


def test_digest_tells_contents_and_labels_apart(folder: Path) -> None:
    before = load_dataset(folder, SPEC).digest
    (folder / "cat/000.png").rename(folder / "cat/0000.png")
    assert load_dataset(folder, SPEC).digest == before
    (folder / "cat/0000.png").rename(folder / "dog/0000.png")
    assert load_dataset(folder, SPEC).digest != before


def test_copies_are_counted(folder: Path) -> None:
    assert load_dataset(folder, SPEC).copies == 0
    (folder / "dog/copy.png").write_bytes((folder / "cat/000.png").read_bytes())
    assert load_dataset(folder, SPEC).copies == 1


def test_hidden_and_other_files_are_passed_over(folder: Path) -> None:
    (folder / "README.txt").write_text("not an image")
    (folder / "cat/.DS_Store.png").write_bytes(b"junk")
    (folder / ".cache").mkdir()
    (folder / "cat/nested").mkdir()
    (folder / "cat/000.png").rename(folder / "cat/nested/x.PNG")
    assert len(list_images(folder).images) == 6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "empty").mkdir(), r"empty: holds no image"),
        (lambda f: (f / "stray.png").write_bytes(b""), r"stray\.png: is an image outside every class folder"),
        (lambda f: (f / "cat").rename(f / "DOG"), r"differ only in case or spaces: DOG, dog"),
        (
            lambda f: (f / "dog/001.png").write_bytes(b"\x89PNG junk"),
            r"dog/001\.png: cannot be read as an image",
        ),
        (lambda f: os.truncate(f / "cat/002.png", 500), r"cat/002\.png: cannot be read as an image"),
        (
            lambda f: (f / "cat").rename(f.parent / "gone"),
            r"only the class dog; a classifier needs at least two",
        ),
    ],
    ids=["empty class", "stray image", "twin names", "not an image", "truncated", "one class"],
)
def test_faults_of_a_folder_are_named(folder: Path, damage: object, message: str) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(DataInvalid, match=message):
        load_dataset(folder, SPEC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\ncat/000.png,cat\n", "has no column path in its first line"),
        ("", "has no column path and no column label"),
        (
            "path,label\ncat/000.png,cat\ncat/404.png,cat\n",
            r"line 3: names cat/404\.png, which does not exist",
        ),
        (
            "path,label\ncat/000.png,cat\ndog/000.png,dog\ncat/000.png,dog\n",
            r"line 4: .* again, as line 2 did",
        ),
        ("path,label\ncat/000.png,cat\ndog/000.png\n", "line 3: has not as many fields"),
        ("path,label\ncat/000.png,cat\ndog/000.png, \n", "line 3: has no label"),
        ("path,label\n", "has no class"),
        ('path,label\n"cat/000.png,cat\n', "cannot be read as CSV"),
    ],
)
def test_faults_of_a_csv_are_named_by_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataInvalid, match=message):
        list_images(write_csv(folder, text))


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(DataInvalid, match="neither a folder of class folders nor"):
        list_images(folder / "cat/000.png")


@pytest.mark.parametrize(("fraction", "held"), [(0.001, 1), (0.25, 2), (0.5, 4), (0.999, 6)])
def test_split_holds_out_a_share_of_every_class(tmp_path: Path, fraction: float, held: int) -> None:
    dataset = load_dataset(write_folder(tmp_path / "x", each=7), SPEC)
    parted = split(dataset, fraction, seed=3)
    assert sorted([*parted.train.tolist(), *parted.val.tolist()]) == list(range(21))
    assert torch.bincount(dataset.targets[parted.val]).tolist() == [held] * 3


def test_split_follows_the_seed(tmp_path: Path) -> None:
    dataset = load_dataset(write_folder(tmp_path / "x", each=7), SPEC)
    first, again, other = (split(dataset, 0.3, seed).val.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_class_of_one_image_cannot_be_split(folder: Path) -> None:
    for name in ("001.png", "002.png"):
        (folder / "dog" / name).unlink()
    with pytest.raises(DataInvalid, match="class dog has one image"):
        split(load_dataset(folder, SPEC), 0.2, seed=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_change_images_keep_their_form_and_follow_the_seed(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 28, 28), generator=g).to(torch.uint8)
    kept = images.clone()
    once, again = (augment(images, (name,), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(images, kept)
    assert once.dtype == torch.uint8 and once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, images)


def test_flips_and_turns_only_move_pixels() -> None:
    images = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4).repeat(64, 1, 1, 1)
    seen = {
        tuple(i.flatten().tolist()) for i in augment(images, ("dihedral",), torch.Generator().manual_seed(0))
    }
    assert len(seen) == 8
    assert {tuple(sorted(pixels)) for pixels in seen} == {tuple(range(48))}
    turned = augment(images, ("rotate180",), torch.Generator().manual_seed(0))
    assert {tuple(i.flatten().tolist()) for i in turned} == {
        tuple(images[0].flatten().tolist()),
        tuple(images[0].flip(1, 2).flatten().tolist()),
    }


def test_shift_moves_by_no_more_than_its_reach() -> None:
    side = 2 * SHIFT_SHARE
    images = torch.zeros(200, 3, side, side, dtype=torch.uint8)
    images[:, :, side // 2, side // 2] = 255
    moved = augment(images, ("shift",), torch.Generator().manual_seed(0))
    places = {tuple((i[0] == 255).nonzero()[0].tolist()) for i in moved}
    offsets = {y - side // 2 for y, _ in places} | {x - side // 2 for _, x in places}
    assert offsets == {-2, -1, 0, 1, 2}


def test_unknown_augmentation_is_named() -> None:
    assert parse_augment("none") == ()
    assert parse_augment(" flip, shift") == ("flip", "shift")
    with pytest.raises(ValueError, match="no augmentation mirror"):
        parse_augment("flip,mirror")
