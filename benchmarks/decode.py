"""Milliseconds from an encoded photograph to the pixels a backbone sees, on one core of this host.

    python -m benchmarks.decode [--pixels 224] [--rounds 15]

whole     `pillow` is training's `preprocess`; the others are the server's decoder with all its checks,
          by its setting `decoding`
stages    decoding and resizing apart, by each library that is installed
threads   images/s of the decoder's pool, the cores that it got from the host meanwhile, and the longest time
          that the event loop beside it stood still

Contenders take turns. `cpu_ms` is the time of the core, `vs_pillow` its ratio: what others do on the host
disturbs it less than the clock. `off_*` is how far from Pillow the values are, in grey levels; `off_by_2` the
share of values that are two or more off. The photographs come with scikit-learn and scikit-image; sizes other
than their own are resampled.
"""

import argparse
import asyncio
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from adapters.manifest import Preprocessing
from backbone.cpu_memory import keep_large_buffers
from backbone.preprocess import ImageSpec, preprocess, resized_size
from backbone.resize import fit
from benchmarks.common import Row, paired_ratio, save, table
from server.cores import available_cores
from server.fast_images import read_fast, read_scaled
from server.images import ImageDecoder

COLUMNS = ["part", "photograph", "format", "size", "kilobytes", "contender", "ms", "cpu_ms", "vs_pillow",
           "off_mean", "off_max", "off_by_2"]  # fmt: skip
THREAD_COLUMNS = [
    "part",
    "format",
    "size",
    "contender",
    "threads",
    "images_per_s",
    "cores_used",
    "loop_stall_ms",
]
MAX_PIXELS = 64_000_000
IN_FLIGHT = 64

Run = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Photograph:
    """An encoded photograph and what a table says of it."""

    name: str
    format: str
    size: tuple[int, int]
    data: bytes

    def row(self) -> Row:
        width, height = self.size
        return {
            "photograph": self.name,
            "format": self.format,
            "size": f"{width}x{height}",
            "kilobytes": round(len(self.data) / 1000),
        }


def encoded(name: str, image: Image.Image, form: str, size: tuple[int, int], **options: object) -> Photograph:
    buffer = BytesIO()
    sized = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    sized.save(buffer, form.split(maxsplit=1)[0], **options)  # type: ignore[arg-type]
    return Photograph(name, form, size, buffer.getvalue())


def reference() -> Photograph:
    """Return the photograph by which decoders are judged: 1280 x 854."""
    return encoded("china", china(), "JPEG 4:2:0", (1280, 854), quality=88)


def china() -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def photographs() -> Iterator[Photograph]:
    """Give photographs as their packages hold them, then one in other sizes and formats."""
    import skimage.data
    import sklearn.datasets

    own = [(Path(str(skimage.data.__file__)).parent, n) for n in ("rocket.jpg", "retina.jpg", "coffee.png")]
    own.append((Path(str(sklearn.datasets.__file__)).parent / "images", "flower.jpg"))
    for folder, name in own:
        data = (folder / name).read_bytes()
        with Image.open(BytesIO(data)) as image:
            yield Photograph(name, f"{image.format} as shipped", image.size, data)
    image = china()
    yield encoded("china", image, "JPEG 4:2:0", (640, 427), quality=88)
    yield reference()
    yield encoded("china", image, "JPEG 4:4:4", (1280, 854), quality=88, subsampling=0)
    yield encoded("china", image, "JPEG progressive", (1280, 854), quality=88, progressive=True)
    yield encoded("china", image.convert("L"), "JPEG grey", (1280, 854), quality=88)
    yield encoded("china", image, "PNG", (1280, 854))
    yield encoded("china", image, "WEBP", (1280, 854), quality=88)
    yield encoded("china", image, "JPEG 4:2:0", (2560, 1708), quality=88)
    yield encoded("china", image, "JPEG 4:2:0", (4032, 2688), quality=88)


