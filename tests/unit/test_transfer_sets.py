from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from backbone.preprocess import ImageSpec
from benchmarks import transfer_photos
from benchmarks.transfer_photos import PHOTOGRAPHS, SIDE, Patch, patches, region
from benchmarks.transfer_sets import PARTS, SETS, TransferSet, apportion, divide, load_set

SPEC = ImageSpec(8, 8, (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
SIZES = {
    "textile": (800, 200, 1000),
    "mnist": (800, 200, 1000),
    "optdigits": (800, 200, 797),
    "faces": (80, 20, 100),
    "photos": (800, 192, 992),
}


def targets(found: TransferSet, part: str) -> list[int]:
    return found.targets[getattr(found, part)].tolist()


def columns(patch: Patch) -> set[int]:
    return set(range(patch.left, patch.left + SIDE))


@pytest.mark.parametrize("name", SETS)
def test_the_parts_of_a_set_are_disjoint_and_of_the_stated_sizes(name: str) -> None:
    parts = divide(SETS[name]())
    places = [place for part in PARTS for place in parts[part]]
    assert tuple(len(parts[part]) for part in PARTS) == SIZES[name]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", SETS)
def test_every_part_has_each_class_in_proportion(name: str) -> None:
    source = SETS[name]()
    parts = divide(source)
    whole = Counter(source.targets)
    for part in PARTS:
        found = Counter(source.targets[place] for place in parts[part])
        for target, count in whole.items():
            assert abs(found[target] - count * len(parts[part]) / whole.total()) < 2, (part, target)


def test_pixels_and_targets_are_those_of_the_parts_in_their_order() -> None:
    source, whole = SETS["faces"](), ImageSpec(25, 25, SPEC.mean, SPEC.std, crop_pct=1.0)
    found, parts = load_set("faces", whole), divide(source)
    assert torch.cat([found.train, found.val, found.test]).tolist() == list(range(200))
    for part in PARTS:
        images = torch.stack([torch.from_numpy(np.array(source.images[place]())) for place in parts[part]])
        assert torch.equal(found.pixels[getattr(found, part)], images[:, None].expand(-1, 3, -1, -1))
        assert targets(found, part) == [source.targets[place] for place in parts[part]]


def test_faces_come_before_what_is_none() -> None:
    source = SETS["faces"]()
    assert source.labels == ("face", "other") and source.targets == [0] * 100 + [1] * 100


@pytest.mark.parametrize("name", ["faces", "photos"])
def test_a_set_is_the_same_each_time(name: str) -> None:
    first, second = load_set(name, SPEC), load_set(name, SPEC)
    assert first.digest == second.digest and torch.equal(first.pixels, second.pixels)


def test_the_digest_tells_other_pixels_apart() -> None:
    assert load_set("faces", SPEC).digest != load_set("faces", replace(SPEC, interpolation="nearest")).digest


def test_levels_of_eight_by_eight_digits_span_the_whole_range() -> None:
    pixels = load_set("optdigits", SPEC).pixels
    assert (pixels.min().item(), pixels.max().item()) == (0, 255)
    assert len(pixels.unique()) == 17


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_parts_of_a_photograph_share_no_column(photograph: str) -> None:
    seen = {part: set[int]() for part in PARTS}
    for patch in patches():
        if patch.photograph == photograph:
            seen[patch.part] |= columns(patch)
    for one, other in combinations(PARTS, 2):
        assert not seen[one] & seen[other]
    for part in PARTS:
        start, end = region(photograph, part)
        assert seen[part] <= set(range(start, end))


def test_photographs_have_equally_many_patches_none_of_them_blank_or_twice() -> None:
    found = patches()
    assert len(set(found)) == len(found)
    assert len(set(Counter((patch.photograph, patch.part) for patch in found).values())) == len(PARTS)
    assert all(np.asarray(patch.image()).std() >= 2 for patch in found)


def test_patches_are_grey() -> None:
    pixels = load_set("photos", SPEC).pixels
    assert torch.equal(pixels[:, 0], pixels[:, 1]) and torch.equal(pixels[:, 0], pixels[:, 2])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_photos, "FOLDERS", ())
    with pytest.raises(FileNotFoundError, match="scikit-image"):
        transfer_photos.grey.__wrapped__("moon.png")


def test_shares_add_up_and_follow_the_sizes() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(1000, [1000, 500, 500]) == [500, 250, 250]
    assert apportion(7, [5, 0, 5]) == [4, 0, 3]
