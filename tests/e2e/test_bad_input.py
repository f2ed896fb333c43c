"""Hostile and broken requests against a real server; after each, a good request must be answered."""

import asyncio
import base64
import io
import struct
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest
from PIL import Image

from tests.e2e.adapters import Known, make_png
from tests.e2e.calls import PNG, check_answer, in_parallel, load, predict, total
from tests.e2e.conftest import MAX_QUEUE
from tests.e2e.servers import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
async def _server_still_answers(client: httpx.AsyncClient, cats: Known) -> AsyncIterator[None]:
    yield
    image = make_png(99)
    check_answer(await predict(client, "cats", image), cats, image)


def jpeg(size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """Return a small file that claims to hold, and would inflate to, width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


REFUSED = {
    "bomb": (png_bomb(2000, 2000), "image/png", 413, "image_too_large"),
    "truncated jpeg": (jpeg()[:-400], "image/jpeg", 422, "image_invalid"),
    "truncated png": (make_png(0)[:-60], "image/png", 422, "image_invalid"),
    "no image": (b"<html>hello</html>", "image/png", 422, "image_invalid"),
    "empty": (b"", "image/png", 422, "image_invalid"),
    "another type": (make_png(0), "application/pdf", 415, "image_type_unsupported"),
    "type that is not the file's": (make_png(0), "image/jpeg", 415, "image_type_unsupported"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415, "image_type_unsupported"),
    "body too large": (b"\x89PNG\r\n\x1a\n" + bytes(2**20), "image/png", 413, "body_too_large"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_bad_image_is_refused_alone(client: httpx.AsyncClient, cats: Known, case: str) -> None:
    body, content_type, status, kind = REFUSED[case]
    good = make_png(5)
    bad = client.post("/v1/tasks/cats/predict", content=body, headers={"content-type": content_type})
    refused, answered = await asyncio.gather(bad, predict(client, "cats", good))
    assert (refused.status_code, refused.json()["error_type"]) == (status, kind)
    check_answer(answered, cats, good)


async def test_body_without_a_length_is_refused_before_it_ends(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(b"POST /v1/tasks/cats/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    writer.write(chunk * 17)  # one more than the limit, and the last chunk never comes
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    writer.close()
    assert head.startswith(b"HTTP/1.1 413 ")


async def test_bad_adapter_files_are_refused_and_leave_nothing(
    client: httpx.AsyncClient, cats: Known
) -> None:
    flipped = bytearray(cats.data)
    flipped[-4:] = b"\x00\x00\xc0\x7f"  # the last number becomes NaN
    cases = {
        b"": 422,
        b"not a safetensors file": 422,
        cats.data[:-1]: 422,
        cats.data[: len(cats.data) // 2]: 422,
        bytes(flipped): 422,
        b"\x80\x05\x95pickle": 422,
    }
    for data, status in cases.items():
        answer = await client.post("/v1/tasks/fresh/versions", content=data)
        assert answer.status_code == status, answer.text
        assert answer.json()["error_type"] in {"adapter_file_invalid", "manifest_invalid"}
    assert (await client.get("/v1/tasks/fresh")).status_code == 404


async def test_adapter_that_computes_something_else_is_refused(
    client: httpx.AsyncClient, cats: Known, dogs: Known
) -> None:
    """Another adapter's numbers under this one's manifest: only the probe can tell."""
    name, other = b"head.bias", bytearray(cats.data)
    assert name in cats.data
    weights = len(other) // 2
    other[weights : weights + 4000] = struct.pack("<1000f", *[0.5] * 1000)
    answer = await client.post("/v1/tasks/fresh/versions", content=bytes(other))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "probe_mismatch")


async def test_full_queue_answers_429_and_what_was_accepted_is_right(
    client: httpx.AsyncClient, cats: Known
) -> None:
    image = make_png(7)
    body = {"images": [base64.b64encode(image).decode()], "rows": [{"image": 0, "task": "cats"}] * 32}

    async def many(_: int) -> httpx.Response:
        return await client.post("/v1/predict", json=body, params={"logits": "true"})

    async with load(many, width=12) as under_way:
        for _ in range(500):
            single = await predict(client, "cats", image)
            if single.status_code != 200:
                break
        await under_way.more(12)

    assert (single.status_code, single.json()["error_type"]) == (429, "queue_full")
    assert int(single.headers["retry-after"]) >= 1
    assert {answer.status_code for answer in under_way.results} == {200}
    rows = [row for answer in under_way.results for row in answer.json()]
    refused = [row for row in rows if row.get("status") == 429]
    right = [row for row in rows if row.get("digest") == cats.digest]
    assert len(refused) + len(right) == len(rows)
    assert refused
    assert len(right) >= MAX_QUEUE
    assert await total(client, "ssfserve_refused_total", reason="queue_full") > len(refused)


async def test_clients_that_leave_disturb_nobody(server: Server, client: httpx.AsyncClient) -> None:
    image = make_png(9)
    head = "POST /v1/tasks/cats/predict HTTP/1.1", "Host: localhost", "Content-Type: image/png"
    start = "\r\n".join((*head, f"Content-Length: {len(image)}", "", "")).encode()
    whole = start + image

    async def leave(after: int) -> None:
        _, writer = await connect(server)
        writer.write(whole[:after])
        await writer.drain()
        writer.transport.abort()

    cuts = [1, len(start) // 2, len(start), len(start) + 10, len(whole) - 1, len(whole), len(whole)]
    await asyncio.gather(*(leave(after) for after in cuts * 10))
    answers = await in_parallel([lambda: predict(client, "cats", image)] * 8, width=8)
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/tasks/nobody/predict", 404),
        ("/v1/tasks/cats/predict?version=99", 404),
        ("/v1/tasks/cats/predict?alias=nowhere", 404),
        ("/v1/tasks/cats/predict?top_k=0", 422),
        ("/v1/tasks/cats/predict?unknown=1", 422),
        ("/v1/tasks/..%2fcats/predict", 404),
        ("/v1/tasks/CATS/predict", 422),
    ],
)
async def test_wrong_names_are_told(client: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await client.post(path, content=make_png(0), headers=PNG)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
