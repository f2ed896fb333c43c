"""Thousands of damaged adapter files: none is accepted wrongly, none fails with anything but our errors."""

import json
import random
import zlib
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from adapters.errors import AdapterError
from adapters.file import Adapter, read_adapter, write_adapter
from adapters.manifest import Manifest, Training
from tests.builders import make_manifest
from tests.unit.adapter_mutants import MUTATORS, Fate, File

PER_MUTATOR = 60
WIDTHS = {
    "patch_embed.proj": 4,
    "blocks.0.attn.qkv": 12,
    "norm": 4,
    "head": 4,
}  # one site named like a tensor
SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@cache
def original() -> Adapter:
    g = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(width, generator=g) for name, width in WIDTHS.items()}
    training = Training(
        dataset="pets", train_images=3, val_images=2, seed=1, recipe={"lr": 0.01, "milestones": [1, 2]},
        metrics={"top1": 0.5}, packages={"torch": "2"}, command="ssfserve train", seconds=1.5,
    )  # fmt: skip
    manifest = make_manifest(labels=("cat", "dög", "[]"), sites=tuple(WIDTHS.items()), head_width=5)
    return Adapter(
        manifest=manifest.model_copy(update={"training": training}),
        scale={name: vectors[name] for name in ("patch_embed.proj", "blocks.0.attn.qkv", "norm")},
        shift={name: -vectors[name] for name in ("blocks.0.attn.qkv", "norm", "head")},
        head_weight=torch.randn(3, 5, generator=g),
        head_bias=torch.randn(3, generator=g),
    )


def mutants(name: str) -> list[bytes]:
    rng = random.Random(zlib.crc32(name.encode()))
    data = write_adapter(original())
    made = [MUTATORS[name][0](rng, data) for _ in range(PER_MUTATOR)]
    return [mutant for mutant in made if mutant != data]


def says(manifest: Any, sent: Any) -> bool:
    """Whether a parsed manifest holds all that was sent, unchanged; it may add defaults."""
    if isinstance(sent, dict):
        return isinstance(manifest, dict) and all(
            key in manifest and says(manifest[key], sent[key]) for key in sent
        )
    if isinstance(sent, list):
        return len(manifest) == len(sent) and all(map(says, manifest, sent))
    return manifest == sent and isinstance(manifest, bool) == isinstance(sent, bool)


def numbers(kind: str, data: bytes) -> np.ndarray:
    if kind == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[kind]).astype("<f4")


def assert_holds_what_the_bytes_say(adapter: Adapter, data: bytes) -> None:
    """Read the file once more, naively, and compare: the oracle shares no code with the reader."""
    file = File.split(data)
    assert says(json.loads(adapter.manifest.to_json()), file.manifest)
    sites = {site["name"]: site["width"] for site in file.manifest["sites"]}
    classes, width = len(set(file.manifest["labels"])), file.manifest["head_width"]
    shapes = {"head.weight": [classes, width], "head.bias": [classes]}
    shapes |= {f"{kind}/{site}": [w] for site, w in sites.items() for kind in ("scale", "shift")}
    tensors, covered = adapter.tensors(), 0
    assert set(tensors) == set(file.names)
    assert {name.partition("/")[2] for name in file.names if "/" in name} == set(sites)
    for name, entry in sorted(((n, file.header[n]) for n in file.names), key=lambda x: x[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        assert start == covered and entry["shape"] == shapes[name]
        assert end - start == SIZES[entry["dtype"]] * int(np.prod(entry["shape"]))
        values = numbers(entry["dtype"], file.body[start:end])
        assert np.isfinite(values).all()
        assert np.array_equal(tensors[name].float().numpy(), values.reshape(entry["shape"]))
        covered = end
    assert covered == len(file.body)


def same_content(a: Adapter, b: Adapter) -> bool:
    x, y = a.tensors(), b.tensors()
    return a.manifest == b.manifest and x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def read(data: bytes) -> Adapter | None:
    """Return the adapter, None if it was refused with an error of ours."""
    try:
        return read_adapter(data)
    except AdapterError as error:
        message = str(error).encode()  # a JSON answer needs UTF-8
    assert 0 < len(message) < 600
    return None


@cache
def read_all(name: str) -> list[tuple[bytes, Adapter | None]]:
    return [(data, read(data)) for data in mutants(name)]


@pytest.mark.parametrize("name", MUTATORS)
def test_no_mutant_is_accepted_wrongly(name: str) -> None:
    fate = MUTATORS[name][1]
    for data, adapter in read_all(name):
        if fate is Fate.REFUSED:
            assert adapter is None, data
        if fate is Fate.SAME:
            assert adapter is not None and same_content(adapter, original()), data
        if adapter is not None:
            assert_holds_what_the_bytes_say(adapter, data)
            assert same_content(read_adapter(write_adapter(adapter)), adapter)


def test_there_are_enough_mutants_of_both_fates() -> None:
    fates = Counter(adapter is not None for name in MUTATORS for _, adapter in read_all(name))
    assert fates.total() >= 1_000
    assert fates[True] > 100
    assert fates[False] > 1_000


def test_original_passes_the_oracle() -> None:
    data = write_adapter(original())
    assert isinstance(original().manifest, Manifest)
    assert_holds_what_the_bytes_say(read_adapter(data), data)
