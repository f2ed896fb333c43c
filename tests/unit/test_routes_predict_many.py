"""POST /v1/predict: several images by several tasks."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from server.errors import AdapterUnavailable
from server.schemas import Row, RowError
from tests.fakes import fake_logits
from tests.unit.app_parts import JPEG, World, pixels, running, until_left

URL = "/v1/predict"
CAT, DOG = JPEG + b"cat", JPEG + b"dog"
ROWS = TypeAdapter(list[Row | RowError])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    limits = {"max_images_per_request": 4, "max_rows_per_request": 8, "max_body_bytes": 2**20}
    async with running(tmp_path, **limits) as world:
        await world.add("pets", b"1")
        await world.add("cars", b"2")
        yield world


async def send_form(world: World, images: list[bytes], tasks: list[str], **options: Any) -> httpx.Response:
    files = [("images", (f"{i}.jpg", image, "image/jpeg")) for i, image in enumerate(images)]
    return await world.client.post(URL, files=files, data={"tasks": tasks}, **options)


def as_json(images: list[bytes], **rest: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode() for image in images], **rest}


async def test_every_image_meets_every_task_in_order(world: World) -> None:
    response = await send_form(world, [CAT, DOG], ["pets", "cars"])
    rows = response.json()
    assert [(row["image"], row["task"]) for row in rows] == [
        (0, "pets"),
        (0, "cars"),
        (1, "pets"),
        (1, "cars"),
    ]
    for row in rows:
        logits = fake_logits(row["digest"], 3, pixels([CAT, DOG][row["image"]]))
        assert row["predictions"][0]["index"] == int(logits.argmax())
    ROWS.validate_json(response.content, strict=True)


async def test_json_has_the_same_answer_as_a_form(world: World) -> None:
    form = await send_form(world, [CAT, DOG], ["pets", "cars"])
    sent = await world.client.post(URL, json=as_json([CAT, DOG], tasks=["pets", "cars"]))
    assert sent.json() == form.json()


async def test_rows_choose_pairs(world: World) -> None:
    rows = [{"image": 1, "task": "cars"}, {"image": 0, "task": "pets"}]
    response = await world.client.post(URL, json=as_json([CAT, DOG], rows=rows))
    assert [(row["image"], row["task"]) for row in response.json()] == [(1, "cars"), (0, "pets")]


async def test_each_image_is_decoded_once(world: World) -> None:
    await send_form(world, [CAT, DOG], ["pets", "cars", "pets:1", "pets@production"])
    assert sorted(world.decoder.decoded) == sorted([CAT, DOG])


async def test_all_rows_are_with_the_engine_before_one_is_answered(world: World) -> None:
    world.engine.gate.clear()
    sending = asyncio.ensure_future(send_form(world, [CAT, DOG], ["pets", "cars"]))
    async with asyncio.timeout(30):
        while len(world.engine.jobs) < 4:  # noqa: ASYNC110  (the engine has no event for it)
            await asyncio.sleep(0)
    world.engine.gate.set()
    assert len((await sending).json()) == 4


async def test_references_choose_versions(world: World) -> None:
    await world.add("pets", b"other")
    await world.registry.set_alias("pets", "canary", 2)
    await world.catalog.refresh()
    response = await send_form(world, [CAT], ["pets", "pets@canary", "pets:2", "pets:1"])
    assert [row["version"] for row in response.json()] == [1, 2, 2, 1]


async def test_a_row_that_fails_leaves_the_others_alone(world: World) -> None:
    images = [CAT, JPEG + b"broken", b"<html>", JPEG + b"huge"]
    response = await send_form(world, images, ["pets", "boats"])
    assert response.status_code == 200
    got = [
        (row["image"], row["task"], row.get("status", 200), row.get("error_type")) for row in response.json()
    ]
    assert got == [
        (0, "pets", 200, None),
        (0, "boats", 404, "task_not_found"),
        (1, "pets", 422, "image_invalid"),
        (1, "boats", 404, "task_not_found"),
        (2, "pets", 415, "image_type_unsupported"),
        (2, "boats", 404, "task_not_found"),
        (3, "pets", 413, "image_too_large"),
        (3, "boats", 404, "task_not_found"),
    ]
    ROWS.validate_json(response.content, strict=True)


async def test_every_kind_of_bad_reference_is_a_row(world: World) -> None:
    refs = ["Pets", "pets:0", "pets:9", "pets@no", "pets@Bad!", "a:b:c", "", "pets\n"]
    response = await send_form(world, [CAT], refs)
    statuses = [row["status"] for row in response.json()]
    assert statuses == [422, 422, 404, 404, 422, 422, 422, 422]


async def test_what_the_engine_refuses_is_a_row_without_internals(world: World) -> None:
    predict = world.engine.predict

    async def refuses_cars(job: Any) -> Any:
        if job.version.task == "cars":
            raise AdapterUnavailable("cars", 1, "secret")
        return await predict(job)

    world.engine.predict = refuses_cars  # type: ignore[method-assign]
    response = await send_form(world, [CAT], ["pets", "cars"])
    good, bad = response.json()
    assert good["version"] == 1
    assert (bad["status"], bad["error_type"]) == (503, "adapter_unavailable")
    assert "secret" not in response.text


async def test_a_bug_in_one_row_is_an_internal_error_of_that_row(world: World) -> None:
    world.engine.error = RuntimeError("secret")
    response = await send_form(world, [CAT], ["pets"])
    [row] = response.json()
    assert (row["status"], row["error_type"]) == (500, "internal")
    assert "secret" not in response.text


async def test_the_deadline_holds_for_each_row(world: World) -> None:
    predict = world.engine.predict

    async def hangs_for_cars(job: Any) -> Any:
        assert job.deadline <= time.monotonic() + 60
        if job.version.task == "cars":
            await asyncio.Event().wait()
        return await predict(job)

    world.engine.predict = hangs_for_cars  # type: ignore[method-assign]
    headers = {"x-request-timeout-ms": "200"}
    response = await send_form(world, [CAT], ["cars", "pets"], headers=headers)
    assert [row.get("status", 200) for row in response.json()] == [504, 200]


async def test_a_decoder_that_hangs_cannot_outlast_the_deadline(world: World) -> None:
    decode = world.decoder.decode

    async def hangs_for_dogs(data: bytes, content_type: str | None) -> Any:
        if data == DOG:
            await asyncio.Event().wait()
        return await decode(data, content_type)

    world.decoder.decode = hangs_for_dogs  # type: ignore[method-assign]
    before = asyncio.all_tasks()
    headers = {"x-request-timeout-ms": "200"}
    response = await send_form(world, [CAT, DOG], ["pets", "cars"], headers=headers)
    assert [row.get("status", 200) for row in response.json()] == [200, 200, 504, 504]
    await until_left(before)


@pytest.mark.parametrize(
    ("images", "tasks", "what"),
    [(5, 1, "images"), (4, 3, "rows"), (1, 9, "rows"), (5, 9, "form fields")],
)
async def test_too_many_of_anything_is_refused(world: World, images: int, tasks: int, what: str) -> None:
    response = await send_form(world, [CAT] * images, ["pets"] * tasks)
    assert (response.status_code, response.json()["error_type"]) == (413, "batch_too_large")
    assert what in response.json()["error"]
    assert not world.decoder.decoded


async def test_too_many_in_json_is_refused_too(world: World) -> None:
    for body in (
        as_json([CAT] * 5, tasks=["pets"]),
        as_json([CAT] * 4, tasks=["pets"] * 3),
        as_json([CAT], rows=[{"image": 0, "task": "pets"}] * 9),
    ):
        response = await world.client.post(URL, json=body)
        assert (response.status_code, response.json()["error_type"]) == (413, "batch_too_large")


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "JSON"),
        (b"\xff", 400, "JSON"),
        (b"[]", 422, "body"),
        (b'{"images": [], "tasks": ["pets"]}', 422, "body.images"),
        (b'{"images": ["aaaa"]}', 422, "either `tasks` or `rows`"),
        (b'{"images": ["aaaa"], "tasks": []}', 422, "body.tasks"),
        (b'{"images": ["aaaa"], "tasks": ["pets"], "rows": []}', 422, "body"),
        (b'{"images": ["aaaa"], "rows": [{"image": 1, "task": "pets"}]}', 422, "image 1 does not exist"),
        (b'{"images": ["aaaa"], "rows": [{"image": -1, "task": "pets"}]}', 422, "body.rows.0.image"),
        (b'{"images": ["aaaa"], "tasks": ["pets"], "top_k": 3}', 422, "body.top_k"),
        (b'{"images": [3], "tasks": ["pets"]}', 422, "body.images.0"),
    ],
)
async def test_a_wrong_json_body_is_named(world: World, body: bytes, status: int, named: str) -> None:
    response = await world.client.post(URL, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert named in response.json()["error"]


@pytest.mark.parametrize("text", ["not base64!", "abc", "YQ==YQ=="])
async def test_what_is_not_base64_fails_its_rows_only(world: World, text: str) -> None:
    body = as_json([CAT], tasks=["pets"])
    body["images"].append(text)
    response = await world.client.post(URL, json=body)
    assert [row.get("error_type") for row in response.json()] == [None, "image_invalid"]


async def test_a_large_json_body_is_read_too(world: World) -> None:
    large = JPEG + bytes(400_000)
    response = await world.client.post(URL, json=as_json([large], tasks=["pets"]))
    assert response.json()[0]["version"] == 1
    assert world.decoder.decoded == [large]


@pytest.mark.parametrize("declared", ["image/jpeg", "text/plain", ""])
async def test_another_content_type_is_refused(world: World, declared: str) -> None:
    response = await world.client.post(URL, content=CAT, headers={"content-type": declared})
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")


async def test_a_form_with_an_unknown_field_is_refused(world: World) -> None:
    response = await world.client.post(URL, files={"images": CAT}, data={"task": "pets"})
    assert response.status_code == 422
    assert "'task'" in response.json()["error"]


async def test_a_form_must_have_images_and_tasks(world: World) -> None:
    response = await world.client.post(URL, files={"images": CAT})
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")


async def test_top_k_and_logits_hold_for_all_rows(world: World) -> None:
    response = await send_form(world, [CAT], ["pets", "cars"], params={"top_k": 1, "logits": True})
    for row in response.json():
        assert (len(row["predictions"]), len(row["logits"])) == (1, 3)


async def test_each_row_is_observed(world: World) -> None:
    await send_form(world, [CAT], ["pets", "cars", "boats"])
    assert sorted(task for task, _ in world.metrics.predictions) == ["cars", "pets"]
