import asyncio
import logging
import random
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from PIL.ImageFile import ImageFile

from adapters.manifest import Preprocessing
from backbone.preprocess import ImageSpec, Pixels, preprocess
from server import images, pixel_budget
from server.errors import ImageInvalid, ImageTooLarge, ImageTypeUnsupported, QueueFull
from server.fast_images import read_fast
from server.image_guards import MAX_JPEG_SEGMENTS, MAX_READS, MAX_TIFF_VALUES
from server.images import ImageDecoder, read_with_pillow
from tests.unit.test_pixel_budget import wait_for_line

PREPROCESSING = Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
MAX_PIXELS = 200_000
FUZZ_PER_FORMAT = 600
SLOW_SECONDS = 5  # a hostile file takes well under one on an idle core
KINDS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
}


@pytest_asyncio.fixture(params=[read_with_pillow, read_fast], ids=["pillow", "fast"])
async def decoder(request: pytest.FixtureRequest) -> AsyncIterator[ImageDecoder]:
    made = ImageDecoder(PREPROCESSING, max_pixels=MAX_PIXELS, read=request.param, threads=2, max_waiting=2)
    yield made
    made.close()


def picture(width: int = 60, height: int = 45) -> Image.Image:
    """A smooth gradient with noise: every codec has something to do."""
    ramp = np.linspace(0, 200, width * height * 3).reshape(height, width, 3)
    noise = np.random.default_rng(0).integers(0, 40, ramp.shape)
    return Image.fromarray((ramp + noise).astype(np.uint8))


