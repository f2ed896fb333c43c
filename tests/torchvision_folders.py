"""Tiny data sets as torchvision's classes lay them out: every class is there, each with few images."""

import bz2
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from adapters.torchvision_sets import SETS

SIDE = 8


def pixels_of(number: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3)).astype(np.uint8)


def write_image(path: Path, number: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(number)).save(path)
    return path.stem


def write_text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def members(name: str, each: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield a class and a number of its own for each image of a part."""
    for number in range(SETS[name].classes * each):
        yield number % SETS[name].classes, start + number


def write_dtd(root: Path, each: int = 1, val: int = 1) -> None:
    for place, (part, count) in enumerate({"train": each, "val": val, "test": 1}.items()):
        names = [f"kind{k:02d}/kind{k:02d}_{n:05d}.jpg" for k, n in members("dtd", count, place * 10_000)]
        write_text(root / f"dtd/dtd/labels/{part}1.txt", names)
        for number, name in enumerate(names, place * 10_000):
            write_image(root / "dtd/dtd/images" / name, number)


def write_eurosat(root: Path, each: int = 5) -> None:
    for k, number in members("eurosat", each):
        write_image(root / f"eurosat/2750/Kind{k}/Kind{k}_{number}.jpg", number)


def write_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for place, part in enumerate(("trainval", "test")):
        lines = []
        for k, number in members("oxford_iiit_pet", 2, place * 1000):
            stem = write_image(base / f"images/great_kind{k:02d}_{number}.jpg", number)
            lines.append(f"{stem} {k + 1} 1 1")
        write_text(base / f"annotations/{part}.txt", lines)


def write_food(root: Path) -> None:
    for place, part in enumerate(("train", "test")):
        listed = {
            f"dish{k:03d}": [f"dish{k:03d}/{number}"] for k, number in members("food101", 1, place * 1000)
        }
        for number, name in enumerate((names[0] for names in listed.values()), place * 1000):
            write_image(root / f"food-101/images/{name}.jpg", number)
        write_text(root / f"food-101/meta/{part}.json", [json.dumps(listed)])


def write_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b/data"
    write_text(data / "variants.txt", [f"Plane {k}" for k in range(100)])
    for place, part in enumerate(("train", "val", "test")):
        lines = []
        for k, number in members("fgvc_aircraft", 1, place * 1000):
            lines.append(f"{write_image(data / f'images/{number:07d}.jpg', number)} Plane {k}")
        write_text(data / f"images_variant_{part}.txt", lines)


def write_caltech(root: Path) -> None:
    base = root / "caltech101/101_ObjectCategories"
    (base / "BACKGROUND_Google").mkdir(parents=True)
    for k, number in members("caltech101", 31):
        write_image(base / f"kind{k:03d}/image_{number // 101 + 1:04d}.jpg", number)


def write_sun(root: Path) -> None:
    names = [f"/{'abc'[k % 3]}/place{k}/indoor" for k in range(397)]
    write_text(root / "SUN397/ClassName.txt", names)
    for k, number in members("sun397", 3):
        write_image(root / f"SUN397{names[k]}/sun_{number:04d}.jpg", number)


def write_gtsrb(root: Path) -> None:
    lines = ["Filename;Width;ClassId"]
    for k, number in members("gtsrb", 1):
        write_image(root / f"gtsrb/GTSRB/Training/{k:05d}/{number:05d}.ppm", number)
        write_image(root / f"gtsrb/GTSRB/Final_Test/Images/{number:05d}.ppm", 1000 + number)
        lines.append(f"{number:05d}.ppm;8;{k}")
    write_text(root / "gtsrb/GT-final_test.csv", lines)


def write_clevr(root: Path) -> None:
    base = root / "clevr/CLEVR_v1.0"
    for place, part in enumerate(("train", "val")):
        scenes = []
        for k, number in members("clevr_count", 2, place * 100):
            name = f"CLEVR_{part}_{number:06d}.png"
            write_image(base / f"images/{part}/{name}", number)
            scenes.append({"image_filename": name, "objects": [{}] * (k + 3)})
        write_text(base / f"scenes/CLEVR_{part}_scenes.json", [json.dumps({"scenes": scenes})])


def write_cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    lists = {"train": base / "devkit/cars_train_annos.mat", "test": base / "cars_test_annos_withlabels.mat"}
    for place, (part, path) in enumerate(lists.items()):
        rows = []
        for k, number in members("stanford_cars", 1, place * 1000):
            rows.append((f"{write_image(base / f'cars_{part}/{number:05d}.jpg', number)}.jpg", k + 1))
        savemat(path, {"annotations": np.array(rows, dtype=[("fname", "O"), ("class", "u1")])})
    names = np.array([f"Car {k}" for k in range(196)], dtype=object)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})


def write_tree(
    name: str, base: str, parts: tuple[str, ...], folders: list[str], suffix: str
) -> Callable[[Path], None]:
    """Return what writes class folders, one image each, below one folder a part."""

    def write(root: Path) -> None:
        for place, part in enumerate(parts):
            for k, number in members(name, 2, place * 1000):
                write_image(root / base / part / folders[k] / f"{number}{suffix}", number)

    return write


def write_idx(kind: str) -> Callable[[Path], None]:
    """Return what writes twenty grey images a part, in the format of MNIST."""

    def write(root: Path) -> None:
        raw = root / kind / "raw"
        raw.mkdir(parents=True)
        numbers = np.arange(20, dtype=np.uint8)
        for place, part in enumerate(("train", "t10k")):
            images = pixels_of(place, 28)[None, ..., 0] + numbers[:, None, None]
            for what, values in (("images", images), ("labels", numbers % 10)):
                header = np.array([0x0800 + values.ndim, *values.shape], ">i4").tobytes()
                (raw / f"{part}-{what}-idx{values.ndim}-ubyte").write_bytes(header + values.tobytes())

    return write


def write_usps(root: Path) -> None:
    for place, name in enumerate(("usps.bz2", "usps.t.bz2")):
        values = np.random.default_rng(place).uniform(-1, 1, (20, 256))
        lines = [
            f"{row % 10 + 1} " + " ".join(f"{n}:{value:.3f}" for n, value in enumerate(values[row], 1))
            for row in range(20)
        ]
        (root / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "caltech101": write_caltech,
    "clevr_count": write_clevr,
    "country211": write_tree(
        "country211", "country211", ("train", "valid", "test"), [f"A{k:03d}" for k in range(211)], ".jpg"
    ),
    "dtd": write_dtd,
    "eurosat": write_eurosat,
    "fashion_mnist": write_idx("FashionMNIST"),
    "fgvc_aircraft": write_aircraft,
    "food101": write_food,
    "gtsrb": write_gtsrb,
    "imagenette": write_tree(
        "imagenette", "imagenette2", ("train", "val"), sorted(datasets.Imagenette._WNID_TO_CLASS), ".JPEG"
    ),
    "kmnist": write_idx("KMNIST"),
    "mnist": write_idx("MNIST"),
    "oxford_iiit_pet": write_pets,
    "rendered_sst2": write_tree(
        "rendered_sst2", "rendered-sst2", ("train", "valid", "test"), ["negative", "positive"], ".png"
    ),
    "stanford_cars": write_cars,
    "sun397": write_sun,
    "usps": write_usps,
}
CHECKED_BY_SUM = {"cifar10", "cifar100", "flowers102", "stl10", "svhn"}  # no small file has their MD5 sums
WANTS_H5PY = {"patch_camelyon"}
