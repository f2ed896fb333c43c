"""POST /v1/tasks/{task}/predict."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from server.answering import best, softmax
from server.errors import (
    AdapterMisfit,
    AdapterUnavailable,
    DeadlineExceeded,
    Draining,
    EngineBroken,
    QueueFull,
)
from server.schemas import Predictions
from tests.fakes import fake_logits
from tests.unit.app_parts import JPEG, World, pixels, running

URL = "/v1/tasks/pets/predict"
IMAGE = JPEG + b"a cat"
RAW = {"content-type": "image/jpeg"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path, max_body_bytes=4096) as world:
        await world.add("pets", b"1", classes=7)
        yield world


async def test_a_raw_image_is_answered_by_production(world: World) -> None:
    response = await world.client.post(URL, content=IMAGE, headers=RAW)
    assert response.status_code == 200
    served = await world.catalog.resolve("pets")
    answer = response.json()
    assert (answer["task"], answer["version"], answer["digest"]) == ("pets", 1, served.digest)
    logits = fake_logits(served.digest, 7, pixels(IMAGE)).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-expected)[:5].tolist()
    assert [row["index"] for row in answer["predictions"]] == order
    assert [row["label"] for row in answer["predictions"]] == [f"pets {i}" for i in order]
    assert [row["probability"] for row in answer["predictions"]] == pytest.approx(expected[order], rel=1e-12)


async def test_the_answer_is_what_the_schema_says(world: World) -> None:
    for query in ({}, {"logits": "true", "top_k": "2"}):
        response = await world.client.post(URL, content=IMAGE, headers=RAW, params=query)
        parsed = Predictions.model_validate_json(response.content, strict=True)
        assert parsed.model_dump(mode="json", exclude_none=True) == response.json()


async def test_an_image_in_a_form_has_the_same_answer(world: World) -> None:
    raw = await world.client.post(URL, content=IMAGE, headers=RAW)
    form = await world.client.post(URL, files={"image": ("cat.jpg", IMAGE, "image/jpeg")})
    assert form.json() == raw.json()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/octet-stream"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "IMAGE/JPEG; q=1"},
    ],
    ids=str,
)
async def test_where_no_image_type_is_declared_the_bytes_decide(
    world: World, headers: dict[str, str]
) -> None:
    response = await world.client.post(URL, content=IMAGE, headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("declared", ["text/html", "application/json", "video/mp4", "image/svg+xml"])
async def test_a_declared_foreign_type_is_refused_before_the_body(world: World, declared: str) -> None:
    response = await world.client.post(URL, content=IMAGE, headers={"content-type": declared})
    assert (response.status_code, response.json()["error_type"]) == (415, "image_type_unsupported")
    assert declared in response.json()["error"]
    assert not world.decoder.decoded


@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        (JPEG + b"broken", 422, "image_invalid"),
        (JPEG + b"huge", 413, "image_too_large"),
        (b"<html>", 415, "image_type_unsupported"),
        (b"", 415, "image_type_unsupported"),
        (JPEG + bytes(5000), 413, "body_too_large"),
    ],
)
async def test_a_bad_image_is_refused_before_the_engine(
    world: World, body: bytes, status: int, error_type: str
) -> None:
    response = await world.client.post(URL, content=body, headers=RAW)
    assert (response.status_code, response.json()["error_type"]) == (status, error_type)
    assert not world.engine.jobs


@pytest.mark.parametrize(
    "fields",
    [{"picture": ("a.jpg", IMAGE)}, [("image", ("a.jpg", IMAGE)), ("image", ("b.jpg", IMAGE))]],
)
async def test_a_form_must_have_one_image(world: World, fields: object) -> None:
    response = await world.client.post(URL, files=fields)  # type: ignore[arg-type]
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")
    assert "one field `image`" in response.json()["error"]


@pytest.mark.parametrize(
    ("declared", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"garbage"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disp"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x--\r\n"),
    ],
)
async def test_a_malformed_form_is_the_clients_fault(world: World, declared: str, body: bytes) -> None:
    response = await world.client.post(URL, content=body, headers={"content-type": declared})
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")


async def test_top_k_is_capped_at_the_number_of_classes(world: World) -> None:
    for asked, given in ((1, 1), (7, 7), (10_000, 7)):
        response = await world.client.post(URL, content=IMAGE, headers=RAW, params={"top_k": asked})
        assert len(response.json()["predictions"]) == given


async def test_logits_are_added_on_request(world: World) -> None:
    response = await world.client.post(URL, content=IMAGE, headers=RAW, params={"logits": "true"})
    served = await world.catalog.resolve("pets")
    assert response.json()["logits"] == fake_logits(served.digest, 7, pixels(IMAGE)).tolist()
    plain = await world.client.post(URL, content=IMAGE, headers=RAW)
    assert "logits" not in plain.json()


@pytest.mark.parametrize(
    "query",
    ["top_k=0", "top_k=x", "version=0", "version=99999999999", "alias=NO", "logits=perhaps", "topk=3"],
)
async def test_a_wrong_parameter_is_named(world: World, query: str) -> None:
    response = await world.client.post(f"{URL}?{query}", content=IMAGE, headers=RAW)
    assert (response.status_code, response.json()["error_type"]) == (422, "value_invalid")
    assert query.partition("=")[0] in response.json()["error"]


async def test_version_and_alias_choose(world: World) -> None:
    second = await world.add("pets", b"2", classes=7)
    await world.registry.set_alias("pets", "canary", 2)
    await world.catalog.refresh()
    for query, version in (("", 1), ("?version=2", 2), ("?alias=canary", 2), ("?alias=production", 1)):
        response = await world.client.post(URL + query, content=IMAGE, headers=RAW)
        assert response.json()["version"] == version, query
    assert world.engine.jobs[1].version.digest == second.digest


async def test_version_and_alias_exclude_each_other(world: World) -> None:
    response = await world.client.post(f"{URL}?version=1&alias=production", content=IMAGE, headers=RAW)
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")


@pytest.mark.parametrize(
    ("url", "error_type"),
    [
        ("/v1/tasks/boats/predict", "task_not_found"),
        (f"{URL}?version=9", "version_not_found"),
        (f"{URL}?alias=canary", "alias_not_found"),
    ],
)
async def test_what_does_not_exist_is_found_out_before_the_body(
    world: World, url: str, error_type: str
) -> None:
    response = await world.client.post(url, content=bytes(9000), headers=RAW)
    assert (response.status_code, response.json()["error_type"]) == (404, error_type)


async def test_an_impossible_task_name_is_not_valid(world: World) -> None:
    response = await world.client.post("/v1/tasks/Pets!/predict", content=IMAGE, headers=RAW)
    assert (response.status_code, response.json()["error_type"]) == (422, "value_invalid")


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (QueueFull(8, 2.5), 429, "3"),
        (DeadlineExceeded(), 504, None),
        (Draining(), 503, "1"),
        (AdapterUnavailable("pets", 1, "secret"), 503, "1"),
        (AdapterMisfit("pets", 1, "height is 112, expected 224"), 409, None),
        (EngineBroken("secret"), 500, None),
        (RuntimeError("secret"), 500, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_the_engine_refuses_is_answered_by_the_table(
    world: World, error: Exception, status: int, retry_after: str | None
) -> None:
    world.engine.error = error
    response = await world.client.post(URL, content=IMAGE, headers=RAW)
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert set(response.json()) == {"error", "error_type"}
    assert "secret" not in response.text


async def test_the_clients_deadline_ends_the_wait_and_drops_the_job(world: World) -> None:
    world.engine.gate.clear()
    headers = RAW | {"x-request-timeout-ms": "20"}
    response = await world.client.post(URL, content=IMAGE, headers=headers)
    assert (response.status_code, response.json()["error_type"]) == (504, "deadline_exceeded")
    [job] = world.engine.jobs
    assert job.deadline is not None


@pytest.mark.parametrize("asked", ["0", "-1", "soon", "1.5", "²"])
async def test_a_deadline_is_a_whole_number(world: World, asked: str) -> None:
    headers = [(b"content-type", b"image/jpeg"), (b"x-request-timeout-ms", asked.encode("latin-1"))]
    response = await world.client.post(URL, content=IMAGE, headers=headers)
    assert (response.status_code, response.json()["error_type"]) == (422, "value_invalid")


async def test_a_client_cannot_wait_longer_than_the_settings_allow(tmp_path: Path) -> None:
    async with running(tmp_path, request_timeout_ms=20) as world:
        await world.add("pets")
        world.engine.gate.clear()
        headers = RAW | {"x-request-timeout-ms": "999999999"}
        response = await world.client.post(URL, content=IMAGE, headers=headers)
        assert response.status_code == 504


async def test_server_timing_tells_where_the_time_went(world: World) -> None:
    response = await world.client.post(URL, content=IMAGE, headers=RAW)
    timing = dict(part.strip().split(";dur=") for part in response.headers["server-timing"].split(","))
    assert list(timing) == ["decode", "queue", "compute"]
    assert (timing["queue"], timing["compute"]) == ("1.00", "10.00")
    assert float(timing["decode"]) >= 0


async def test_a_prediction_is_observed(world: World) -> None:
    response = await world.client.post(URL, content=IMAGE, headers=RAW)
    top = response.json()["predictions"][0]["probability"]
    assert world.metrics.predictions == [("pets", top)]
    assert world.metrics.requests == [("/v1/tasks/{task}/predict", "POST", 200)]


async def test_a_moved_alias_serves_the_next_request(world: World) -> None:
    await world.client.post(URL, content=IMAGE, headers=RAW)
    await world.add("pets", b"2", classes=7, promote=True)
    response = await world.client.post(URL, content=IMAGE, headers=RAW)
    assert response.json()["version"] == 2


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 5000])
def test_best_is_the_front_of_a_stable_sort(count: int) -> None:
    logits = np.random.default_rng(0).integers(0, 40, count).astype(np.float32)
    expected = sorted(range(count), key=lambda i: (-logits[i], i))
    for k in (1, 2, 5, count - 1, count, count + 1):
        if k > 0:
            assert best(logits, k).tolist() == expected[:k]


def test_softmax_does_not_overflow() -> None:
    found = softmax(np.array([3e38, -3e38, 3e38], dtype=np.float32))
    assert found.tolist() == [0.5, 0.0, 0.5]
    assert math.isclose(softmax(np.zeros(1000, dtype=np.float32)).sum(), 1.0)


async def test_logits_that_are_not_finite_are_an_error_of_the_adapter(world: World) -> None:
    predict = world.engine.predict

    async def poisoned(job: object) -> object:
        outcome = await predict(job)  # type: ignore[arg-type]
        outcome.logits[0] = np.nan
        return outcome

    world.engine.predict = poisoned  # type: ignore[method-assign,assignment]
    response = await world.client.post(URL, content=IMAGE, headers=RAW)
    assert (response.status_code, response.json()["error_type"]) == (500, "output_invalid")
