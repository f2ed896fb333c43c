"""Which images a data set names, under which labels: class folders or a CSV. Decodes nothing."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import DataInvalid

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
COLUMNS = ("path", "label")


@dataclass(frozen=True, slots=True)
class Listing:
    """Images in order of label and path; class k is `labels[k]`."""

    source: Path
    labels: tuple[str, ...]
    images: tuple[tuple[Path, int], ...]


def list_images(source: Path) -> Listing:
    """List a data set.

    Args:
        source: A folder with one folder of images a class (nested folders count), or a CSV file with the
            columns `path` (relative to the file, or absolute) and `label`. Other files and names that begin
            with a dot are passed over.

    Raises:
        DataInvalid: If it is neither, has fewer than two classes, or a class, row or name is at fault.
    """
    if source.is_dir():
        rows = list(_from_folders(source))
    elif source.is_file() and source.suffix.lower() == ".csv":
        rows = list(_from_csv(source))
    else:
        raise DataInvalid(str(source), "is neither a folder of class folders nor a .csv file")
    labels = tuple(sorted({label for _, label in rows}))
    _check_labels(source, labels)
    index = {label: i for i, label in enumerate(labels)}
    return Listing(
        source, labels, tuple((path, index[label]) for label, path in sorted((b, a) for a, b in rows))
    )


def _from_folders(root: Path) -> Iterator[tuple[Path, str]]:
    entries = _visible(root.iterdir())
    stray = next((entry for entry in entries if entry.is_file() and _is_image(entry)), None)
    if stray is not None:
        raise DataInvalid(str(stray), "is an image outside every class folder")
    for folder in (entry for entry in entries if entry.is_dir()):
        images = [path for path in _visible(folder.rglob("*"), folder) if path.is_file() and _is_image(path)]
        if not images:
            raise DataInvalid(str(folder), f"holds no image ({', '.join(sorted(SUFFIXES))})")
        yield from ((path, folder.name) for path in images)


def _from_csv(source: Path) -> Iterator[tuple[Path, str]]:
    seen: dict[Path, int] = {}
    for line, row in _csv_rows(source):
        where = f"{source}, line {line}"
        name, label = (row[column].strip() for column in COLUMNS)
        if not name or not label:
            raise DataInvalid(where, f"has no {'path' if not name else 'label'}")
        path = source.parent / name
        if not path.is_file():
            raise DataInvalid(where, f"names {name}, which does not exist")
        if path in seen:
            raise DataInvalid(where, f"names {name} again, as line {seen[path]} did")
        seen[path] = line
        yield path, label


def _csv_rows(source: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line numbers and complete rows."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataInvalid(
                    str(source), f"has no column {' and no column '.join(missing)} in its first line"
                )
            for row in reader:
                if None in row or None in row.values():
                    raise DataInvalid(
                        f"{source}, line {reader.line_num}", "has not as many fields as the first line"
                    )
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataInvalid(str(source), f"cannot be read as CSV in UTF-8 ({error})") from error


def _check_labels(source: Path, labels: tuple[str, ...]) -> None:
    if len(labels) < 2:
        found = f"only the class {labels[0]}" if labels else "no class"
        raise DataInvalid(str(source), f"has {found}; a classifier needs at least two")
    spelling = Counter(label.casefold().strip() for label in labels)
    twins = [label for label in labels if spelling[label.casefold().strip()] > 1]
    if twins:
        raise DataInvalid(str(source), f"has classes that differ only in case or spaces: {', '.join(twins)}")
    too_long = next((label for label in labels if len(label) > 256), None)
    if too_long is not None:
        raise DataInvalid(str(source), f"has a label of {len(too_long)} characters (at most 256)")


def _visible(paths: Iterable[Path], root: Path | None = None) -> list[Path]:
    """Return the paths, sorted, without those that have a hidden part below the root."""
    return sorted(
        path
        for path in paths
        if not any(part.startswith(".") for part in (path.relative_to(root).parts if root else (path.name,)))
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
