"""`backbone.resize` against Pillow: within one grey level, whatever the shape; two hardly ever."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from backbone.preprocess import UPRIGHT, ImageSpec, Pixels, resize_and_crop, to_pixels
from backbone.resize import fit, upright_size

SPEC = ImageSpec(height=64, width=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RARE = (
    5e-4  # of the values of one small image may differ by two: 3 values where a pattern repeats, else 0 to 2
)
SPECS = {
    "default": SPEC,
    "no crop": replace(SPEC, crop_pct=1.0),
    "bilinear": replace(SPEC, interpolation="bilinear"),
    "wide": replace(SPEC, width=96),
    "tall": replace(SPEC, height=120),
    "squash": replace(SPEC, crop_mode="squash", width=48),
    "odd": replace(SPEC, height=51, width=51, crop_pct=0.9),
}
SHAPES = [(427, 640), (640, 427), (400, 120), (131, 520), (64, 64), (73, 73), (97, 64), (30, 20), (12, 77)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def black_and_white(height: int, width: int) -> NDArray[np.uint8]:
    return (noise(height, width) & 1) * np.uint8(255)


def flat_and_edges(height: int, width: int) -> NDArray[np.uint8]:
    """Bright bars on a ramp: sums of weights and overshoot at edges show."""
    ramp = np.linspace(0, 250, width)[None, :, None] + np.linspace(0, 5, height)[:, None, None]
    bars = (np.arange(height)[:, None, None] // 9 + np.arange(width)[None, :, None] // 7) % 3 == 0
    return np.where(bars, 255, ramp + np.zeros(3)).astype(np.uint8)


def expected(pixels: NDArray[np.uint8], spec: ImageSpec, orientation: int = 1) -> Pixels:
    image = Image.fromarray(pixels)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    return to_pixels(resize_and_crop(image, spec))


def assert_within_one_level(pixels: Pixels, truth: Pixels) -> None:
    assert pixels.shape == truth.shape
    assert pixels.flags.c_contiguous
    off = np.abs(pixels.astype(int) - truth)
    assert off.max() <= 2
    assert np.mean(off > 1) <= RARE
    assert np.mean(off > 0) < 0.02


@pytest.mark.parametrize("draw", [noise, black_and_white, flat_and_edges])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_resized_as_by_pillow(
    draw: Callable[[int, int], NDArray[np.uint8]], spec: ImageSpec, shape: tuple[int, int]
) -> None:
    pixels = draw(*shape)
    assert_within_one_level(fit(pixels, spec), expected(pixels, spec))


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@pytest.mark.parametrize("shape", [(301, 200), (200, 301), (500, 90), (90, 500)], ids=str)
@pytest.mark.parametrize(
    "spec", [SPECS["default"], SPECS["wide"], SPECS["odd"]], ids=["default", "wide", "odd"]
)
def test_turning_the_result_is_turning_the_image(
    orientation: int, shape: tuple[int, int], spec: ImageSpec
) -> None:
    pixels = black_and_white(*shape)
    assert_within_one_level(fit(pixels, spec, orientation=orientation), expected(pixels, spec, orientation))


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_what_torch_does_not_do_as_pillow_is_left_to_it(interpolation: str, orientation: int) -> None:
    spec = replace(SPEC, interpolation=interpolation)  # type: ignore[arg-type]
    pixels = noise(200, 150)
    np.testing.assert_array_equal(
        fit(pixels, spec, orientation=orientation), expected(pixels, spec, orientation)
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 150), (150, 1), (3, 400), (400, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("orientation", [1, 8])
def test_slivers_are_left_to_pillow(shape: tuple[int, int], orientation: int) -> None:
    pixels = noise(*shape)
    np.testing.assert_array_equal(
        fit(pixels, SPEC, orientation=orientation), expected(pixels, SPEC, orientation)
    )


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    pixels = noise(64, 64)
    spec = SPECS["no crop"]
    np.testing.assert_array_equal(fit(pixels, spec), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(fit(pixels, spec, orientation=3), pixels[::-1, ::-1].transpose(2, 0, 1))


def test_reduced_pixels_are_fitted_as_the_whole_image() -> None:
    """To 99 x 75 and its centre, as 333 x 250 would be; half of it, 167 x 125, would go to 100 x 75."""
    spec = replace(SPEC, height=60, width=60, crop_pct=0.8)
    half = black_and_white(125, 167)
    resized = Image.fromarray(half).resize((99, 75), Image.Resampling.BICUBIC)
    assert_within_one_level(fit(half, spec, size=(333, 250)), expected(np.array(resized), spec))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size_is_its_own_inverse(orientation: int) -> None:
    assert upright_size((3, 5), orientation) == ((5, 3) if orientation > 4 else (3, 5))
    assert upright_size(upright_size((3, 5), orientation), orientation) == (3, 5)


def test_the_pixels_of_the_caller_are_left_alone() -> None:
    pixels = noise(100, 80)
    before = pixels.copy()
    fitted = fit(pixels, SPEC)
    fitted[:] = 0
    np.testing.assert_array_equal(pixels, before)
