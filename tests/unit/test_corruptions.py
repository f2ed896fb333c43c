from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.corruptions import AT_ONCE, CORRUPTIONS, IMAGENET, TINY_IMAGENET, severities

EACH = pytest.mark.parametrize("name", CORRUPTIONS)
SEVERITIES = range(1, 6)


def pictures(count: int = 3, height: int = 56, width: int = 60) -> Tensor:
    """Coarse coloured patches with soft edges; the same each time."""
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    return (functional.interpolate(coarse, (height, width), mode="bilinear") * 255).to(torch.uint8)


def corrupted(name: str, severity: int, pixels: Tensor, seed: int = 0) -> Tensor:
    return CORRUPTIONS[name](pixels, severity, torch.Generator().manual_seed(seed))


def distance(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).pow(2).mean().sqrt().item()


@EACH
@pytest.mark.parametrize("side", [56, 224])
def test_each_severity_is_further_from_the_original(name: str, side: int) -> None:
    pixels = pictures(2, side, side)
    found = [distance(corrupted(name, severity, pixels), pixels) for severity in SEVERITIES]
    assert found[0] > 0.5
    assert all(less < more for less, more in pairwise(found)), found


@EACH
def test_shape_and_type_are_kept_and_the_original_is_not_touched(name: str) -> None:
    pixels = pictures(AT_ONCE + 1)
    before = pixels.clone()
    found = corrupted(name, 3, pixels)
    assert found.shape == pixels.shape and found.dtype == torch.uint8
    assert torch.equal(pixels, before)


@EACH
def test_the_same_seed_corrupts_alike(name: str) -> None:
    pixels = pictures()
    assert torch.equal(corrupted(name, 2, pixels), corrupted(name, 2, pixels))


def test_another_seed_makes_other_noise() -> None:
    pixels = pictures()
    assert not torch.equal(corrupted("noise", 2, pixels), corrupted("noise", 2, pixels, seed=1))


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"noise"}))
def test_an_image_is_corrupted_alike_in_any_company(name: str) -> None:
    pixels = pictures()
    assert torch.equal(corrupted(name, 4, pixels)[1:2], corrupted(name, 4, pixels[1:2]))


def test_noise_has_the_stated_strength() -> None:
    grey = torch.full((4, 3, 56, 56), 128, dtype=torch.uint8)
    off = corrupted("noise", 3, grey).float() - 128
    assert off.std().item() == pytest.approx(255 * 0.12, rel=0.03)
    assert off.mean().item() == pytest.approx(0, abs=0.5)


def test_noise_beyond_white_stays_white() -> None:
    white = torch.full((1, 3, 56, 56), 255, dtype=torch.uint8)
    assert corrupted("noise", 1, white).min() > 128


def test_blur_spreads_a_point_by_the_stated_width() -> None:
    point = torch.zeros(1, 3, 65, 65, dtype=torch.uint8)
    point[..., 32, 32] = 255
    spread = corrupted("blur", 5, point)[0, 0].double()
    away = torch.arange(65) - 32
    width = ((spread.sum(0) * away**2).sum() / spread.sum()).sqrt().item()
    assert width == pytest.approx(1.5 * 65 / 64, rel=0.1)
    assert torch.equal(spread, spread.T)


def test_blur_leaves_an_even_image_as_it_is() -> None:
    even = torch.full((1, 3, 20, 20), 200, dtype=torch.uint8)
    assert torch.equal(corrupted("blur", 5, even), even)


def test_contrast_keeps_the_mean_of_each_image_and_channel() -> None:
    pixels = pictures()
    faded = corrupted("contrast", 2, pixels).float()
    torch.testing.assert_close(faded.mean((2, 3)), pixels.float().mean((2, 3)), atol=0.5, rtol=0)
    torch.testing.assert_close(faded.std((2, 3)), 0.3 * pixels.float().std((2, 3)), atol=0.5, rtol=0)


def test_colours_keep_their_channels_through_jpeg() -> None:
    red = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    red[:, 0] = 200
    found = corrupted("jpeg", 1, red).float().mean((0, 2, 3))
    assert found[0] > 150 > 50 > found[1:].max()


def test_small_pictures_have_the_severities_of_small_pictures() -> None:
    assert severities(pictures(1, 56, 300)) is TINY_IMAGENET
    assert severities(pictures(1, 224, 224)) is IMAGENET
