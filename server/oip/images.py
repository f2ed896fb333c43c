"""From the one input of an inference to what the backbone sees.

BYTES  [n] or [n, 1]         files, as they are; in JSON as base64
UINT8  [n, height, width, 3] RGB of any size, resized and cropped as files are
FP32   [n, 3, H, W]          normalised, at the size the backbone sees
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.manifest import Preprocessing
from server.batch_body import Upload
from server.contracts import Image
from server.errors import BatchTooLarge, ImageInvalid, ImageTooLarge, RequestInvalid, ValueInvalid
from server.oip.bodies import Call
from server.oip.schemas import InputTensor
from server.oip.tensors import from_binary, from_json, split_elements
from server.oip.together import together
from server.parts import Decoder, Parts
from server.settings import Settings

INPUT = "image"
UINT8, FP32 = np.dtype("uint8"), np.dtype("<f4")

# in grey levels; what rounding in fp32 leaves is below 1e-4
EXACT = 0.01


def count_images(call: Call, settings: Settings) -> int:
    """Return how many images a request says it has, before any is looked at.

    Raises:
        RequestInvalid, BatchTooLarge
    """
    shape = _only_input(call).shape
    count = max(1, shape[0]) if shape else 1
    _check_count(count, settings)
    return count


async def read_images(call: Call, parts: Parts) -> list[Image]:
    """Return the images of a request; the first that fails, fails all.

    Raises:
        RequestInvalid, ValueInvalid, BatchTooLarge
        ImageInvalid, ImageTooLarge, ImageTypeUnsupported, QueueFull
    """
    tensor = _only_input(call)
    binary = call.binary if tensor.parameters.binary_data_size is not None else None
    if tensor.datatype == "BYTES":
        return await _from_files(tensor, binary, parts)
    if tensor.datatype == "UINT8":
        _check_shape(tensor, (None, None, 3), parts.settings)
        pixels = await asyncio.to_thread(_values, tensor, binary, UINT8)
        return await together(_fit(parts.decoder, index, image) for index, image in enumerate(pixels))
    if tensor.datatype == "FP32":
        seen = parts.engine.backbone.preprocessing
        _check_shape(tensor, (3, seen.height, seen.width), parts.settings)
        values = await asyncio.to_thread(_values, tensor, binary, FP32)
        return list(await asyncio.to_thread(pixels_of, values, seen))
    raise ValueInvalid(INPUT, f"its datatype may be BYTES, UINT8 or FP32, not {tensor.datatype[:20]!r}")


def pixels_of(values: NDArray[np.float32], seen: Preprocessing) -> NDArray[np.uint8]:
    """Return the 8-bit pixels whose normalisation gives these values [n, 3, H, W].

    The forward begins at 8 bits, so what lies between two grey levels is refused rather than rounded.

    Raises:
        ValueInvalid
    """
    mean, std = (np.asarray(numbers, np.float32)[:, None, None] for numbers in (seen.mean, seen.std))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows or is NaN is refused below
        levels = (values * std + mean) * np.float32(255)
        nearest = np.rint(levels).clip(0, 255)
        exact = np.abs(levels - nearest) <= EXACT
    if not exact.all():
        share = 100 * (1 - exact.mean())
        raise ValueInvalid(
            INPUT,
            f"{share:.3g} % of the FP32 values are not (pixel / 255 - mean) / std of an 8-bit pixel with "
            f"mean {list(seen.mean)}, std {list(seen.std)}; send UINT8 [n, height, width, 3] or files",
        )
    pixels: NDArray[np.uint8] = nearest.astype(np.uint8)
    return pixels


def _only_input(call: Call) -> InputTensor:
    tensors = call.json.inputs
    if len(tensors) != 1 or tensors[0].name != INPUT:
        names = ", ".join(repr(tensor.name[:40]) for tensor in tensors[:8])
        raise RequestInvalid(f"there is one input, '{INPUT}'; got {names}")
    (tensor,) = tensors
    if tensor.parameters.shared_memory_region is not None:
        raise RequestInvalid("shared memory is not supported")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise RequestInvalid(f"input '{INPUT}' needs either `data` or `binary_data_size`")
    if len(call.binary) != (size or 0):
        raise RequestInvalid(
            f"{len(call.binary)} bytes follow the JSON, binary_data_size says {size or 0}; the header "
            "Inference-Header-Content-Length must be the length of the JSON"
        )
    return tensor


def _check_shape(tensor: InputTensor, rest: Sequence[int | None], settings: Settings) -> None:
    """Refuse a shape other than [n, *rest], None for any size, and too many images."""
    shape = tensor.shape
    fits = len(shape) == 1 + len(rest) and all(
        (size > 0 if want is None else size == want) for size, want in zip(shape[1:], rest, strict=True)
    )
    if not fits or shape[0] < 1:
        wanted = ", ".join("any" if want is None else str(want) for want in rest)
        raise ValueInvalid(INPUT, f"the shape of {tensor.datatype} must be [n, {wanted}], not {shape}")
    _check_count(shape[0], settings)


def _check_count(images: int, settings: Settings) -> None:
    if images > settings.max_images_per_request:
        raise BatchTooLarge("images", settings.max_images_per_request)
    if images > settings.max_rows_per_request:
        raise BatchTooLarge("rows", settings.max_rows_per_request)


def _values(tensor: InputTensor, binary: memoryview | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    if binary is None:
        return from_json(INPUT, tensor.data, tensor.shape, dtype)
    return from_binary(INPUT, binary, tensor.shape, dtype)


async def _from_files(tensor: InputTensor, binary: memoryview | None, parts: Parts) -> list[Image]:
    if tensor.shape[1:] not in ([], [1]) or tensor.shape[:1] in ([], [0]):
        raise ValueInvalid(INPUT, f"the shape of BYTES must be [n] or [n, 1], not {tensor.shape}")
    count = tensor.shape[0]
    _check_count(count, parts.settings)
    if binary is not None:
        uploads = [Upload(data=data) for data in split_elements(INPUT, binary, count)]
    else:
        uploads = [Upload(base64=text) for text in _texts(tensor.data, count)]
    return await together(_decode(parts.decoder, index, upload) for index, upload in enumerate(uploads))


def _texts(data: object, count: int) -> list[str]:
    """Return the strings of a list, of which each may be in a list of its own: shape [n, 1]."""
    listed = data if isinstance(data, list) else []
    flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in listed]
    texts = [item for item in flat if isinstance(item, str)]
    if len(texts) != len(flat) or len(flat) != count:
        raise ValueInvalid(INPUT, f"its data must be {count} strings of base64")
    return texts


async def _decode(decoder: Decoder, index: int, upload: Upload) -> Image:
    try:
        return await decoder.decode(await upload.read(), None)
    except (ImageInvalid, ImageTooLarge) as error:
        raise type(error)(f"image {index}: {error.detail}") from error


async def _fit(decoder: Decoder, index: int, pixels: NDArray[np.uint8]) -> Image:
    try:
        return await decoder.fit(pixels)
    except ImageTooLarge as error:
        raise ImageTooLarge(f"image {index}: {error.detail}") from error
