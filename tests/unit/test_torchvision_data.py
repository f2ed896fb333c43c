"""Torchvision's own classes over tiny folders in the layout they expect."""

import pickle
import re
import sys
import urllib.request
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

from adapters.data import Dataset, split
from adapters.errors import DataInvalid
from adapters.sources import open_data
from adapters.torchvision_sets import SETS, TorchvisionSet
from backbone.preprocess import ImageSpec, preprocess
from tests.builders import IMAGENET_MEAN, IMAGENET_STD
from tests.torchvision_folders import (
    CHECKED_BY_SUM,
    LAYOUTS,
    WANTS_H5PY,
    write_dtd,
    write_eurosat,
    write_pets,
)

SPEC = ImageSpec(16, 16, IMAGENET_MEAN, IMAGENET_STD)


def of_torchvision(
    known: TorchvisionSet, root: Path
) -> tuple[set[tuple[bytes, int]], set[tuple[bytes, int]]]:
    """Return what torchvision's class itself gives: pixels and targets to train on, and to test on."""

    def read(arguments: object) -> set[tuple[bytes, int]]:
        images = getattr(datasets, known.kind)(root, **arguments)  # type: ignore[arg-type]
        return {
            (preprocess(image, SPEC).tobytes(), int(target) - known.first)
            for image, target in (images[n] for n in range(len(images)))
        }

    train = read(known.train) | (read(known.val) if known.val is not None else set())
    return train, read(known.test) if known.test is not None else set()


def pairs(dataset: Dataset) -> set[tuple[bytes, int]]:
    return {
        (pixels.numpy().tobytes(), int(target))
        for pixels, target in zip(dataset.pixels, dataset.targets, strict=True)
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_and_targets_are_those_of_torchvisions_class(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    train, test = (
        open_data(f"torchvision:{name}", SPEC, root=tmp_path, part=part) for part in ("train", "test")
    )
    expected_train, expected_test = of_torchvision(SETS[name], tmp_path)
    if SETS[name].division is None:
        assert pairs(train) == expected_train
        assert pairs(test) == expected_test
    else:
        assert pairs(train) | pairs(test) == expected_train
        assert len(train) + len(test) == len(expected_train)
    assert not pairs(train) & pairs(test)
    for dataset in (train, test):
        assert len(dataset.labels) == SETS[name].classes == len(set(dataset.labels))
        assert set(dataset.targets.tolist()) == set(range(SETS[name].classes))
    assert train.source.name == f"torchvision:{name}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clevr_count", ("3", "4", "5", "6", "7", "8", "9", "10")),
        ("gtsrb", tuple(str(k) for k in range(43))),
        ("imagenette", ("tench", "English springer", "cassette player", "chain saw", "church")),
        ("rendered_sst2", ("negative", "positive")),
        ("oxford_iiit_pet", ("Great Kind00", "Great Kind01")),
        ("caltech101", ("kind000", "kind001")),
        ("sun397", ("place0/indoor", "place1/indoor")),
    ],
)
def test_labels_are_the_names_of_the_classes_or_their_numbers(
    name: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path)
    labels = open_data(f"torchvision:{name}", SPEC, root=tmp_path).labels
    assert labels[: len(expected)] == expected


def test_of_classes_with_the_same_name_each_is_told_by_its_number(tmp_path: Path) -> None:
    LAYOUTS["stanford_cars"](tmp_path)
    names = np.array(["Coupe", "Sedan", "Coupe", *(f"Car {k}" for k in range(3, 196))], dtype=object)
    savemat(tmp_path / "stanford_cars/devkit/cars_meta.mat", {"class_names": names})
    labels = open_data("torchvision:stanford_cars", SPEC, root=tmp_path).labels
    assert labels[:4] == ("Coupe (0)", "Sedan", "Coupe (2)", "Car 3")


def test_files_are_in_the_order_of_their_paths_whatever_the_file_system_says(tmp_path: Path) -> None:
    LAYOUTS["sun397"](tmp_path)
    names = [original.name for original in open_data("torchvision:sun397", SPEC, root=tmp_path).originals]
    assert names == sorted(names)


def test_the_digest_tells_pixels_apart_where_there_are_no_files(tmp_path: Path) -> None:
    LAYOUTS["mnist"](tmp_path)
    before = open_data("torchvision:mnist", SPEC, root=tmp_path)
    assert before.copies == 0 and open_data("torchvision:mnist", SPEC, root=tmp_path).digest == before.digest
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_data("torchvision:mnist", SPEC, root=tmp_path).digest != before.digest


