"""The fast readers against Pillow: photographs, every format and mode, damage, and what `scaled` costs."""

import random
from dataclasses import asdict, replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from sklearn.datasets import load_sample_image

from adapters.manifest import Preprocessing
from backbone import resize
from backbone.preprocess import (
    ImageSpec,
    Pixels,
    preprocess,
    resize_and_crop,
    resized_size,
    to_pixels,
    to_rgb,
)
from server import fast_images
from server.errors import ImageInvalid, ServerError
from server.fast_images import read_fast, read_scaled
from server.images import ImageDecoder, Reader, read_with_pillow
from tests.unit.test_images import mutated, seeds

SPEC = ImageSpec(height=112, width=112, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RARE = 1e-4  # share of values that may differ by two
JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "4:2:0": ("RGB", {"quality": 90}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:4:4": ("RGB", {"subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "restart markers": ("RGB", {"restart_marker_blocks": 4}),
    "stored as RGB": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "coarse": ("RGB", {"quality": 5}),
}
MODES = {
    "PNG": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["RGB", "P"],
    "GIF": ["P"],
    "TIFF": ["RGB", "CMYK", "LAB", "I;16"],
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def photograph(name: str = "china.jpg", size: tuple[int, int] = (640, 427)) -> Image.Image:
    image = Image.fromarray(load_sample_image(name))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, *, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    image.save(buffer, kind, **options, **({} if orientation == 1 else {"exif": exif}))  # type: ignore[arg-type]
    return buffer.getvalue()


def read(data: bytes, reader: Reader = read_fast, spec: ImageSpec = SPEC) -> Pixels:
    decoder = ImageDecoder(Preprocessing(**asdict(spec)), max_pixels=10**7, read=reader, threads=1)
    return decoder.decode_here(data, None)


def assert_as_in_training(data: bytes, spec: ImageSpec = SPEC) -> None:
    assert_within_one_level(read(data, spec=spec), preprocess(data, spec))


def assert_within_one_level(pixels: Pixels, truth: Pixels) -> None:
    off = np.abs(pixels.astype(int) - truth)
    assert off.max() <= 2
    assert np.mean(off > 1) <= RARE
    assert np.mean(off > 0) < 0.02


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [(640, 427), (1280, 854), (300, 500), (130, 112)], ids=str)
@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, height=224, width=224)], ids=["112", "224"])
def test_photographs_are_what_training_sees(name: str, size: tuple[int, int], spec: ImageSpec) -> None:
    assert_as_in_training(encode(photograph(name, size), "JPEG", quality=90), spec)


