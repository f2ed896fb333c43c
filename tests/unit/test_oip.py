"""The Open Inference Protocol as an HTTP client sees it: shapes, refusals, limits."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from registry.errors import TaskNotFound
from server.answering import softmax
from server.errors import EngineBroken, QueueFull
from server.parts import Phase
from tests.builders import IMAGENET_MEAN, IMAGENET_STD
from tests.fakes import fake_logits, make_adapter_file, make_image, make_version
from tests.unit.app_parts import JPEG, World, pixels, running

INFER = "/v2/models/pets/infer"
CAT, DOG = JPEG + b"cat", JPEG + b"dog"
MEAN = np.array(IMAGENET_MEAN, np.float32)[:, None, None]
STD = np.array(IMAGENET_STD, np.float32)[:, None, None]

Json = dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    limits = {"max_body_bytes": 200_000, "max_images_per_request": 4}
    async with running(tmp_path, **limits) as world:
        await world.add("pets", b"one")
        yield world


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def files(*images: bytes, **changes: Any) -> Json:
    """Return an input of encoded images in JSON."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": list(map(text, images))}
    return tensor | changes


def numbers(datatype: str, values: NDArray[Any], **changes: Any) -> Json:
    tensor = {"name": "image", "datatype": datatype, "shape": list(values.shape), "data": values.tolist()}
    return tensor | changes


async def infer(world: World, tensor: Json, url: str = INFER, **body: Any) -> httpx.Response:
    return await world.client.post(url, json={"inputs": [tensor], **body})


async def infer_binary(world: World, tensor: Json, tail: bytes, **headers: str) -> httpx.Response:
    head = json.dumps({"inputs": [tensor]}).encode()
    lengths = {"Inference-Header-Content-Length": str(len(head))}
    return await world.client.post(INFER, content=head + tail, headers=lengths | headers)


def outputs(response: httpx.Response) -> dict[str, NDArray[np.float32]]:
    assert response.status_code == 200, response.text
    return {
        tensor["name"]: np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        for tensor in response.json()["outputs"]
    }


async def expected(world: World, *images: NDArray[np.uint8], version: int = 1) -> NDArray[np.float32]:
    known = await world.registry.get_version("pets", version)
    return np.stack([fake_logits(known.digest, known.manifest.num_classes, image) for image in images])


async def test_files_are_answered_in_order(world: World) -> None:
    response = await infer(world, files(CAT, DOG), id="17")
    logits = await expected(world, pixels(CAT), pixels(DOG))
    found = outputs(response)
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_allclose(found["probabilities"], [softmax(row) for row in logits], rtol=1e-6)
    digest = (await world.registry.get_version("pets", 1)).digest
    body = response.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("pets", "1", "17")
    assert body["parameters"] == {"digest": digest}


@pytest.mark.parametrize("shape", [[2], [2, 1]])
async def test_files_may_be_a_column_as_models_with_a_batch_dimension_take_them(
    world: World, shape: list[int]
) -> None:
    nested = [[text(CAT)], [text(DOG)]] if len(shape) == 2 else [text(CAT), text(DOG)]
    found = outputs(await infer(world, files(CAT, DOG, shape=shape, data=nested)))
    np.testing.assert_array_equal(found["logits"], await expected(world, pixels(CAT), pixels(DOG)))


async def test_pixels_of_any_size_are_fitted(world: World) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 7, 5, 3), dtype=np.uint8)
    for tensor in (numbers("UINT8", images), numbers("UINT8", images, data=images.ravel().tolist())):
        found = outputs(await infer(world, tensor))
        wanted = await expected(world, *(pixels(image.tobytes()) for image in images))
        np.testing.assert_array_equal(found["logits"], wanted)


async def test_normalised_values_are_taken_back_to_the_very_pixels(world: World) -> None:
    images = np.stack([make_image(1), make_image(2)])
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    values = (images.astype(np.float32) / np.float32(255) - MEAN) / STD
    tensor = numbers("FP32", values)
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": values.nbytes}
    found = outputs(await infer_binary(world, tensor, values.tobytes()))
    np.testing.assert_array_equal(found["logits"], await expected(world, *images))


@pytest.mark.parametrize(
    "spoil", [lambda x: x + 0.01, lambda x: x * np.nan, lambda x: x + 1e38, lambda x: x - 9, np.zeros_like]
)
async def test_values_between_grey_levels_are_refused(world: World, spoil: Any) -> None:
    values = (make_image(1)[None].astype(np.float32) / np.float32(255) - MEAN) / STD
    tail = spoil(values).astype("<f4").tobytes()
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32]}
    response = await infer_binary(world, tensor | {"parameters": {"binary_data_size": len(tail)}}, tail)
    assert (response.status_code, response.json()["error_type"]) == (422, "value_invalid")
    assert "send UINT8" in response.json()["error"]
    assert not world.engine.jobs


