"""Errors have one shape and tell nothing of the inside; requests have an id and a line in the log."""

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import logs
from server.errors import EngineBroken
from server.parts import Phase
from tests.unit.app_parts import JPEG, World, running

PREDICT = "/v1/tasks/pets/predict"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as world:
        await world.add("pets")
        yield world


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged as JSON; the configuration before is restored."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    root.handlers = []
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)  # the test's own client
    logs.configure(level="info", log_format="json", stream=stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = False


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


@pytest.mark.parametrize("path", ["/", "/v3", "/v1/nothing", "/v1/tasks/", "/v1/tasks/pets/predict/more"])
async def test_an_unknown_path_is_not_found(world: World, path: str) -> None:
    response = await world.client.get(path)
    assert (response.status_code, response.json()) == (404, {"error": "Not Found", "error_type": "not_found"})


async def test_a_wrong_method_names_the_right_ones(world: World) -> None:
    response = await world.client.get(PREDICT)
    assert (response.status_code, response.json()["error_type"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_answers_head_without_a_body(world: World, path: str) -> None:
    response = await world.client.head(path)
    assert (response.status_code, response.content) == (200, b"")


async def test_a_bug_is_answered_without_its_story_which_the_log_has(world: World, log: io.StringIO) -> None:
    world.engine.error = RuntimeError("the secret of /etc/passwd")
    response = await world.client.post(PREDICT, content=JPEG, headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == "internal"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "abc"
    failed, access = lines(log)
    assert "the secret of /etc/passwd" in failed["exception"]
    assert (failed["request_id"], access["request_id"]) == ("abc", "abc")
    assert (access["status"], access["error_type"]) == (500, "internal")


@pytest.mark.parametrize("given", ["abc-123", "A.b_c:d", "x" * 128])
async def test_a_sane_request_id_is_kept(world: World, given: str) -> None:
    response = await world.client.get("/healthz", headers={"x-request-id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "ä"])
async def test_another_request_id_is_replaced(world: World, given: str) -> None:
    headers = [(b"x-request-id", given.encode("latin-1"))]
    first = await world.client.get("/healthz", headers=headers)
    second = await world.client.get("/healthz")
    made = first.headers["x-request-id"]
    assert made != given
    assert len(made) == 16
    assert made != second.headers["x-request-id"]


async def test_every_answer_tells_browsers_to_keep_and_do_nothing(world: World) -> None:
    for path in (
        "/healthz",
        "/nothing",
        "/v1/tasks",
        "/v1/tasks/boats",
        "/metrics",
        "/docs",
        "/openapi.json",
    ):
        headers = (await world.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        assert headers["cache-control"] == "no-store", path
        assert headers["content-security-policy"].startswith("default-src 'none';"), path
    world.engine.error = RuntimeError()
    bug = await world.client.post(PREDICT, content=JPEG)
    assert (bug.status_code, bug.headers["cache-control"]) == (500, "no-store")


async def test_an_adapter_file_may_be_kept_by_who_may_have_it(world: World) -> None:
    url = "/v1/tasks/pets/versions/1/adapter"
    first = await world.client.get(url)
    assert first.headers.get_list("cache-control") == ["private, no-cache"]
    again = await world.client.get(url, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "private, no-cache")


async def test_errors_carry_the_request_id_too(world: World) -> None:
    for path in ("/nothing", "/v1/tasks/boats"):
        response = await world.client.get(path, headers={"x-request-id": "abc"})
        assert response.headers["x-request-id"] == "abc"


async def test_one_line_tells_of_each_request(world: World, log: io.StringIO) -> None:
    await world.add_key("alice", "predict")
    headers = {"x-request-id": "abc", "authorization": "Bearer alice"}
    await world.client.post(f"{PREDICT}?top_k=1", content=JPEG, headers=headers)
    [line] = lines(log)
    assert line.pop("ms") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "server.access",
        "message": "request",
        "request_id": "abc",
        "method": "POST",
        "path": PREDICT,
        "status": 200,
        "task": "pets",
        "version": 1,
        "key": "alice",
    }


async def test_the_line_names_the_kind_of_error(world: World, log: io.StringIO) -> None:
    await world.client.get("/v1/tasks/boats")
    [line] = lines(log)
    assert (line["status"], line["error_type"], line["task"]) == (404, "task_not_found", "boats")


async def test_no_key_gets_into_the_log(world: World, log: io.StringIO) -> None:
    await world.add_key("hunter2-name", "predict")
    for token in ("hunter2", "hunter2-wrong"):
        await world.client.get("/v1/tasks?after=hunter2", headers={"authorization": f"Bearer {token}"})
    assert "hunter2" not in log.getvalue()


async def test_the_access_log_can_be_turned_off(tmp_path: Path, log: io.StringIO) -> None:
    async with running(tmp_path, access_log=False) as world:
        await world.client.get("/healthz")
    assert not log.getvalue()


def test_text_lines_cannot_be_forged(log: io.StringIO) -> None:
    logs.configure(level="info", log_format="text", stream=log)
    logging.getLogger("x").info("request", extra={"fields": {"path": "/\n2026-01-01 forged"}})
    assert len(log.getvalue().splitlines()) == 1
    assert log.getvalue().endswith('INFO    request path="/\\n2026-01-01 forged"\n')


async def test_requests_are_measured_by_the_template_of_their_route(world: World) -> None:
    await world.client.get("/v1/tasks/pets")
    await world.client.get("/v1/tasks/boats")
    await world.client.get("/nothing")
    assert world.metrics.requests == [
        ("/v1/tasks/{task}", "GET", 200),
        ("/v1/tasks/{task}", "GET", 404),
        ("unmatched", "GET", 404),
    ]


async def test_health_follows_the_engine(world: World) -> None:
    healthy = await world.client.get("/healthz")
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
    world.engine.broken = EngineBroken("secret: the loop died")
    broken = await world.client.get("/healthz")
    assert (broken.status_code, broken.json()["error_type"]) == (500, "engine_broken")
    assert "secret" not in broken.text


@pytest.mark.parametrize(
    ("phase", "error_type"), [(Phase.STARTING, "not_ready"), (Phase.DRAINING, "draining")]
)
async def test_a_replica_that_wants_no_traffic_says_why(world: World, phase: Phase, error_type: str) -> None:
    world.readiness.phase = phase
    response = await world.client.get("/readyz")
    assert response.status_code == 503
    body = response.json()
    assert (body["status"], body["error_type"]) == (phase, error_type)
    assert "retry-after" in response.headers


async def test_a_ready_replica_stays_ready_without_its_registry(world: World) -> None:
    world.registry.away = True
    await world.catalog.catch_up()
    response = await world.client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready")
    assert response.json()["registry_staleness_seconds"] > 0


async def test_metrics_are_those_of_the_collector(world: World) -> None:
    response = await world.client.get("/metrics")
    assert response.content == b"ssfserve_up 1\n"
    assert response.headers["content-type"] == "text/plain; version=1.0.0"


async def test_the_backbone_is_shown(world: World) -> None:
    shown = (await world.client.get("/v1/backbone")).json()
    assert shown["name"] == "vit_tiny_patch16_224"
    assert shown["sites"] == {"blocks.0.attn.qkv": 96}
    assert shown["preprocessing"]["height"] == 32
