"""The adapter file: what is written is read back, and each broken rule has its own error."""

import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from adapters.errors import AdapterFileInvalid, AdapterIncompatible, ManifestInvalid, Reason
from adapters.file import Adapter, digest, read_adapter, write_adapter
from adapters.fits import check_fits
from adapters.manifest import Manifest
from tests.builders import FINGERPRINT, make_manifest

SITES = {"blocks.0.attn.qkv": 12, "norm": 4}
MANIFEST = make_manifest(labels=("a", "b", "c"), sites=tuple(SITES.items()), head_width=4)


def make_adapter(seed: int = 0, manifest: Manifest = MANIFEST) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    scale = {name: 1 + 0.1 * torch.randn(width, generator=g) for name, width in SITES.items()}
    shift = {name: 0.1 * torch.randn(width, generator=g) for name, width in SITES.items()}
    return Adapter(manifest, scale, shift, torch.randn(3, 4, generator=g), torch.randn(3, generator=g))


def same(a: Adapter, b: Adapter) -> bool:
    x, y = a.tensors(), b.tensors()
    return a.manifest == b.manifest and x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def split(data: bytes) -> tuple[dict, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join(header: dict | bytes, body: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def test_adapter_survives_its_file() -> None:
    assert same(read_adapter(write_adapter(make_adapter())), make_adapter())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_is_kept_on_reading_and_writing_again(dtype: torch.dtype) -> None:
    data = write_adapter(make_adapter(), dtype=dtype)
    assert {t.dtype for t in read_adapter(data).tensors().values()} == {dtype}
    assert write_adapter(read_adapter(data)) == data


def test_equal_content_gives_equal_bytes_and_digest() -> None:
    adapter = make_adapter()
    strided = {name: torch.stack([v, v], dim=1)[:, 0] for name, v in reversed(adapter.scale.items())}
    again = replace(adapter, scale=strided, shift=dict(reversed(adapter.shift.items())))
    assert write_adapter(again) == write_adapter(adapter)
    assert digest(write_adapter(again)) == digest(write_adapter(adapter))
    assert digest(write_adapter(make_adapter(seed=1))) != digest(write_adapter(adapter))


def test_vectors_that_share_memory_are_written() -> None:
    one = torch.ones(12)
    adapter = replace(make_adapter(), scale={"norm": one[:4], "blocks.0.attn.qkv": one})
    assert same(read_adapter(write_adapter(adapter)), adapter)


@pytest.mark.parametrize("absent", ["scale", "shift"])
def test_either_vector_of_a_site_may_be_absent(absent: str) -> None:
    adapter = replace(make_adapter(), **{absent: {}})
    assert same(read_adapter(write_adapter(adapter)), adapter)


def test_linear_probe_has_no_site() -> None:
    manifest = MANIFEST.model_copy(update={"sites": (), "method": "linear"})
    adapter = replace(make_adapter(manifest=manifest), scale={}, shift={})
    assert same(read_adapter(write_adapter(adapter)), adapter)


def with_tensors(edit: Callable[[dict[str, Tensor]], object]) -> bytes:
    data = write_adapter(make_adapter())
    tensors = load(data)
    edit(tensors)
    return save(tensors, split(data)[0]["__metadata__"])


def with_header(edit: Callable[[dict], object]) -> bytes:
    header, body = split(write_adapter(make_adapter()))
    edit(header)
    return join(header, body)


def duplicate(key: str) -> bytes:
    header, body = split(write_adapter(make_adapter()))
    return join(
        json.dumps(header).replace("{", f"{{{json.dumps(key)}: {json.dumps(header[key])}, ", 1).encode(), body
    )


GOOD = write_adapter(make_adapter())
REFUSED: dict[str, tuple[bytes, Reason]] = {
    "empty": (b"", Reason.TRUNCATED),
    "only a length": (GOOD[:8], Reason.TRUNCATED),
    "cut in the header": (GOOD[:100], Reason.TRUNCATED),
    "huge header length": (b"\xff" * 8 + GOOD[8:], Reason.HEADER_TOO_LARGE),
    "pickle": (b"\x80\x02}q\x00." + b"\0" * 100, Reason.HEADER_TOO_LARGE),
    "header is no JSON": (join(b"not json", b""), Reason.HEADER),
    "header is a list": (join(b"[]", b""), Reason.HEADER),
    "header is nested too deeply": (join(b"[" * 10**6, b""), Reason.HEADER),
    "tensor without a shape": (with_header(lambda h: h["head.bias"].pop("shape")), Reason.HEADER),
    "tensor with another field": (with_header(lambda h: h["head.bias"].update(x=1)), Reason.HEADER),
    "negative size": (with_header(lambda h: h["head.bias"].update(shape=[-3])), Reason.HEADER),
    "true is no size": (with_header(lambda h: h["head.bias"].update(shape=[True])), Reason.HEADER),
    "tensor twice": (duplicate("head.bias"), Reason.DUPLICATE_KEY),
    "metadata twice": (duplicate("__metadata__"), Reason.DUPLICATE_KEY),
    "no metadata": (with_header(lambda h: h.pop("__metadata__")), Reason.METADATA),
    "no manifest": (with_header(lambda h: h.update(__metadata__={"a": "b"})), Reason.METADATA),
    "metadata of another kind": (with_header(lambda h: h["__metadata__"].update(a=1)), Reason.METADATA),
    "unknown tensor": (with_tensors(lambda t: t.update(extra=torch.ones(1))), Reason.TENSOR_UNKNOWN),
    "site unknown to the manifest": (
        with_tensors(lambda t: t.update({"scale/x": torch.ones(1)})),
        Reason.TENSOR_UNKNOWN,
    ),
    "no head weight": (with_tensors(lambda t: t.pop("head.weight")), Reason.TENSOR_MISSING),
    "no head bias": (with_tensors(lambda t: t.pop("head.bias")), Reason.TENSOR_MISSING),
    "site without any vector": (
        with_tensors(lambda t: (t.pop("scale/norm"), t.pop("shift/norm"))),
        Reason.TENSOR_MISSING,
    ),
    "vector of another width": (
        with_tensors(lambda t: t.update({"scale/norm": torch.ones(5)})),
        Reason.SHAPE,
    ),
    "vector with two axes": (
        with_tensors(lambda t: t.update({"scale/norm": torch.ones(4, 1)})),
        Reason.SHAPE,
    ),
    "head of another width": (
        with_tensors(lambda t: t.update({"head.weight": torch.ones(3, 5)})),
        Reason.SHAPE,
    ),
    "head of other classes": (
        with_tensors(lambda t: t.update({"head.weight": torch.ones(2, 4)})),
        Reason.LABELS,
    ),
    "bias of other classes": (with_tensors(lambda t: t.update({"head.bias": torch.ones(4)})), Reason.LABELS),
    "float64": (with_tensors(lambda t: t.update({"head.bias": torch.ones(3).double()})), Reason.DTYPE),
    "integers": (with_tensors(lambda t: t.update({"head.bias": torch.ones(3).int()})), Reason.DTYPE),
    "cut in the tensors": (GOOD[:-1], Reason.LAYOUT),
    "one byte more": (GOOD + b"\0", Reason.LAYOUT),
    "overlap": (
        with_header(lambda h: h["scale/norm"].update(data_offsets=h["shift/norm"]["data_offsets"])),
        Reason.LAYOUT,
    ),
    "dtype of another size": (with_header(lambda h: h["head.bias"].update(dtype="F16")), Reason.LAYOUT),
    "NaN": (with_tensors(lambda t: t["shift/norm"].fill_(float("nan"))), Reason.NOT_FINITE),
    "infinity": (with_tensors(lambda t: t["head.weight"].fill_(float("-inf"))), Reason.NOT_FINITE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_broken_rule_has_its_own_reason(case: str) -> None:
    data, reason = REFUSED[case]
    with pytest.raises(AdapterFileInvalid) as caught:
        read_adapter(data)
    assert caught.value.reason == reason


def test_every_reason_is_reached() -> None:
    assert {reason for _, reason in REFUSED.values()} == set(Reason)


def test_every_reason_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/adapter-format.md").read_text()
    assert re.findall(
        r"^\| `([a-z_]+)` \| (?:ends|claims|has|names|lacks|holds)", text, re.MULTILINE
    ) == list(Reason)


def test_broken_manifest_is_told_apart() -> None:
    with pytest.raises(ManifestInvalid, match="cannot be read as JSON"):
        read_adapter(with_header(lambda h: h.update(__metadata__={"ssfserve": "{"})))


@pytest.mark.parametrize("name", ["\ud800", "x" * 10**5, "line\nbreak"], ids=["surrogate", "long", "control"])
def test_message_is_short_printable_text_whatever_was_sent(name: str) -> None:
    with pytest.raises(AdapterFileInvalid) as caught:
        read_adapter(with_header(lambda h: h.update({name: h["head.bias"]})))
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_rounding_to_infinity_is_refused_on_writing() -> None:
    adapter = replace(make_adapter(), head_bias=torch.full((3,), 1e6))
    with pytest.raises(AdapterFileInvalid, match="not_finite"):
        write_adapter(adapter, dtype=torch.float16)


def test_tensors_that_contradict_the_manifest_are_refused_on_writing() -> None:
    with pytest.raises(AdapterFileInvalid, match="labels"):
        write_adapter(replace(make_adapter(), head_bias=torch.zeros(4)))


def peak_memory_of_refusing(data: bytes) -> int:
    tracemalloc.start()
    with pytest.raises((AdapterFileInvalid, ManifestInvalid)):
        read_adapter(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def hostile(filler: bytes, size: int, inside: str) -> bytes:
    junk = b"[" + filler * (size // len(filler)) + b"1]"
    if inside == "header":
        return join(b'{"a":' + junk + b"}", b"")
    return with_header(lambda h: h["__metadata__"].update(ssfserve=junk.decode()))


@pytest.mark.parametrize("inside", ["header", "manifest"])
@pytest.mark.parametrize("filler", [b"[],", b"{},", b"[[[[[]]]]],"], ids=bytes.decode)
def test_masses_of_brackets_are_refused_unparsed(inside: str, filler: bytes) -> None:
    data = hostile(filler, 4 * 2**20, inside)
    assert peak_memory_of_refusing(data) < 6 * len(data)


@pytest.mark.parametrize("inside", ["header", "manifest"])
@pytest.mark.parametrize("filler", [b'"abcd",', b"1,", b"123456,"], ids=bytes.decode)
def test_other_masses_cost_little_memory(inside: str, filler: bytes) -> None:
    data = hostile(filler, 2**18, inside)
    assert peak_memory_of_refusing(data) < 20 * len(data)


def test_escaped_brackets_cost_no_more() -> None:
    header, body = split(GOOD)
    header["__metadata__"]["ssfserve"] = "BRACKETS"
    raw = json.dumps(header).encode().replace(b"BRACKETS", rb"\u005b" + rb"\u005b\u005d," * 2**18)
    assert peak_memory_of_refusing(join(raw, body)) < 5 * len(raw)


def test_claimed_size_is_not_allocated() -> None:
    claim = {"dtype": "F32", "shape": [3, 2**40], "data_offsets": [0, 2**43]}
    assert peak_memory_of_refusing(with_header(lambda h: h.update({"head.weight": claim}))) < 2**20


FITTING = {
    "backbone_name": MANIFEST.backbone.name,
    "fingerprint": FINGERPRINT,
    "widths": {**SITES, "blocks.1.attn.qkv": 12},
    "head_width": 4,
    "preprocessing": MANIFEST.preprocessing,
}


def test_adapter_of_the_backbone_fits() -> None:
    check_fits(MANIFEST, **FITTING)


def test_pretrained_tag_may_differ() -> None:
    check_fits(MANIFEST, **{**FITTING, "backbone_name": MANIFEST.backbone.name + ".augreg_in21k"})


def preprocessing(**changes: object) -> dict[str, object]:
    return {"preprocessing": MANIFEST.preprocessing.model_copy(update=changes)}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"backbone_name": "vit_small_patch16_224"}, "backbone"),
        ({"fingerprint": "e" * 64}, "backbone fingerprint"),
        ({"widths": {"norm": 4}}, "site"),
        ({"widths": {**SITES, "norm": 8}}, "the width of site `norm`"),
        ({"head_width": 8}, "head width"),
        (preprocessing(height=64), "preprocessing.height"),
        (preprocessing(mean=(0.5, 0.5, 0.5)), "preprocessing.mean"),
        (preprocessing(std=(0.229, 0.224, 0.226)), "preprocessing.std"),
        (preprocessing(interpolation="bilinear"), "preprocessing.interpolation"),
        (preprocessing(crop_pct=0.9), "preprocessing.crop_pct"),
        (preprocessing(crop_mode="squash"), "preprocessing.crop_mode"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], what: str) -> None:
    with pytest.raises(AdapterIncompatible) as caught:
        check_fits(MANIFEST, **{**FITTING, **change})
    assert what in caught.value.what


def test_means_that_went_through_fp32_still_fit() -> None:
    rounded = tuple(float(torch.tensor(value)) for value in MANIFEST.preprocessing.mean)
    assert rounded != MANIFEST.preprocessing.mean
    check_fits(MANIFEST, **{**FITTING, **preprocessing(mean=rounded)})
