"""The adapter file: one safetensors file whose metadata key `ssfserve` holds the manifest.

    scale/<site>, shift/<site>   [C]     either may be absent: γ = 1, β = 0
    head.weight                  [K, D]
    head.bias                    [K]

each fp32, fp16 or bf16. Reading trusts nothing: the header is checked in full, against the manifest inside
it, before any tensor is made; it costs two passes over the bytes and never more than their size in tensors.
What each error means: docs/adapter-format.md.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapters.errors import AdapterFileInvalid, Reason
from adapters.header import METADATA_KEY, Entry, read_header
from adapters.manifest import Manifest
from adapters.strict_json import shown

SCALE, SHIFT = "scale/", "shift/"
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Adapter:
    """γ and β [C] by site, and a head; on the CPU, in the dtypes of the file.

    Attributes:
        manifest: What the adapter is.
        scale: γ by site; a site left out has γ = 1.
        shift: β by site; a site left out has β = 0.
        head_weight: [K, D].
        head_bias: [K].
    """

    manifest: Manifest
    scale: Mapping[str, Tensor]
    shift: Mapping[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under their names in the file."""
        vectors = {SCALE + site: vector for site, vector in self.scale.items()}
        vectors |= {SHIFT + site: vector for site, vector in self.shift.items()}
        return vectors | {HEAD_WEIGHT: self.head_weight, HEAD_BIAS: self.head_bias}


def digest(data: bytes) -> str:
    """Return the sha256 of an adapter file: a version's identity everywhere."""
    return hashlib.sha256(data).hexdigest()


def write_adapter(adapter: Adapter, *, dtype: torch.dtype | None = None) -> bytes:
    """Return the file of an adapter: the same content gives the same bytes.

    Args:
        adapter: Tensors may be on any device.
        dtype: fp32, fp16 or bf16 to round every tensor to; each tensor's own if None.

    Raises:
        AdapterFileInvalid: If `read_adapter` would refuse the file, for instance after rounding to infinity.
    """
    tensors = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype, copy=True).contiguous()
        for name, tensor in adapter.tensors().items()
    }
    entries = {name: Entry(DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in tensors.items()}
    _check_entries(entries, adapter.manifest)
    _check_finite(tensors)
    data: bytes = save(tensors, {METADATA_KEY: adapter.manifest.to_json()})
    return data


def read_adapter(data: bytes) -> Adapter:
    """Read an adapter file strictly.

    Raises:
        AdapterFileInvalid: If the bytes are not an adapter file; `reason` says which rule they break.
        ManifestInvalid: If the manifest breaks a rule.
    """
    header = read_header(data)
    manifest = Manifest.from_json(header.manifest)
    _check_entries(header.entries, manifest)
    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:  # what read_header leaves to it: offsets, sizes, coverage
        raise AdapterFileInvalid(Reason.LAYOUT, str(error)) from error
    _check_finite(tensors)
    return Adapter(
        manifest=manifest,
        scale=_under(SCALE, tensors),
        shift=_under(SHIFT, tensors),
        head_weight=tensors[HEAD_WEIGHT],
        head_bias=tensors[HEAD_BIAS],
    )


def _check_entries(entries: Mapping[str, Entry], manifest: Manifest) -> None:
    """Compare the tensors' names, dtypes and shapes with the manifest."""
    expected = _expected_shapes(manifest)
    for name, entry in entries.items():
        if name not in expected:
            raise AdapterFileInvalid(
                Reason.TENSOR_UNKNOWN, f"no tensor {shown(name)} follows from the manifest"
            )
        if entry.dtype not in DTYPES.values():
            raise AdapterFileInvalid(Reason.DTYPE, f"{name} is {shown(entry.dtype)}, not F32, F16 or BF16")
        if entry.shape != expected[name]:
            raise _wrong_shape(name, expected[name], entry.shape)
    for name in _missing(entries, manifest):
        raise AdapterFileInvalid(Reason.TENSOR_MISSING, f"the manifest asks for {name}")


def _expected_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    classes = manifest.num_classes
    head = {HEAD_WEIGHT: (classes, manifest.head_width), HEAD_BIAS: (classes,)}
    return head | {kind + site.name: (site.width,) for kind in (SCALE, SHIFT) for site in manifest.sites}


def _wrong_shape(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> AdapterFileInvalid:
    if name in {HEAD_WEIGHT, HEAD_BIAS} and got[1:] == expected[1:]:
        detail = f"{name} has rows for {shown(got[0])} classes, the manifest {expected[0]} labels"
        return AdapterFileInvalid(Reason.LABELS, detail)
    return AdapterFileInvalid(
        Reason.SHAPE, f"{name} is {shown(list(got))}, the manifest says {list(expected)}"
    )


def _missing(entries: Mapping[str, Entry], manifest: Manifest) -> Iterable[str]:
    yield from (name for name in (HEAD_WEIGHT, HEAD_BIAS) if name not in entries)
    for site in manifest.sites:
        if SCALE + site.name not in entries and SHIFT + site.name not in entries:
            yield f"{SCALE}{site.name} or {SHIFT}{site.name}"


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdapterFileInvalid(Reason.NOT_FINITE, f"{name} holds NaN or an infinity")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