def take_turns(contenders: Mapping[str, Run], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return seconds of the clock and of the core, by contender."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            wall, core = time.perf_counter(), time.thread_time()
            run()
            times[name][1].append(time.thread_time() - core)
            times[name][0].append(time.perf_counter() - wall)
    return {name: (wall[1:], core[1:]) for name, (wall, core) in times.items()}  # the first warms up


def compare(part: str, photograph: Photograph, contenders: Mapping[str, Run], rounds: int) -> list[Row]:
    times = take_turns(contenders, rounds)
    truth, base = contenders["pillow"]().astype(int), times["pillow"]
    rows = []
    for name, (wall, core) in times.items():
        off = np.abs(contenders[name]().astype(int) - truth)
        rows.append(
            {"bench": "decode", "part": part}
            | photograph.row()
            | {
                "contender": name,
                "ms": 1000 * statistics.median(wall),
                "cpu_ms": 1000 * statistics.median(core),
                "vs_pillow": paired_ratio(core, base[1]),
                "vs_pillow_wall": paired_ratio(wall, base[0]),
                "off_mean": float(off.mean()),
                "off_max": int(off.max()),
                "off_by_2": float(np.mean(off > 1)),
                "rounds": rounds,
            }
        )
    return rows


def decoders(spec: ImageSpec, threads: int = 1) -> dict[str, ImageDecoder]:
    seen = Preprocessing(**asdict(spec))
    return {
        name: ImageDecoder(seen, max_pixels=MAX_PIXELS, read=read, threads=threads, max_waiting=IN_FLIGHT)
        for name, read in (("fast", read_fast), ("scaled", read_scaled))
    }


def whole(photograph: Photograph, spec: ImageSpec, rounds: int) -> list[Row]:
    contenders: dict[str, Run] = {"pillow": lambda: preprocess(photograph.data, spec)}
    for name, decoder in decoders(spec).items():
        contenders[name] = lambda decoder=decoder: decoder.decode_here(photograph.data, None)
    return compare("whole", photograph, contenders, rounds)


def decoding(photograph: Photograph, rounds: int) -> list[Row]:
    """Decode only, to RGB [height, width, 3] or what a library calls that."""
    data = photograph.data
    contenders: dict[str, Run] = {"pillow": lambda: np.asarray(Image.open(BytesIO(data)))}
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    for library, run in (
        ("simplejpeg", lambda it: it.decode_jpeg(data)),
        ("cv2", lambda it: it.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]),
        (
            "torchvision.io",
            lambda it: it.decode_jpeg(buffer, mode=it.ImageReadMode.RGB).permute(1, 2, 0).numpy(),
        ),
    ):
        try:
            module = import_module(library)
        except ImportError:
            continue
        contenders[library] = lambda run=run, module=module: run(module)
    return compare("stages: decode", photograph, contenders, rounds)


def resizing(photograph: Photograph, spec: ImageSpec, rounds: int) -> list[Row]:
    """Resize and crop only, from pixels in the form that each library has after decoding."""
    image = Image.open(BytesIO(photograph.data)).convert("RGB")
    pixels = np.array(image)
    width, height = resized_size(image.size, spec)
    planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    window = (slice(top, top + spec.height), slice(left, left + spec.width))
    step = image.width / width, image.height / height
    box = left * step[0], top * step[1], (left + spec.width) * step[0], (top + spec.height) * step[1]
    bicubic = Image.Resampling.BICUBIC

    def torch_resize() -> NDArray[np.uint8]:
        resized = functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy()[window])

    return compare(
        "stages: resize",
        photograph,
        {
            "pillow": lambda: np.asarray(image.resize((width, height), bicubic))[window],
            "pillow, box of the crop": lambda: np.asarray(
                image.resize((spec.width, spec.height), bicubic, box)
            ),
            "torch": torch_resize,
            "backbone.resize": lambda: fit(pixels, spec).transpose(1, 2, 0),
        },
        rounds,
    )


async def saturate(decoder: ImageDecoder, data: bytes, seconds: float) -> tuple[float, float]:
    """Return images/s with a full queue, and the longest time that the event loop stood still."""
    done, stall, until = 0, 0.0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await decoder.decode(data, None)
            done += 1

    async def watch() -> None:
        nonlocal stall
        while time.perf_counter() < until:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            stall = max(stall, time.perf_counter() - before - 0.001)

    start = time.perf_counter()
    await asyncio.gather(watch(), *(client() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - start), stall


def parallel(photograph: Photograph, spec: ImageSpec, seconds: float) -> list[Row]:
    rows = []
    for threads in sorted({1, available_cores()}):
        for name, decoder in decoders(spec, threads).items():
            wall, core = time.perf_counter(), time.process_time()
            rate, stall = asyncio.run(saturate(decoder, photograph.data, seconds))
            decoder.close()
            cores = (time.process_time() - core) / (time.perf_counter() - wall)
            result = {"contender": name, "threads": threads, "images_per_s": rate, "cores_used": cores,
                      "loop_stall_ms": 1000 * stall}  # fmt: skip
            rows.append({"bench": "decode", "part": "threads"} | photograph.row() | result)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pixels", type=int, default=224, help="height and width of what the backbone sees")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number of threads")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchvision")
    torch.set_num_threads(1)
    keep_large_buffers()  # as the server does
    side = arguments.pixels
    spec = ImageSpec(height=side, width=side, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    rows = [row for photograph in photographs() for row in whole(photograph, spec, arguments.rounds)]
    rows += decoding(reference(), 2 * arguments.rounds) + resizing(reference(), spec, 2 * arguments.rounds)
    print(table(rows, COLUMNS))
    rows += (threads := parallel(reference(), spec, arguments.seconds))
    print(table(threads, THREAD_COLUMNS))
    print(f"rows: {save('decode', [row | {'pixels': side} for row in rows])}")


if __name__ == "__main__":
    main()