@pytest.mark.parametrize(
    ("tensor", "status", "told"),
    [
        (files(CAT, name="input"), 400, "one input, 'image'; got 'input'"),
        (files(CAT, datatype="INT64"), 422, "may be BYTES, UINT8 or FP32, not 'INT64'"),
        (files(CAT, shape=[2]), 422, "must be 2 strings"),
        (files(CAT, shape=[]), 422, "[n] or [n, 1], not []"),
        (files(shape=[0]), 422, "[n] or [n, 1], not [0]"),
        (files(CAT, shape=[1, 2]), 422, "[n] or [n, 1], not [1, 2]"),
        (files(CAT, shape=[-1]), 422, "body.inputs.0.shape.0"),
        (files(CAT, data=[3]), 422, "must be 1 strings"),
        (files(CAT, data=None), 400, "either `data` or `binary_data_size`"),
        (files(CAT, data=["%%"]), 422, "image 0: not base64"),
        (files(CAT, JPEG + b"broken"), 422, "image 1: it is cut off"),
        (files(CAT, JPEG + b"huge"), 413, "image 1: 10**9 pixels"),
        (files(b"<html>"), 415, "not an image type"),
        (files(CAT, CAT, CAT, CAT, CAT), 413, "more than 4 images"),
        (files(CAT, parameters={"shared_memory_region": "x"}), 400, "shared memory"),
        (numbers("UINT8", np.zeros((1, 101, 2, 3), np.uint8)), 413, "image 0: more than 100 rows"),
        (numbers("UINT8", np.zeros((5, 1, 1, 3), np.uint8)), 413, "more than 4 images"),
        (numbers("UINT8", np.zeros((2, 2, 3), np.uint8)), 422, "[n, any, any, 3], not [2, 2, 3]"),
        (numbers("UINT8", np.zeros((1, 3, 2, 2), np.uint8)), 422, "[n, any, any, 3], not [1, 3, 2, 2]"),
        (numbers("UINT8", np.zeros((1, 0, 2, 3), np.uint8)), 422, "[n, any, any, 3]"),
        (numbers("UINT8", np.zeros((1, 1, 1, 3), np.uint8), data=[1, 2]), 422, "takes 3 values, got 2"),
        (numbers("UINT8", np.zeros((1, 1, 1, 3), np.uint8), data=[1, 2, 256]), 422, "does not fit uint8"),
        (numbers("UINT8", np.zeros((1, 1, 1, 3), np.uint8), data=[-1, 2, 3]), 422, "does not fit uint8"),
        (numbers("UINT8", np.zeros((1, 1, 1, 3), np.uint8), data=[1, 2, 0.5]), 422, "does not fit uint8"),
        (numbers("UINT8", np.zeros((1, 1, 1, 3), np.uint8), data=[1, 2, 10**30]), 422, "does not fit uint8"),
        (numbers("UINT8", np.zeros((1, 1, 1, 3), np.uint8), data=["1", "2", "3"]), 422, "does not fit uint8"),
        (
            numbers("UINT8", np.zeros((1, 1, 1, 3), np.uint8), data=[[1, 2], [3]]),
            422,
            "not a list of numbers",
        ),
        (numbers("FP32", np.zeros((1, 3, 16, 16))), 422, "[n, 3, 32, 32], not [1, 3, 16, 16]"),
        (numbers("FP32", np.zeros((1, 3, 32, 32)), data=[1e300] * 3072), 422, "send UINT8"),
    ],
)
async def test_what_is_not_images_is_refused(world: World, tensor: Json, status: int, told: str) -> None:
    response = await infer(world, tensor)
    assert (response.status_code, told in response.json()["error"]) == (status, True), response.text
    assert not world.engine.jobs


@pytest.mark.parametrize(
    ("size", "tail", "told"),
    [
        (9, b"", "0 bytes follow the JSON"),
        (9, struct.pack("<I", 4) + CAT, "10 bytes follow the JSON, binary_data_size says 9"),
        (10, struct.pack("<I", 7) + CAT, "not 1 elements"),
        (10, struct.pack("<I", 2) + CAT, "not 1 elements"),
        (2, b"\1\0", "not 1 elements"),
        (0, b"", "not 1 elements"),
    ],
)
async def test_binary_data_that_does_not_add_up_is_refused(
    world: World, size: int, tail: bytes, told: str
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    response = await infer_binary(world, tensor, tail)
    assert response.status_code in {400, 422}
    assert told in response.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "100000", "1e2"])