@pytest.mark.parametrize(("mode", "options"), JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_jpeg_is_what_training_sees(mode: str, options: dict[str, object], orientation: int) -> None:
    image = photograph(size=(301, 203)).convert(mode)
    assert_as_in_training(encode(image, "JPEG", orientation=orientation, **options))


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_other_formats_are_what_training_sees(kind: str, mode: str) -> None:
    grey_first = photograph(size=(301, 203)).convert("L" if mode == "I;16" else "RGB")
    assert_as_in_training(encode(grey_first.convert(mode), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    assert_as_in_training(encode(photograph(size=(201, 302)), kind, orientation=orientation))


@pytest.mark.parametrize(("mode", "options"), [JPEGS[name] for name in JPEGS if name != "CMYK"])
def test_jpegs_are_decoded_to_the_bits_of_pillow(mode: str, options: dict[str, object]) -> None:
    data = encode(photograph(size=(301, 203)).convert(mode), "JPEG", **options)
    with JpegImageFile(BytesIO(data)) as image:
        pixels = fast_images._decode_jpeg(image, data, 1)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def refuse_to_decode(*_: object, **__: object) -> None:
    raise AssertionError("decoded")


def test_only_the_size_that_was_checked_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photograph(size=(301, 203)), "JPEG")
    monkeypatch.setattr(fast_images.simplejpeg, "decode_jpeg", refuse_to_decode)
    with JpegImageFile(BytesIO(data)) as image:
        image._size = (300, 203)  # as if the parsers disagreed
        assert fast_images._decode_jpeg(image, data, 1) is None


def outcome(data: bytes, reader: Reader) -> Pixels | str:
    try:
        return read(data, reader)
    except ServerError as error:
        return repr((type(error), str(error)))


def test_damaged_jpegs_end_as_with_pillow() -> None:
    """What libjpeg-turbo only warns of is Pillow's to judge."""
    rng, good = (
        random.Random(7),
        [*seeds("JPEG"), encode(photograph(size=(160, 120)), "JPEG", progressive=True)],
    )
    ends = {"pixels": 0, "refused": 0}
    for i in range(400):
        data = mutated(good[i % len(good)], rng)
        fast, slow = outcome(data, read_fast), outcome(data, read_with_pillow)
        if isinstance(slow, str):
            ends["refused"] += 1
            assert fast == slow
        else:
            ends["pixels"] += 1
            assert not isinstance(fast, str)
            assert np.abs(fast.astype(int) - slow).max() <= 2
    assert min(ends["pixels"], ends["refused"]) > 40, ends


@pytest.mark.parametrize("length", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpegs_are_refused(length: float, progressive: bool) -> None:
    data = encode(photograph(size=(301, 203)), "JPEG", progressive=progressive)
    for reader in (read_fast, read_scaled):
        with pytest.raises(ImageInvalid, match="truncated"):
            read(data[: int(len(data) * length)], reader)


def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that fills with the (width, height) of what is given to `fit`."""
    sizes: list[tuple[int, int]] = []

    def spy(pixels: Pixels, *args: object, **options: object) -> Pixels:
        sizes.append((pixels.shape[1], pixels.shape[0]))
        return resize.fit(pixels, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fast_images, "fit", spy)
    return sizes


@pytest.mark.parametrize(
    ("size", "orientation", "decoded"),
    [
        ((383, 600), 1, (383, 600)),  # 128 wide before the crop: 2 * 1.5 * 128 = 384
        ((384, 600), 1, (192, 300)),
        ((600, 384), 6, (300, 192)),
        ((769, 1001), 1, (193, 251)),
        ((1536, 1540), 8, (192, 193)),
        ((4000, 100), 1, (4000, 100)),
    ],
)
def test_scaled_decoding_halves_while_enough_is_left(
    size: tuple[int, int], orientation: int, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(photograph(size=size), "JPEG", orientation=orientation)
    sizes = decoded_sizes(monkeypatch)
    assert read(data, read_scaled).shape == (3, 112, 112)
    assert sizes == [decoded]


@pytest.mark.parametrize(("size", "reduction"), [((640, 427), 2), ((900, 1280), 4), ((2048, 1601), 8)])
@pytest.mark.parametrize("orientation", [1, 5, 7])
def test_scaled_decoding_is_pillows_draft(size: tuple[int, int], reduction: int, orientation: int) -> None:
    data = encode(photograph(size=size), "JPEG", orientation=orientation)
    with JpegImageFile(BytesIO(data)) as image:
        whole = resize.upright_size(image.size, orientation)
        image.draft(None, (image.width // reduction, image.height // reduction))
        resized = to_rgb(image).resize(resized_size(whole, SPEC), Image.Resampling.BICUBIC)
    assert_within_one_level(read(data, read_scaled), to_pixels(resize_and_crop(resized, SPEC)))


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB")])
def test_what_cannot_be_scaled_is_read_whole(kind: str, mode: str) -> None:
    data = encode(photograph().convert(mode), kind)
    np.testing.assert_array_equal(read(data, read_scaled), read(data, read_fast))


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_other_interpolations_are_exact(interpolation: str) -> None:
    spec = replace(SPEC, interpolation=interpolation)  # type: ignore[arg-type]
    data = encode(photograph(size=(301, 203)), "JPEG", orientation=8)
    np.testing.assert_array_equal(read(data, spec=spec), preprocess(data, spec))
