import struct
import subprocess
import sys
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm.data
from numpy.typing import NDArray
from PIL import Image, ImageOps

from adapters.manifest import Preprocessing
from backbone.errors import PixelsUnsupported
from backbone.preprocess import ImageSpec, normalise, preprocess, resized_size, to_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = ImageSpec(height=224, width=224, mean=MEAN, std=STD)
SPECS = {
    "default": SPEC,
    "small": replace(SPEC, height=112, width=112, crop_pct=1.0),
    "floor": replace(SPEC, height=112, width=112, crop_pct=0.95),
    "bilinear": replace(SPEC, interpolation="bilinear", crop_pct=0.9),
    "nearest": replace(SPEC, interpolation="nearest"),
    "lanczos": replace(SPEC, interpolation="lanczos", crop_pct=0.96),
    "squash": replace(SPEC, crop_mode="squash"),
    "tall": replace(SPEC, height=96, width=64),
    "wide_squash": replace(SPEC, height=64, width=97, crop_mode="squash", crop_pct=0.9),
}
SIZES = [(1, 1), (3, 2), (640, 427), (427, 640), (256, 256), (224, 224), (255, 257), (31, 900), (900, 31)]


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def timm_says(image: Image.Image, spec: ImageSpec, *, normalize: bool) -> NDArray[np.generic]:
    transform = timm.data.create_transform(
        (3, spec.height, spec.width), is_training=False, normalize=normalize,
        interpolation=spec.interpolation, crop_pct=spec.crop_pct, crop_mode=spec.crop_mode,
        mean=spec.mean, std=spec.std,
    )  # fmt: skip
    result: NDArray[np.generic] = transform(image).numpy()
    return result


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_bitwise_those_of_timm(size: tuple[int, int], spec: ImageSpec) -> None:
    image = noise(size)
    pixels = preprocess(image, spec)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, timm_says(image, spec, normalize=False))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_aspect_ratio_is_resized_to_timms_size(spec: ImageSpec) -> None:
    for width, height in np.random.default_rng(7).integers(1, 400, (40, 2)):
        image = noise((int(width), int(height)))
        assert np.array_equal(preprocess(image, spec), timm_says(image, spec, normalize=False)), image.size


def test_normalised_pixels_are_those_of_timm() -> None:
    image = noise((300, 251))
    got = normalise(preprocess(image, SPEC), SPEC)
    assert got.dtype == np.float32
    # (x/255 - mean)/std is below 3; each of the three fp32 operations may round the other way
    np.testing.assert_allclose(got, timm_says(image, SPEC, normalize=True), rtol=0, atol=1e-6)


def test_resized_size_takes_width_and_height_in_pillows_order() -> None:
    assert resized_size((640, 427), SPEC) == (383, 256)
    assert resized_size((427, 640), replace(SPEC, crop_mode="squash", width=112)) == (128, 256)


def test_a_manifests_preprocessing_is_a_spec() -> None:
    preprocessing = Preprocessing(**asdict(SPEC))
    assert ImageSpec(**preprocessing.model_dump()) == SPEC


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_bytes_files_and_images_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    image = noise((90, 77))
    data = encode(image, kind)
    (tmp_path / "image").write_bytes(data)
    expected = preprocess(image, SPEC)
    np.testing.assert_array_equal(preprocess(data, SPEC), expected)
    np.testing.assert_array_equal(preprocess(tmp_path / "image", SPEC), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(orientation: int, kind: str) -> None:
    image = noise((40, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert (expected.size == (24, 40)) is (orientation > 4)
    with Image.open(BytesIO(data)) as opened:
        np.testing.assert_array_equal(np.asarray(to_rgb(opened)), np.asarray(expected))


def tiff_orientation(value: int) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", tiff_orientation(6) + bytes(2**20)],
    ids=["no TIFF", "no directory", "huge"],
)
def test_unreadable_metadata_counts_as_none(exif: bytes) -> None:
    image = noise((40, 24))
    with Image.open(BytesIO(encode(image, "PNG", exif=exif))) as opened:
        np.testing.assert_array_equal(np.asarray(to_rgb(opened)), np.asarray(image))


def test_an_orientation_that_does_not_exist_counts_as_none() -> None:
    image = noise((40, 24))
    for value in (0, 9, 65535):
        with Image.open(BytesIO(encode(image, "PNG", exif=tiff_orientation(value)))) as opened:
            np.testing.assert_array_equal(np.asarray(to_rgb(opened)), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "YCbCr", "CMYK", "HSV", "LAB"])
def test_other_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = noise((30, 20)).convert(mode) if mode not in {"PA", "HSV"} else Image.new(mode, (30, 20), 90)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_not_composited() -> None:
    image = Image.new("RGBA", (10, 10), (10, 20, 30, 0))
    assert to_rgb(image).getpixel((5, 5)) == (10, 20, 30)
    assert to_rgb(Image.new("LA", (4, 4), (77, 0))).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize("transparency", [1, b"\x80\x00\xff"])
def test_palette_with_transparency_keeps_its_colours(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    with Image.open(BytesIO(encode(image, "PNG", transparency=transparency))) as opened:
        rgb = to_rgb(opened)
    assert [rgb.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_16_bit_grey_keeps_its_upper_bits(kind: str, order: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=f"{order}u2")
    image = Image.frombytes("I;16B" if order == ">" else "I;16", (5, 1), values.tobytes())
    with Image.open(BytesIO(encode(image, kind))) as opened:
        assert np.asarray(to_rgb(opened))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_16_bit_grey_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype="<u2").reshape(2, 3) << 8
    with Image.open(BytesIO(encode(Image.fromarray(values), "PNG", exif=exif))) as opened:
        assert np.asarray(to_rgb(opened))[..., 1].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_adobes_inverted_cmyk_is_not_inverted_twice() -> None:
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    with Image.open(BytesIO(encode(white, "JPEG"))) as opened:
        assert opened.mode == "CMYK"
        assert min(np.asarray(to_rgb(opened)).flat) >= 254


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(PixelsUnsupported, match=f"format {mode} "):
        preprocess(encode(Image.new(mode, (9, 9)), "TIFF"), SPEC)


def test_an_upright_rgb_image_is_not_copied() -> None:
    image = noise((8, 8))
    assert to_rgb(image) is image


def test_importing_loads_no_torch() -> None:
    code = "import sys, backbone.preprocess; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
