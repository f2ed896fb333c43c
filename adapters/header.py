"""The frame and JSON header of an adapter file, checked before any tensor exists.

A safetensors file is an 8-byte little-endian header length, the JSON header, and the tensors end to end.
The safetensors reader itself refuses overlapping or unused bytes and sizes that do not follow from the
shapes, but takes the last of two equal keys and ignores fields it does not know; both are refused here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters import strict_json
from adapters.errors import AdapterFileInvalid, Reason
from adapters.strict_json import DuplicateKey, shown

METADATA_KEY = "ssfserve"
MERGED_KEY = "ssfserve-merged"
COMPARISON_KEY = "ssfserve-comparison"
OTHER_KEYS = {
    MERGED_KEY: "it holds merged weights, a plain model: push the adapter it was made of",
    COMPARISON_KEY: "it holds a model trained for comparison, not scales and shifts: no server takes it",
}
MAX_HEADER_BYTES = 8 * 2**20
_LENGTH_BYTES = 8
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the header describes it; `dtype` is safetensors' name for it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose structure is right; that its manifest and tensors agree is not yet known."""

    manifest: str
    entries: Mapping[str, Entry]


def read_header(data: bytes) -> Header:
    """Read the header of an adapter file.

    Raises:
        AdapterFileInvalid: If it is cut short, too large, not strict JSON, or not an adapter's.
    """
    try:
        fields = strict_json.loads(_header_bytes(data))
    except DuplicateKey as error:
        raise AdapterFileInvalid(Reason.DUPLICATE_KEY, str(error)) from error
    except ValueError as error:
        raise AdapterFileInvalid(Reason.HEADER, f"the header is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterFileInvalid(Reason.HEADER, "the header is not a JSON object")
    manifest = _manifest(fields.pop("__metadata__", None))
    return Header(manifest, {name: _entry(name, value) for name, value in fields.items()})


def _header_bytes(data: bytes) -> bytes:
    if len(data) < _LENGTH_BYTES:
        raise AdapterFileInvalid(Reason.TRUNCATED, f"{len(data)} bytes are too few for a header length")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise AdapterFileInvalid(
            Reason.HEADER_TOO_LARGE, f"the header has {length} bytes, at most {MAX_HEADER_BYTES} are read"
        )
    if _LENGTH_BYTES + length > len(data):
        raise AdapterFileInvalid(
            Reason.TRUNCATED, f"the header has {length} bytes, the file {len(data)} in all"
        )
    return data[_LENGTH_BYTES : _LENGTH_BYTES + length]


def _manifest(metadata: Any) -> str:
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        other = next((text for key, text in OTHER_KEYS.items() if key in (metadata or ())), None)
        raise AdapterFileInvalid(Reason.METADATA, other or f"there is no metadata key {METADATA_KEY!r}")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise AdapterFileInvalid(Reason.METADATA, f"the value of {shown(key)} is not a string")
    manifest: str = metadata[METADATA_KEY]
    return manifest


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise AdapterFileInvalid(Reason.HEADER, f"{shown(name)} needs exactly {', '.join(sorted(_FIELDS))}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        raise AdapterFileInvalid(Reason.HEADER, f"{shown(name)} has a field of the wrong kind")
    return Entry(dtype, tuple(shape))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
