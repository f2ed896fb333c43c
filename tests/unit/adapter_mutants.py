"""Ways to damage an adapter file, each with what must come of it."""

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

HOSTILE = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    1.5,
    1e999,
    "",
    "x",
    "NaN",
    "\ud800",
    [],
    {},
    [[]],
]
KINDS = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "C64", "I32", "U8", "BOOL", "f32", "", 7]
NOT_FINITE = [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\xff\xff"]  # fp32


class Fate(Enum):
    """What reading a mutant must end in."""

    REFUSED = "refused"
    SAME = "accepted, with the original's content"
    EITHER = "refused, or accepted with exactly what the bytes say"


@dataclass
class File:
    """An fp32 adapter file taken apart; mutators work on their own copy."""

    header: dict[str, Any]
    body: bytearray

    @classmethod
    def split(cls, data: bytes) -> "File":
        end = 8 + int.from_bytes(data[:8], "little")
        return cls(json.loads(data[8:end]), bytearray(data[end:]))

    def join(self) -> bytes:
        return frame(json.dumps(self.header).encode(), self.body)

    @property
    def names(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.header["__metadata__"]["ssfserve"])

    def with_manifest(self, manifest: object) -> bytes:
        return self.with_manifest_text(json.dumps(manifest))

    def with_manifest_text(self, text: str) -> bytes:
        self.header["__metadata__"]["ssfserve"] = text
        return self.join()


def frame(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(body)


Mutator = Callable[[random.Random, bytes], bytes]
MUTATORS: dict[str, tuple[Mutator, Fate]] = {}


def must(fate: Fate) -> Callable[[Mutator], Mutator]:
    def register(mutator: Mutator) -> Mutator:
        MUTATORS[mutator.__name__] = (mutator, fate)
        return mutator

    return register


def edits(fate: Fate) -> Callable[[Callable[[random.Random, File], bytes | None]], object]:
    """Register a mutator of the parts; the file is put together again if it returns None."""

    def register(edit: Callable[[random.Random, File], bytes | None]) -> object:
        def mutator(rng: random.Random, data: bytes) -> bytes:
            file = File.split(data)
            return edit(rng, file) or file.join()

        MUTATORS[edit.__name__] = (mutator, fate)
        return edit

    return register


# the bytes


@must(Fate.EITHER)
def flip_bits(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


@must(Fate.EITHER)
def flip_bit_of_tensors(rng: random.Random, data: bytes) -> bytes:
    file = File.split(data)
    file.body[rng.randrange(len(file.body))] ^= 1 << rng.randrange(8)
    return data[: len(data) - len(file.body)] + file.body


@must(Fate.EITHER)
def overwrite_range(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    length = min(rng.choice([1, 4, 16, 200]), len(data) - start)
    return data[:start] + rng.choice([bytes(length), rng.randbytes(length)]) + data[start + length :]


@must(Fate.REFUSED)
def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


@must(Fate.REFUSED)
def append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice([1, 4, 8, 1000]))


@must(Fate.REFUSED)
def prepend(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(rng.choice([1, 4, 8])) + data


@must(Fate.REFUSED)
def insert_or_delete_byte(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(8, len(data))
    return rng.choice(
        [data[:at] + b"\0" + data[at:], data[:at] + b" " + data[at:], data[:at] + data[at + 1 :]]
    )


@must(Fate.REFUSED)
def change_header_length(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    lengths = [
        0,
        1,
        7,
        length - 1,
        length + 1,
        len(data),
        2**31,
        2**32,
        2**63,
        2**64 - 1,
        rng.getrandbits(64),
    ]
    return rng.choice(lengths).to_bytes(8, "little") + data[8:]


@must(Fate.REFUSED)
def other_format(rng: random.Random, data: bytes) -> bytes:
    magic = rng.choice(
        [b"\x80\x02}q\0.", b"PK\x03\x04", b"\x93NUMPY\x01\0", b"\x7fELF", b"\x89HDF\r\n\x1a\n", b""]
    )
    return magic + rng.randbytes(rng.choice([0, 1, 64, 4096]))


# the tensors


@edits(Fate.REFUSED)
def write_not_finite(rng: random.Random, file: File) -> None:
    at = 4 * rng.randrange(len(file.body) // 4)
    file.body[at : at + 4] = rng.choice(NOT_FINITE)


@edits(Fate.EITHER)
def change_one_weight(rng: random.Random, file: File) -> None:
    at = 4 * rng.randrange(len(file.body) // 4)
    file.body[at : at + 4] = struct.pack("<f", rng.uniform(-1e30, 1e30))


@edits(Fate.EITHER)
def swap_two_tensors(rng: random.Random, file: File) -> None:
    a, b = rng.sample(file.names, 2)
    file.header[a], file.header[b] = file.header[b], file.header[a]


# the header


@edits(Fate.EITHER)
def change_shape(rng: random.Random, file: File) -> None:
    entry = file.header[rng.choice(file.names)]
    shape, (a, b) = entry["shape"], entry["data_offsets"]
    entry["shape"] = rng.choice(
        [shape[::-1], [*shape, 1], [1, *shape], [], [(b - a) // 4], [s * 2 for s in shape]]
    )


@edits(Fate.EITHER)
def change_kind(rng: random.Random, file: File) -> None:
    file.header[rng.choice(file.names)]["dtype"] = rng.choice(KINDS)


@edits(Fate.REFUSED)
def shift_offsets(rng: random.Random, file: File) -> None:
    offsets = file.header[rng.choice(file.names)]["data_offsets"]
    offsets[rng.randrange(2)] += rng.choice([-4, -1, 1, 4, 2**32, 2**63])


@edits(Fate.REFUSED)
def put_hostile_value_in_entry(rng: random.Random, file: File) -> None:
    entry = file.header[rng.choice(file.names)]
    field = rng.choice(list(entry))
    entry[field] = rng.choice([value for value in HOSTILE if not (field == "dtype" and value in KINDS)])


@edits(Fate.REFUSED)
def replace_entry(rng: random.Random, file: File) -> None:
    file.header[rng.choice(file.names)] = rng.choice(HOSTILE)


@edits(Fate.REFUSED)
def rename_tensor(rng: random.Random, file: File) -> None:
    name = rng.choice(file.names)
    new = rng.choice(
        ["", "x", name + " ", name.upper(), "/" + name, "scale/", "shift/nowhere", "__metadata__"]
    )
    file.header[new] = file.header.pop(name)


@edits(Fate.REFUSED)
def drop_tensor(rng: random.Random, file: File) -> None:
    del file.header[rng.choice(file.names)]


@edits(Fate.REFUSED)
def add_field_to_entry(rng: random.Random, file: File) -> None:
    file.header[rng.choice(file.names)][rng.choice(["strides", "Dtype", ""])] = rng.choice(HOSTILE)


@edits(Fate.REFUSED)
def name_key_twice(rng: random.Random, file: File) -> bytes:
    name = rng.choice(list(file.header))
    again = f"{json.dumps(name)}:{json.dumps(file.header[name])},"
    return frame(json.dumps(file.header).replace("{", "{" + again, 1).encode(), file.body)


@edits(Fate.REFUSED)
def spoil_metadata(rng: random.Random, file: File) -> None:
    good = file.header["__metadata__"]["ssfserve"]
    spoilt = [
        None,
        [],
        good,
        {},
        {"SSFSERVE": good},
        {"ssfserve": json.loads(good)},
        {"ssfserve": good, "a": 1},
    ]
    file.header["__metadata__"] = rng.choice(spoilt)


@edits(Fate.SAME)
def lay_out_header_otherwise(rng: random.Random, file: File) -> bytes:
    items = list(file.header.items())
    rng.shuffle(items)
    text = json.dumps(dict(items), indent=rng.choice([None, 0, 3]), ensure_ascii=rng.random() < 0.5)
    return frame((" " * rng.randrange(3) + text + " \n" * rng.randrange(9)).encode(), file.body)


@edits(Fate.SAME)
def add_metadata(rng: random.Random, file: File) -> None:
    file.header["__metadata__"][rng.choice(["format", "", "é"])] = "pt"


# the manifest


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [p for key, child in children for p in [(*path, key), *paths(child, (*path, key))]]


def parent_of(manifest: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        manifest = manifest[key]
    return manifest


@edits(Fate.EITHER)
def put_hostile_value_in_manifest(rng: random.Random, file: File) -> bytes:
    manifest = file.manifest
    path = rng.choice(paths(manifest))
    parent_of(manifest, path)[path[-1]] = rng.choice(HOSTILE)
    return file.with_manifest(manifest)


@edits(Fate.EITHER)
def delete_from_manifest(rng: random.Random, file: File) -> bytes:
    manifest = file.manifest
    path = rng.choice(paths(manifest))
    del parent_of(manifest, path)[path[-1]]
    return file.with_manifest(manifest)


@edits(Fate.EITHER)
def move_value_in_manifest(rng: random.Random, file: File) -> bytes:
    manifest = file.manifest
    source, target = rng.sample(paths(manifest), 2)
    parent_of(manifest, target)[target[-1]] = json.loads(json.dumps(parent_of(manifest, source)[source[-1]]))
    return file.with_manifest(manifest)


@edits(Fate.REFUSED)
def add_unknown_field_to_manifest(rng: random.Random, file: File) -> bytes:
    manifest = file.manifest
    part = rng.choice(
        [manifest, manifest["backbone"], manifest["sites"][0], manifest["probe"], manifest["training"]]
    )
    part["unknown"] = rng.choice(HOSTILE)
    return file.with_manifest(manifest)


@edits(Fate.REFUSED)
def contradict_tensors(rng: random.Random, file: File) -> bytes:
    manifest = file.manifest
    rng.choice(CONTRADICTIONS)(manifest)
    return file.with_manifest(manifest)


CONTRADICTIONS: list[Callable[[dict[str, Any]], object]] = [
    lambda m: m.update(head_width=m["head_width"] + 1),
    lambda m: (m["labels"].pop(), m["probe"]["logits"].pop()),
    lambda m: (m["labels"].append("one more"), m["probe"]["logits"].append(0.5)),
    lambda m: m["sites"].pop(),
    lambda m: m["sites"].append({"name": "nowhere", "width": 4}),
    lambda m: m["sites"][0].update(width=m["sites"][0]["width"] * 2),
    lambda m: m["sites"][0].update(name="nowhere"),
    lambda m: m["sites"].append(m["sites"][0]),
    lambda m: m.update(sites=[]),
]


@edits(Fate.REFUSED)
def name_manifest_key_twice(rng: random.Random, file: File) -> bytes:
    manifest = file.manifest
    name = rng.choice(list(manifest))
    return file.with_manifest_text(
        "{" + f"{json.dumps(name)}: {json.dumps(manifest[name])}, " + json.dumps(manifest)[1:]
    )


@edits(Fate.REFUSED)
def break_manifest_text(rng: random.Random, file: File) -> bytes:
    text = file.header["__metadata__"]["ssfserve"]
    broken: Mapping[str, str] = {
        "cut": text[: rng.randrange(len(text))],
        "doubled": text * 2,
        "quoted": json.dumps(text),
        "nested": "[" * 10**5,
        "numbers": text.replace("0.", "NaN", 1),
        "byte order mark": "\ufeff" + text,
    }
    return file.with_manifest_text(rng.choice(list(broken.values())))
