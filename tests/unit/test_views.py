"""Original images as training sees them: timm's transforms, in workers."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from adapters.data import Dataset, load_dataset
from adapters.seeding import seed_epoch
from adapters.views import OriginalViews, training_transform
from backbone.preprocess import ImageSpec
from tests.pictures import write_folder

SPEC = ImageSpec(height=24, width=24, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_folder(tmp_path_factory.mktemp("x") / "tints", each=4), SPEC)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_follows_its_seed_and_gives_pixels_in_order(workers: int, dataset: Dataset) -> None:
    views = OriginalViews(dataset.originals, SPEC, "rand", workers=workers)
    batches = torch.arange(12).split(5)

    def epoch(seed: int) -> list[torch.Tensor]:
        seed_epoch(torch.Generator(), seed, 0)
        return list(views.epoch(batches))

    one, again, other = epoch(1), epoch(1), epoch(2)
    assert [tuple(b.shape) for b in one] == [(5, 3, 24, 24), (5, 3, 24, 24), (2, 3, 24, 24)]
    assert all(b.dtype is torch.uint8 for b in one)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_op_of_the_policy_takes_its_largest_magnitude() -> None:
    """RandAugment draws magnitudes around 9 of 10; posterize then keeps no bit, which Pillow refuses."""
    transform = training_transform(SPEC, "rand")
    image = Image.new("RGB", (24, 24), (200, 100, 50))
    (randaugment,) = [step for step in transform.transforms if hasattr(step, "ops")]
    for op in randaugment.ops:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert op(image).size == (24, 24), op.name
    posterize = next(op for op in randaugment.ops if op.name.startswith("Posterize"))
    assert posterize(image).getextrema() == ((0, 0),) * 3


def test_simple_crops_and_flips_and_changes_no_colour(dataset: Dataset) -> None:
    assert [type(step).__name__ for step in training_transform(SPEC, "simple").transforms[:-1]] == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
    ]


def test_originals_are_all_a_worker_needs(tmp_path: Path, dataset: Dataset) -> None:
    views = OriginalViews(dataset.originals, SPEC, "simple", workers=2)
    (batch,) = views.epoch([torch.tensor([0, 11])])
    assert batch[0, 0].float().mean() != batch[1, 0].float().mean()