@pytest.mark.parametrize("name", ["dtd", "oxford_iiit_pet", "caltech101", "mnist"])
def test_originals_travel_to_workers_without_images(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    dataset = open_data(f"torchvision:{name}", SPEC, root=tmp_path)
    sent = pickle.dumps(dataset.originals)
    assert len(sent) < 1000 + 60 * len(dataset)
    there = pickle.loads(sent)
    for index in (0, len(dataset) - 1):
        assert torch.equal(torch.from_numpy(preprocess(dataset.original(index), SPEC)), dataset.pixels[index])
        assert there[index].name == dataset.originals[index].name
        assert preprocess(there[index].read(), SPEC).tobytes() == dataset.pixels[index].numpy().tobytes()


def test_a_division_leaves_a_fifth_of_each_class_to_test_or_trains_on_thirty(tmp_path: Path) -> None:
    write_eurosat(tmp_path, each=10)
    LAYOUTS["caltech101"](tmp_path)
    counts = {
        (name, part): set(
            open_data(f"torchvision:{name}", SPEC, root=tmp_path, part=part).targets.bincount().tolist()
        )
        for name in ("eurosat", "caltech101")
        for part in ("train", "test")
    }
    assert counts[("eurosat", "train")] == {8} and counts[("eurosat", "test")] == {2}
    assert counts[("caltech101", "train")] == {30} and counts[("caltech101", "test")] == {1}


def test_of_a_set_with_a_part_to_validate_1k_takes_800_and_200_of_the_two(tmp_path: Path) -> None:
    write_dtd(tmp_path, each=18, val=5)
    drawn, again = (open_data("torchvision:dtd", SPEC, root=tmp_path, protocol="1k") for _ in range(2))
    assert drawn.digest == again.digest
    assert drawn.source.name == "torchvision:dtd (1k)"
    parted = split(drawn, 0.5, seed=3)
    assert (len(parted.train), len(parted.val)) == (800, 200)
    assert len(drawn.targets[parted.train].unique()) == 47
    folders = [datasets.DTD(tmp_path, split=part)._image_files for part in ("train", "val")]
    paths = [Path(original.name) for original in drawn.originals]
    assert set(paths[:800]) < set(folders[0]) and set(paths[800:]) < set(folders[1])
    test = open_data("torchvision:dtd", SPEC, root=tmp_path, protocol="1k", part="test")
    assert len(test) == 47 and test.fixed is None


def test_of_a_divided_set_1k_takes_no_test_image(tmp_path: Path) -> None:
    write_eurosat(tmp_path, each=126)
    drawn = open_data("torchvision:eurosat", SPEC, root=tmp_path, protocol="1k")
    test = open_data("torchvision:eurosat", SPEC, root=tmp_path, part="test")
    assert len({original.name for original in drawn.originals}) == 1000
    assert not {original.name for original in drawn.originals} & {
        original.name for original in test.originals
    }


def test_too_few_images_for_1k_are_told(tmp_path: Path) -> None:
    write_pets(tmp_path)
    with pytest.raises(DataInvalid, match="has 74 images where the protocol 1k draws 1000"):
        open_data("torchvision:oxford_iiit_pet", SPEC, root=tmp_path, protocol="1k")


def remove_class(root: Path) -> None:
    lines = (root / "dtd/dtd/labels/train1.txt").read_text().splitlines()
    (root / "dtd/dtd/labels/train1.txt").write_text("\n".join(lines[1:]))


def other_class(root: Path) -> None:
    path = root / "dtd/dtd/labels/val1.txt"
    path.write_text(path.read_text().replace("kind00/", "kind99/"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "dtd/dtd/labels/train1.txt").unlink(),
            r"cannot be read from .* by torchvision's DTD",
        ),
        (
            lambda root: (root / "dtd/dtd").rename(root / "dtd/x"),
            r"is not in .* as torchvision's DTD lays it out",
        ),
        (
            lambda root: (root / "dtd/dtd/images/kind00/kind00_00000.jpg").unlink(),
            r"kind00_00000\.jpg: cannot be read as an image",
        ),
        (
            lambda root: (root / "dtd/dtd/images/kind01/kind01_00001.jpg").write_bytes(b"junk"),
            r"kind01_00001\.jpg: cannot be read as an image",
        ),
        (remove_class, "is incomplete: .* has 46 of its 47 classes"),
        (other_class, "names its classes differently in its parts"),
    ],
    ids=["no list", "not there", "no image", "no picture", "class missing", "other class"],
)
def test_faults_of_a_folder_are_told(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write_dtd(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataInvalid, match=message):
        open_data("torchvision:dtd", SPEC, root=tmp_path)


def test_a_damaged_image_of_a_class_that_opens_its_files_is_named(tmp_path: Path) -> None:
    write_pets(tmp_path)
    (tmp_path / "oxford-iiit-pet/images/great_kind03_3.jpg").write_bytes(b"junk")
    with pytest.raises(DataInvalid, match=r"^torchvision:oxford_iiit_pet, image 3: .*great_kind03_3\.jpg"):
        open_data("torchvision:oxford_iiit_pet", SPEC, root=tmp_path)


def test_a_class_without_an_image_is_told(tmp_path: Path) -> None:
    LAYOUTS["gtsrb"](tmp_path)
    path = tmp_path / "gtsrb/GT-final_test.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(DataInvalid, match=r"is incomplete: .* has 42 of its 43 classes"):
        open_data("torchvision:gtsrb", SPEC, root=tmp_path, part="test")


def test_targets_beyond_the_classes_are_told(tmp_path: Path) -> None:
    write_pets(tmp_path)
    path = tmp_path / "oxford-iiit-pet/annotations/trainval.txt"
    path.write_text(path.read_text().replace(" 1 1 1\n", " 38 1 1\n"))
    with pytest.raises(
        DataInvalid, match="torchvision:oxford_iiit_pet: has targets from 1 to 37, not 0 to 36"
    ):
        open_data("torchvision:oxford_iiit_pet", SPEC, root=tmp_path)


def test_a_wrong_sum_is_told(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python/train").write_bytes(b"junk")
    with pytest.raises(
        DataInvalid, match="as torchvision's CIFAR100 lays it out, or is damaged; put it there"
    ):
        open_data("torchvision:cifar100", SPEC, root=tmp_path)


def test_a_name_that_is_not_known_and_a_root_that_is_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="torchvision:dogs: is not known; there are caltech101, cifar10,"):
        open_data("torchvision:dogs", SPEC, root=tmp_path)
    with pytest.raises(DataInvalid, match="needs a root: the folder that torchvision's DTD is given"):
        open_data("torchvision:dtd", SPEC)
    with pytest.raises(DataInvalid, match=r"its root .*nowhere is no folder"):
        open_data("torchvision:dtd", SPEC, root=tmp_path / "nowhere")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(DataInvalid, match="torchvision:flowers102: needs scipy: pip install scipy"):
        open_data("torchvision:flowers102", SPEC, root=tmp_path)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is asked of the network, which refuses."""
    asked: list[object] = []

    def refuse(request: object, *_: object, **__: object) -> None:
        asked.append(request)
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_downloaded_unasked(name: str, tmp_path: Path, requests: list[object]) -> None:
    with pytest.raises(DataInvalid, match=f"torchvision:{name}: (is not in|cannot be read|needs h5py)"):
        open_data(f"torchvision:{name}", SPEC, root=tmp_path)
    assert requests == []


def test_a_failed_download_is_told(tmp_path: Path, requests: list[object]) -> None:
    with pytest.raises(DataInvalid, match=r"torchvision:dtd: cannot be downloaded to .*no network"):
        open_data("torchvision:dtd", SPEC, root=tmp_path / "new", download=True)
    assert requests
    with pytest.raises(
        DataInvalid, match=r"torchvision:stanford_cars: cannot be downloaded to .* URL is broken"
    ):
        open_data("torchvision:stanford_cars", SPEC, root=tmp_path, download=True)


@pytest.mark.parametrize("name", SETS)
def test_torchvision_has_the_class_and_takes_its_arguments(name: str) -> None:
    known = SETS[name]
    parameters = signature(getattr(datasets, known.kind)).parameters
    for arguments in (known.train, known.val or {}, known.test or {}):
        signature(getattr(datasets, known.kind)).bind("root", download=False, **arguments)
    assert ("loader" in parameters) == (known.targets is None)
    assert (known.test is None) != (known.division is None)


@pytest.mark.parametrize(
    ("kind", "names"), [("Flowers102", "classes"), ("Imagenette", "_WNID_TO_CLASS"), ("MNIST", "classes")]
)
def test_numbers_of_classes_are_those_torchvision_lists(kind: str, names: str) -> None:
    known = next(known for known in SETS.values() if known.kind == kind)
    assert known.classes == len(getattr(getattr(datasets, kind), names))


def test_the_page_on_training_names_every_set_where_it_belongs() -> None:
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    rows = {
        row.split("|")[1].strip(): re.findall(r"`(\w+)`", row)
        for row in page.split("| benchmark | names |")[1].split("\n\n")[0].splitlines()[2:]
    }
    expected: dict[str, list[str]] = {benchmark: [] for benchmark in rows}
    for name, known in SETS.items():
        for benchmark in known.benchmarks or ("others",):
            expected[benchmark].append(name)
    assert rows == expected


def test_every_set_has_a_layout_or_a_reason() -> None:
    assert LAYOUTS.keys() | CHECKED_BY_SUM | WANTS_H5PY == SETS.keys()
