"""Tensors as they travel: values in JSON, or the bytes behind it (the binary tensor data extension)."""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ValueInvalid

LENGTH = struct.Struct("<I")  # in front of every element of a binary BYTES tensor

KINDS = {"u": "iu", "f": "iuf"}  # what JSON numbers may be, by the kind of what is wanted


def from_binary(name: str, raw: memoryview, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a view of a tensor's bytes: row-major, little-endian.

    Raises:
        ValueInvalid
    """
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise ValueInvalid(name, f"shape {list(shape)} takes {wanted} bytes, got {len(raw)}")
    return np.frombuffer(raw, dtype).reshape(shape)


def from_json(name: str, data: Any, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers of a flat or nested list.

    Raises:
        ValueInvalid
    """
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):
        raise ValueInvalid(name, "its data is not a list of numbers") from None
    if values.size != math.prod(shape):
        raise ValueInvalid(name, f"shape {list(shape)} takes {math.prod(shape)} values, got {values.size}")
    if values.dtype.kind not in KINDS[dtype.kind]:
        raise ValueInvalid(name, f"its data does not fit {dtype.name}")
    if dtype.kind == "u" and (values.min() < 0 or values.max() > np.iinfo(dtype).max):
        raise ValueInvalid(name, f"its data does not fit {dtype.name}")
    with np.errstate(over="ignore"):  # too large for fp32 becomes infinite, which is refused later
        return values.astype(dtype).reshape(shape)


def split_elements(name: str, raw: memoryview, count: int) -> list[bytes]:
    """Return the elements of a binary BYTES tensor.

    Raises:
        ValueInvalid
    """
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) < count:
        if len(raw) - at < LENGTH.size:
            break
        (length,) = LENGTH.unpack_from(raw, at)
        at += LENGTH.size
        elements.append(bytes(raw[at : at + length]))
        at += length
    if at != len(raw) or len(elements) != count:
        raise ValueInvalid(name, f"its bytes are not {count} elements, each behind its length")
    return elements


def join_elements(elements: Iterable[bytes]) -> bytes:
    """Return the elements as a binary BYTES tensor."""
    return b"".join(LENGTH.pack(len(element)) + element for element in elements)