async def test_a_wrong_length_of_the_json_is_refused(world: World, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    response = await world.client.post(INFER, json={"inputs": [files(CAT)]}, headers=headers)
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "must be JSON"),
        (b"{}", "body.inputs: Field required"),
        (b'{"inputs": []}', "body.inputs"),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": ["1"]}]}', "body.inputs.0.shape.0"),
    ],
)
async def test_a_body_that_is_not_an_inference_is_refused(world: World, body: bytes, told: str) -> None:
    response = await world.client.post(INFER, content=body)
    assert response.status_code in {400, 422}
    assert told in response.json()["error"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ([{"name": "boxes"}], "no output 'boxes'"),
        ([{"name": "logits"}, {"name": "logits"}], "named twice"),
        ([{"name": "logits", "parameters": {"shared_memory_region": "x"}}], "shared memory"),
        ([{"name": "logits", "parameters": {"classification": -1}}], "body.outputs.0.parameters.classif"),
    ],
)
async def test_outputs_that_do_not_exist_are_refused(world: World, wanted: list[Json], told: str) -> None:
    response = await infer(world, files(CAT), outputs=wanted)
    assert response.status_code in {400, 422}
    assert told in response.json()["error"]


async def test_classification_names_the_best_classes(world: World) -> None:
    wanted = [
        {"name": "logits", "parameters": {"classification": 2}},
        {"name": "probabilities", "parameters": {"classification": 99}},
    ]
    response = await infer(world, files(CAT, DOG), outputs=wanted)
    logits, probabilities = response.json()["outputs"]
    assert (logits["datatype"], logits["shape"], probabilities["shape"]) == ("BYTES", [2, 2], [2, 3])
    rows = await expected(world, pixels(CAT), pixels(DOG))
    ranked = [np.argsort(-row, kind="stable") for row in rows]
    told = [f"{row[i]:.6f}:{i}:pets {i}" for row, order in zip(rows, ranked, strict=True) for i in order[:2]]
    assert logits["data"] == told
    values = [float(entry.split(":", 2)[0]) for entry in probabilities["data"][:3]]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_bodies_may_be_compressed_within_the_same_limit(world: World, encoding: str, pack: Any) -> None:
    plain = json.dumps({"inputs": [files(CAT)]}).encode()
    cases = [
        (pack(plain), 200),
        (pack(plain)[:-9], 400),
        (pack(plain) + b"more", 400),
        (b"nonsense", 400),
        (pack(plain + bytes(200_000)), 413),
        (pack(plain + b" " * (200_000 - len(plain))), 200),
    ]
    for content, status in cases:
        response = await world.client.post(INFER, content=content, headers={"content-encoding": encoding})
        assert response.status_code == status, response.text


async def test_other_encodings_are_refused(world: World) -> None:
    response = await world.client.post(INFER, content=b"x", headers={"content-encoding": "br"})
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")


async def test_a_body_beyond_the_limit_is_refused(world: World) -> None:
    response = await world.client.post(INFER, content=bytes(200_001))
    assert (response.status_code, response.json()["error_type"]) == (413, "body_too_large")


async def test_a_version_is_addressed_by_number_else_production_answers(world: World) -> None:
    await world.add("pets", b"two")
    by_number = "/v2/models/pets/versions/{}/infer"
    for url, version in ((INFER, 1), (by_number.format(1), 1), (by_number.format(2), 2)):
        response = await infer(world, files(CAT), url)
        assert response.json()["model_version"] == str(version)
        np.testing.assert_array_equal(
            outputs(response)["logits"], await expected(world, pixels(CAT), version=version)
        )
    await world.registry.set_alias("pets", "production", 2)
    await world.catalog.refresh()
    assert (await infer(world, files(CAT))).json()["model_version"] == "2"


@pytest.mark.parametrize("rest", ["", "/ready", "/stats", "/infer"])
@pytest.mark.parametrize("model", ["cars", "pets/versions/7"])
async def test_what_is_not_registered_is_not_found(world: World, model: str, rest: str) -> None:
    method = "POST" if rest == "/infer" else "GET"
    response = await world.client.request(method, f"/v2/models/{model}{rest}")
    assert response.status_code == 404
    assert "not registered" in response.json()["error"] or "no version" in response.json()["error"]


async def test_failures_of_the_engine_are_answered_as_on_v1(world: World) -> None:
    world.engine.error = QueueFull(1024, 3)
    response = await infer(world, files(CAT, DOG))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json() == {
        "error": "1024 requests wait already; retry in 3 s",
        "error_type": "queue_full",
    }


@pytest.mark.parametrize(
    ("headers", "parameters"), [({"x-request-timeout-ms": "1"}, {}), ({}, {"timeout": 1})]
)
async def test_a_deadline_may_be_asked_for(world: World, headers: dict[str, str], parameters: Json) -> None:
    world.engine.gate.clear()
    body = {"inputs": [files(CAT)], "parameters": parameters}
    response = await world.client.post(INFER, json=body, headers=headers)
    assert (response.status_code, response.json()["error_type"]) == (504, "deadline_exceeded")