def assert_as_in_training(pixels: Pixels, data: bytes) -> None:
    expected = preprocess(data, ImageSpec(**PREPROCESSING.model_dump()))
    np.testing.assert_allclose(pixels.astype(int), expected, rtol=0, atol=1)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def tiff(tags: dict[int, tuple[int, int, int | None]], payload: bytes = b"", *, side: int = 100) -> bytes:
    """An uncompressed grey TIFF; a tag is (type, count, value), None for the offset of the payload."""
    plain = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    entries = {**plain, **tags}
    end = 8 + 2 + 12 * len(entries) + 4
    table = b"".join(
        struct.pack("<HHII", tag, kind, count, end if value is None else value)
        for tag, (kind, count, value) in sorted(entries.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + payload


@pytest.mark.parametrize(("kind", "content_type"), KINDS.items())
async def test_decodes_what_training_sees(decoder: ImageDecoder, kind: str, content_type: str) -> None:
    data = encode(picture(), kind)
    pixels = await decoder.decode(data, content_type)
    assert pixels.shape == (3, 32, 32)
    assert_as_in_training(pixels, data)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg", "tiff_deflate"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_tiffs_are_upright(decoder: ImageDecoder, compression: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), "TIFF", exif=exif, compression=compression)
    assert_as_in_training(decoder.decode_here(data, None), data)


@pytest.mark.parametrize("declared", [None, "", "application/octet-stream", "image/*", "IMAGE/JPG; q=1"])
def test_the_bytes_decide_where_nothing_definite_is_declared(
    decoder: ImageDecoder, declared: str | None
) -> None:
    assert decoder.decode_here(encode(picture(), "JPEG"), declared).shape == (3, 32, 32)


def test_another_type_than_declared_is_refused(decoder: ImageDecoder) -> None:
    with pytest.raises(ImageTypeUnsupported, match="image/jpeg declared as image/png"):
        decoder.decode_here(encode(picture(), "JPEG"), "image/png")


@pytest.mark.parametrize("data", [b"\0\0\0\x18ftypheic", b"%PDF-1.7", b"<svg/>", encode(picture(), "PPM")])
def test_other_formats_are_refused(decoder: ImageDecoder, data: bytes) -> None:
    with pytest.raises(ImageTypeUnsupported):
        decoder.decode_here(data, "image/heic")
    with pytest.raises(ImageTypeUnsupported):
        decoder.decode_here(data, None)
    with pytest.raises(ImageInvalid, match="does not begin as image/png does"):
        decoder.decode_here(data, "image/png")


def test_nothing_is_not_an_image(decoder: ImageDecoder) -> None:
    with pytest.raises(ImageInvalid, match="it is empty"):
        decoder.decode_here(b"", "image/png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated_images_are_refused(decoder: ImageDecoder, kind: str) -> None:
    data = encode(picture(), kind)
    for length in (len(data) // 3, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ImageInvalid):
            decoder.decode_here(data[:length], None)


def test_pixels_are_counted_before_decoding(decoder: ImageDecoder) -> None:
    assert decoder.decode_here(encode(Image.new("L", (500, 400)), "PNG"), None).shape == (3, 32, 32)
    bomb = png_header(500, 401)  # there is nothing to decode: only the header can tell
    with pytest.raises(ImageTooLarge, match="500x401 is more than 200000 pixels"):
        decoder.decode_here(bomb + png_chunk(b"IDAT", b""), None)


@pytest.mark.parametrize("side", [2**16, 2**20, 2**31 - 1])
def test_pillows_own_limit_is_ours_too(side: int) -> None:
    with pytest.raises(ImageTooLarge):
        ImageDecoder(PREPROCESSING, max_pixels=MAX_PIXELS, threads=1).decode_here(
            png_header(side, side) + png_chunk(b"IDAT", b""), None
        )


def test_extreme_shapes_are_refused(decoder: ImageDecoder) -> None:
    decoder.decode_here(encode(Image.new("L", (200, 1)), "PNG"), None)
    with pytest.raises(ImageTooLarge, match="one side"):
        decoder.decode_here(encode(Image.new("L", (1, 201)), "PNG"), None)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(decoder: ImageDecoder, kind: str) -> None:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    pixels = decoder.decode_here(data, None)
    assert pixels[:, 16, 16].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_compressed_text_is_not_a_bomb(decoder: ImageDecoder, name: bytes) -> None:
    good = encode(picture(), "PNG")
    bomb = png_chunk(name, b"key\0\0" + zlib.compress(bytes(2**28), 9))
    with pytest.raises(ImageInvalid):
        decoder.decode_here(good[:33] + bomb + good[33:], None)


@pytest.mark.parametrize(
    ("kind", "part"),
    [("JPEG", b"\xff\xe5\0\2"), ("PNG", png_chunk(b"teXt", b"")), ("GIF", b"!\xfe\1a\0")],
    ids=["JPEG", "PNG", "GIF"],
)
def test_parts_are_bounded(decoder: ImageDecoder, kind: str, part: bytes) -> None:
    data = encode(picture().convert("L"), kind)
    at = {"JPEG": 2, "PNG": 33, "GIF": 13 + 3 * 256}[kind]
    few = data[:at] + part * 50 + data[at:]
    assert decoder.decode_here(few, None).shape == (3, 32, 32)
    with pytest.raises(ImageInvalid, match="too many parts"):
        decoder.decode_here(data[:at] + part * max(MAX_READS, MAX_JPEG_SEGMENTS) + data[at:], None)


def test_jpeg_scans_are_bounded(decoder: ImageDecoder) -> None:
    data = encode(picture(), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    decoder.decode_here(data, None)
    with pytest.raises(ImageTooLarge, match="scans"):
        decoder.decode_here(data[:-2] + 60 * scan + b"\xff\xd9", None)


def test_what_follows_a_jpeg_is_not_counted(decoder: ImageDecoder) -> None:
    motion_photo = encode(picture(), "JPEG") + b"\xff\xda\0\2" * 1000
    assert decoder.decode_here(motion_photo, None).shape == (3, 32, 32)


def test_tiff_tables_are_bounded(decoder: ImageDecoder) -> None:
    strips = {273: (4, 1, None), 278: (3, 1, 100), 279: (4, 1, 10_000)}
    assert decoder.decode_here(tiff(strips, bytes(10_000)), None).shape == (3, 32, 32)
    many = {**strips, 273: (4, MAX_TIFF_VALUES + 1, None)}
    with pytest.raises(ImageTooLarge, match="TIFF tag"):
        decoder.decode_here(tiff(many, bytes(4 * MAX_TIFF_VALUES + 4)), None)
    overlapping = {273: (4, 1000, None), 278: (3, 1, 50), 279: (4, 1000, None)}
    with pytest.raises(ImageTooLarge, match="many times"):
        decoder.decode_here(tiff(overlapping, bytes(10_000)), None)


def test_run_length_bmp_is_refused(decoder: ImageDecoder) -> None:
    header = struct.pack("<IHHI", 2000, 0, 0, 54 + 1024)
    info = struct.pack("<IiiHHIIiiII", 40, 30, 30, 1, 8, 1, 0, 0, 0, 256, 0)
    with pytest.raises(ImageTypeUnsupported, match="run-length"):
        decoder.decode_here(b"BM" + header + info + bytes(1024) + b"\0\1", None)


def test_pixels_without_a_known_range_are_refused(decoder: ImageDecoder) -> None:
    with pytest.raises(ImageInvalid, match="no known range"):
        decoder.decode_here(encode(Image.new("F", (20, 20)), "TIFF"), None)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Overwrite, drop, repeat or cut, mostly near the header and rarely in the magic number."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        start = 0 if rng.random() < 0.05 else 12
        at = start + int((len(out) - start) * rng.random() ** 3)
        length = rng.choice((1, 1, 2, 4, 16))
        action = rng.randrange(10)
        if action < 4:
            out[at : at + length] = rng.randbytes(length)
        elif action < 7:
            out[at : at + length] = rng.choice((b"\0", b"\1", b"\xff", b"\x7f", b"\x80")) * length
        elif action == 7:
            del out[at : at + length]
        elif action == 8:
            out[at:at] = out[at : at + 64 * length]
        else:
            del out[rng.randrange(len(out) // 2, len(out)) :]
    return bytes(out)


def with_true_checksums(data: bytes) -> bytes:
    """Mend a PNG's checksums, or nearly every mutation would end there."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4])
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def seeds(kind: str) -> list[bytes]:
    modes = {
        "JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "P", "RGBA", "LA", "1", "I;16"], "WEBP": ["RGB", "RGBA"],
        "BMP": ["RGB", "P", "1"], "GIF": ["P", "L"], "TIFF": ["RGB", "CMYK", "P", "1", "I;16", "LAB"],
    }[kind]  # fmt: skip
    base = picture()
    images = [base.convert("L").convert(mode) if mode == "I;16" else base.convert(mode) for mode in modes]
    found = [encode(image, kind) for image in images]
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    extra: dict[str, list[dict[str, object]]] = {
        "JPEG": [{"progressive": True, "exif": exif}], "PNG": [{"exif": exif}],
        "WEBP": [{"exif": exif}, {"save_all": True, "append_images": [base.rotate(90)]}],
        "GIF": [{"save_all": True, "append_images": [base.rotate(90)]}],
        "TIFF": [{"compression": name, "exif": exif} for name in ("tiff_lzw", "jpeg", "tiff_deflate")],
    }.get(kind, [])  # fmt: skip
    return found + [encode(base, kind, **options) for options in extra]


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_images_give_pixels_or_a_clear_error(
    decoder: ImageDecoder, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(kind)
    good, outcomes = seeds(kind), {"pixels": 0, "refused": 0}
    said: set[str] = set()
    for i in range(FUZZ_PER_FORMAT):
        data = mutated(good[i % len(good)], rng)
        if kind == "PNG" and i % 4:
            data = with_true_checksums(data)
        started = time.perf_counter()
        try:
            pixels = decoder.decode_here(data, None)
        except (ImageInvalid, ImageTooLarge, ImageTypeUnsupported) as error:
            outcomes["refused"] += 1
            said.add(str(error))
        else:
            outcomes["pixels"] += 1
            assert pixels.shape == (3, 32, 32)
            assert pixels.dtype == np.uint8
        assert time.perf_counter() - started < SLOW_SECONDS
    assert min(outcomes.values()) > FUZZ_PER_FORMAT // 20, outcomes
    assert all(len(text) < 300 and text.isprintable() for text in said)
    if kind != "TIFF":  # libtiff prints its errors in C, whatever Python wants
        assert capfd.readouterr() == ("", "")


async def test_decoding_leaves_the_event_loop_free(decoder: ImageDecoder) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await decoder.decode(encode(picture(450, 400), "PNG"), None)
    ticking.cancel()
    assert ticks > 3


async def test_one_file_too_many_is_refused_and_room_is_made_again(decoder: ImageDecoder) -> None:
    data = encode(picture(), "JPEG")
    calls = [asyncio.create_task(decoder.decode(data, None)) for _ in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [np.ndarray] * 4 + [QueueFull]
    assert (await decoder.decode(data, None)).shape == (3, 32, 32)


async def test_errors_and_cancelled_calls_make_room(decoder: ImageDecoder) -> None:
    for _ in range(10):
        with pytest.raises(ImageInvalid):
            await decoder.decode(b"\xff\xd8\xff", None)
        call = asyncio.create_task(decoder.decode(encode(picture(), "PNG"), None))
        await asyncio.sleep(0)
        call.cancel()
    assert (await decoder.decode(encode(picture(), "PNG"), None)).shape == (3, 32, 32)


def test_pillow_does_not_log_what_clients_send(
    decoder: ImageDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tiff({273: (4, 1, None), 258: (3, 1, 8), 277: (4, 1, 90_000)}, bytes(100))
    with caplog.at_level(logging.WARNING), pytest.raises(ImageInvalid):
        decoder.decode_here(bad, None)
    assert not caplog.records


async def test_waiting_for_anothers_pixels_is_not_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[float]()
    reading, go_on = threading.Event(), threading.Event()
    for module in (images, pixel_budget):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def read(image: ImageFile, _: bytes, spec: ImageSpec) -> Pixels:
        if image.width == 20:
            reading.set()
            assert go_on.wait(10)
        return np.zeros((3, spec.height, spec.width), np.uint8)

    decoder = ImageDecoder(PREPROCESSING, max_pixels=400, read=read, threads=2, observe=told.append)
    first = asyncio.create_task(decoder.decode(encode(picture(20, 20), "PNG"), None))
    assert await asyncio.to_thread(reading.wait, 10)
    second = asyncio.create_task(decoder.decode(encode(picture(10, 10), "PNG"), None))
    await asyncio.to_thread(wait_for_line, decoder._budget, 1)
    now[0] = 100.0
    go_on.set()
    await asyncio.gather(first, second)
    decoder.close()
    assert sorted(told) == [0.0, 100.0]


async def test_pixels_are_fitted_as_a_file_of_them_is(decoder: ImageDecoder) -> None:
    image = picture()
    fitted = await decoder.fit(np.asarray(image))
    np.testing.assert_array_equal(fitted, await decoder.decode(encode(image, "PNG"), None))


@pytest.mark.parametrize("shape", [(500, 401, 3), (201, 1, 3)])
async def test_pixels_that_are_too_many_are_refused(
    decoder: ImageDecoder, shape: tuple[int, int, int]
) -> None:
    with pytest.raises(ImageTooLarge):
        await decoder.fit(np.zeros(shape, np.uint8))