async def test_metrics_and_request_ids_are_as_on_v1(world: World) -> None:
    response = await world.client.post(
        INFER, json={"inputs": [files(CAT, DOG)]}, headers={"x-request-id": "mine"}
    )
    assert response.headers["x-request-id"] == "mine"
    await infer(world, files(b"<html>"))
    assert [task for task, _ in world.metrics.predictions] == ["pets", "pets"]
    assert world.metrics.failures == [("pets", 415)]
    assert world.metrics.requests == [("/v2/models/{task}/infer", "POST", status) for status in (200, 415)]


async def test_readiness_follows_the_replica(world: World) -> None:
    urls = ("/v2/health/ready", "/v2/models/pets/ready", "/v2/models/pets/versions/1/ready")
    assert [(await world.client.get(url)).status_code for url in urls] == [200] * 3
    for phase, kind in ((Phase.STARTING, "not_ready"), (Phase.DRAINING, "draining")):
        world.readiness.phase = phase
        for url in urls:
            response = await world.client.get(url)
            assert (response.status_code, response.json()["error_type"]) == (503, kind)
        assert (await world.client.get("/v2/health/live")).json() == {"live": True}
    world.readiness.phase = Phase.READY
    world.engine.broken = EngineBroken("the batch loop died")
    for url in (*urls, "/v2/health/live"):
        assert (await world.client.get(url)).status_code == 500


async def test_unloading_lets_go_of_every_version_and_the_next_request_is_answered(world: World) -> None:
    second = await world.add("pets", b"two")
    assert (await world.client.post("/v2/repository/models/pets/load")).status_code == 200
    assert len(world.engine.resident) == 1
    response = await world.client.post("/v2/repository/models/pets/unload", json={"parameters": {"x": True}})
    assert (response.status_code, response.content) == (200, b"")
    assert not world.engine.resident
    assert second.digest in world.engine.forgotten
    assert (await infer(world, files(CAT))).status_code == 200


async def test_a_model_is_not_loaded_from_the_request(world: World) -> None:
    body = {"parameters": {"config": "{}", "file:1/model": "AAAA"}}
    response = await world.client.post("/v2/repository/models/pets/load", json=body)
    assert (response.status_code, "upload to" in response.json()["error"]) == (400, True)
    for verb in ("load", "unload"):
        response = await world.client.post(f"/v2/repository/models/cars/{verb}")
        assert (response.status_code, response.json()["error"]) == (404, str(TaskNotFound("cars")))


async def test_the_index_shows_what_serves_and_what_the_key_covers(world: World) -> None:
    data = make_adapter_file(b"cars")
    await world.registry.restore_version(make_version("cars", 3, data), data)  # as in the midst of a copy
    await world.catalog.refresh()
    index = (await world.client.post("/v2/repository/index")).json()
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("cars", "", "UNAVAILABLE"),
        ("pets", "1", "READY"),
    ]
    ready = await world.client.post("/v2/repository/index", json={"ready": True})
    assert [entry["name"] for entry in ready.json()] == ["pets"]
    await world.add_key("few", "predict", tasks=("c*",))
    few = await world.client.post("/v2/repository/index", headers={"authorization": "Bearer few"})
    assert [entry["name"] for entry in few.json()] == ["cars"]


async def test_statistics_count_requests_images_and_failures(world: World) -> None:
    before = (await world.client.get("/v2/models/pets/stats")).json()["model_stats"]
    assert [(entry["version"], entry["inference_count"]) for entry in before] == [("1", 0)]
    await infer(world, files(CAT, DOG))
    await infer(world, files(CAT))
    await infer(world, files(b"<html>"))
    (entry,) = (await world.client.get("/v2/models/stats")).json()["model_stats"]
    assert (entry["name"], entry["version"], entry["inference_count"]) == ("pets", "1", 3)
    counts = {name: duration["count"] for name, duration in entry["inference_stats"].items()}
    assert counts == {
        "success": 2, "fail": 1, "queue": 2, "compute_input": 2, "compute_infer": 2, "compute_output": 2,
    }  # fmt: skip
    assert entry["inference_stats"]["compute_infer"]["ns"] == 20_000_000  # 10 ms each, says the engine
    assert entry["execution_count"] == 3  # its batches hold one image
    for url in ("/v2/models/pets/stats", "/v2/models/pets/versions/1/stats"):
        assert (await world.client.get(url)).json()["model_stats"] == [entry]
    await world.add_key("few", "predict", tasks=("c*",))
    few = await world.client.get("/v2/models/stats", headers={"authorization": "Bearer few"})
    assert few.json()["model_stats"] == []
