"""Tasks, versions, aliases and what is on the device."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.models import Version
from tests.builders import make_manifest
from tests.fakes import WRONG_PROBE, make_adapter_file
from tests.unit.app_parts import JPEG, World, running

OCTETS = {"content-type": "application/octet-stream"}
FILE = make_adapter_file(b"pets one", make_manifest(labels=("cat", "dog")))
OTHER = make_adapter_file(b"pets two", make_manifest(labels=("cat", "dog", "emu")))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path, max_adapter_bytes=64 * 1024) as world:
        yield world


@pytest.fixture
async def pets(world: World) -> list[Version]:
    """Three versions of `pets`; the first is production."""
    return [await world.add("pets", payload) for payload in (b"1", b"2", b"3")]


async def predict(world: World, query: str = "") -> int:
    response = await world.client.post(f"/v1/tasks/pets/predict{query}", content=JPEG)
    assert response.status_code == 200, response.text
    version: int = response.json()["version"]
    return version


async def test_an_upload_answers_with_what_it_made_and_serves_at_once(world: World) -> None:
    response = await world.client.post("/v1/tasks/pets/versions", content=FILE, headers=OCTETS)
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/tasks/pets/versions/1"
    digest = hashlib.sha256(FILE).hexdigest()
    assert response.json() == {
        "task": "pets",
        "version": 1,
        "digest": digest,
        "size": len(FILE),
        "production": True,
    }
    assert await predict(world) == 1
    shown = await world.client.get(response.headers["location"])
    assert shown.json()["digest"] == digest


async def test_a_form_uploads_too(world: World) -> None:
    response = await world.client.post("/v1/tasks/pets/versions", files={"adapter": ("a", FILE)})
    assert response.status_code == 201
    wrong = await world.client.post("/v1/tasks/pets/versions", files={"file": ("a", FILE)})
    assert (wrong.status_code, wrong.json()["error_type"]) == (400, "request_invalid")


async def test_the_same_bytes_again_are_the_same_version(world: World) -> None:
    first = await world.client.post("/v1/tasks/pets/versions", content=FILE)
    again = await world.client.post("/v1/tasks/pets/versions", content=FILE)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


async def test_a_later_version_moves_production_only_when_told(world: World) -> None:
    await world.client.post("/v1/tasks/pets/versions", content=FILE)
    second = await world.client.post("/v1/tasks/pets/versions", content=OTHER)
    assert (second.json()["version"], second.json()["production"]) == (2, False)
    assert await predict(world) == 1
    promoted = await world.client.post("/v1/tasks/pets/versions?promote=true", content=OTHER)
    assert (promoted.status_code, promoted.json()["production"]) == (200, True)
    assert await predict(world) == 2


@pytest.mark.parametrize(
    ("data", "status", "error_type"),
    [
        (b"", 422, "adapter_file_invalid"),
        (b"nonsense", 422, "adapter_file_invalid"),
        (make_adapter_file(WRONG_PROBE), 422, "probe_mismatch"),
        (make_adapter_file(b"", make_manifest(fingerprint="a" * 64)), 422, "adapter_incompatible"),
        (b"FAKEADAPTER1\n{}\n", 422, "manifest_invalid"),
        (bytes(65 * 1024), 413, "body_too_large"),
    ],
)
async def test_a_bad_upload_leaves_nothing_behind(
    world: World, data: bytes, status: int, error_type: str
) -> None:
    response = await world.client.post("/v1/tasks/pets/versions", content=data)
    assert (response.status_code, response.json()["error_type"]) == (status, error_type)
    assert (await world.client.get("/v1/tasks")).json() == {"tasks": [], "next_after": None}


async def test_a_download_is_the_upload(world: World) -> None:
    await world.client.post("/v1/tasks/pets/versions", content=FILE)
    url = "/v1/tasks/pets/versions/1/adapter"
    response = await world.client.get(url)
    assert response.content == FILE
    assert response.headers["etag"] == f'"{hashlib.sha256(FILE).hexdigest()}"'
    assert response.headers["content-disposition"] == 'attachment; filename="pets-1.safetensors"'
    again = await world.client.get(url, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_tasks_are_listed_in_pages(world: World, pets: list[Version]) -> None:
    for name in ("boats", "cars"):
        await world.add(name)
    first = (await world.client.get("/v1/tasks?limit=2")).json()
    assert [task["task"] for task in first["tasks"]] == ["boats", "cars"]
    second = (await world.client.get(f"/v1/tasks?limit=2&after={first['next_after']}")).json()
    assert [task["task"] for task in second["tasks"]] == ["pets"]
    assert second["next_after"] is None
    assert second["tasks"][0]["aliases"] == {"production": 1}
    assert (second["tasks"][0]["latest"], second["tasks"][0]["versions"]) == (3, 3)


async def test_a_task_shows_its_versions_and_where_they_are(world: World, pets: list[Version]) -> None:
    await predict(world)
    await world.client.put("/v1/tasks/pets/pin?version=2")
    detail = (await world.client.get("/v1/tasks/pets")).json()
    assert (detail["aliases"], detail["latest"]) == ({"production": 1}, 3)
    assert detail["labels"] == ["pets 0", "pets 1", "pets 2"]
    shown = [(v["version"], v["tier"], v["pinned"], v["aliases"]) for v in detail["versions"]]
    assert shown == [
        (1, "device", False, ["production"]),
        (2, "device", True, []),
        (3, "stored", False, []),
    ]
    assert [v["last_used"] is None for v in detail["versions"]] == [False, False, True]
    assert [v["digest"] for v in detail["versions"]] == [version.digest for version in pets]


async def test_the_versions_of_a_task_are_paged(world: World, pets: list[Version]) -> None:
    first = (await world.client.get("/v1/tasks/pets?limit=2")).json()
    assert [v["version"] for v in first["versions"]] == [1, 2]
    rest = (await world.client.get(f"/v1/tasks/pets?limit=2&after={first['next_after']}")).json()
    assert ([v["version"] for v in rest["versions"]], rest["next_after"]) == ([3], None)


async def test_a_version_shows_its_whole_manifest(world: World, pets: list[Version]) -> None:
    shown = (await world.client.get("/v1/tasks/pets/versions/2")).json()
    assert shown["manifest"] == pets[1].manifest.model_dump(mode="json")
    assert (shown["task"], shown["version"], shown["method"]) == ("pets", 2, "ssf")


async def test_a_deleted_version_is_gone_and_forgotten(world: World, pets: list[Version]) -> None:
    await predict(world, "?version=2")
    response = await world.client.delete("/v1/tasks/pets/versions/2")
    assert (response.status_code, response.content) == (204, b"")
    assert world.engine.forgotten == [pets[1].digest]
    gone = await world.client.post("/v1/tasks/pets/predict?version=2", content=JPEG)
    assert (gone.status_code, gone.json()["error_type"]) == (404, "version_not_found")


async def test_a_version_that_an_alias_names_is_not_deleted(world: World, pets: list[Version]) -> None:
    response = await world.client.delete("/v1/tasks/pets/versions/1")
    assert (response.status_code, response.json()["error_type"]) == (409, "version_in_use")
    assert await predict(world) == 1


async def test_a_deleted_task_is_gone(world: World, pets: list[Version]) -> None:
    await predict(world)
    assert (await world.client.delete("/v1/tasks/pets")).status_code == 204
    assert world.engine.forgotten == [pets[0].digest]
    gone = await world.client.post("/v1/tasks/pets/predict", content=JPEG)
    assert (gone.status_code, gone.json()["error_type"]) == (404, "task_not_found")
    assert (await world.client.get("/v1/tasks")).json()["tasks"] == []


async def test_an_alias_is_made_moved_and_rolled_back(world: World, pets: list[Version]) -> None:
    url = "/v1/tasks/pets/aliases/production"
    moved = await world.client.put(url, json={"version": 2})
    assert moved.status_code == 200
    body = moved.json()
    assert (body["task"], body["alias"], body["version"], body["previous"]) == ("pets", "production", 2, 1)
    assert await predict(world) == 2
    back = await world.client.post(f"{url}/rollback")
    assert (back.json()["version"], back.json()["kind"]) == (1, "rollback")
    assert await predict(world) == 1
    history = (await world.client.get(url)).json()
    assert history["version"] == 1
    assert [move["version"] for move in history["moves"]] == [1, 2, 1]
    latest = (await world.client.get(f"{url}?limit=1")).json()
    assert len(latest["moves"]) == 1


@pytest.mark.parametrize(
    ("alias", "body", "status"),
    [
        ("production", {"version": 2, "expected": 1}, 200),
        ("production", {"version": 2, "expected": 3}, 409),
        ("production", {"version": 2, "expected": None}, 409),
        ("canary", {"version": 2, "expected": None}, 200),
        ("canary", {"version": 2, "expected": 1}, 409),
        ("canary", {"version": 2}, 200),
        ("canary", {"version": 9}, 404),
        ("canary", {"version": 0}, 422),
        ("canary", {}, 422),
        ("canary", {"version": 1, "force": True}, 422),
        ("Bad!", {"version": 1}, 422),
    ],
)
async def test_an_alias_is_compared_before_it_is_set(
    world: World, pets: list[Version], alias: str, body: dict[str, object], status: int
) -> None:
    before = (await world.client.get("/v1/tasks/pets")).json()["aliases"]
    response = await world.client.put(f"/v1/tasks/pets/aliases/{alias}", json=body)
    assert response.status_code == status, response.text
    after = (await world.client.get("/v1/tasks/pets")).json()["aliases"]
    assert after == (before | {alias: 2} if status == 200 else before)


async def test_an_alias_body_must_be_json(world: World, pets: list[Version]) -> None:
    response = await world.client.put("/v1/tasks/pets/aliases/canary", content=b"version=1")
    assert (response.status_code, response.json()["error_type"]) == (400, "request_invalid")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_alias_that_never_was_is_named(world: World, pets: list[Version], method: str) -> None:
    url = "/v1/tasks/pets/aliases/canary" + ("/rollback" if method == "POST" else "")
    response = await world.client.request(method, url)
    assert (response.status_code, response.json()["error_type"]) == (404, "alias_not_found")


async def test_prefetch_tells_where_the_adapter_was(world: World, pets: list[Version]) -> None:
    url = "/v1/tasks/pets/prefetch?version=3"
    first = await world.client.post(url)
    again = await world.client.post(url)
    assert (first.json()["tier_before"], again.json()["tier_before"]) == ("stored", "device")
    assert first.json()["digest"] == pets[2].digest


async def test_a_pin_stays_with_its_version(world: World, pets: list[Version]) -> None:
    pinned = await world.client.put("/v1/tasks/pets/pin")
    assert (pinned.json()["version"], pinned.json()["pinned"]) == (1, True)
    await world.client.put("/v1/tasks/pets/aliases/production", json={"version": 2})
    assert world.engine.pinned == {pets[0].digest}
    await world.client.delete("/v1/tasks/pets/pin")
    assert world.engine.pinned == {pets[0].digest}
    unpinned = await world.client.delete("/v1/tasks/pets/pin?version=1")
    assert (unpinned.json()["pinned"], world.engine.pinned) == (False, set())


async def test_pins_are_limited(world: World, pets: list[Version]) -> None:
    statuses = [
        (await world.client.put(f"/v1/tasks/pets/pin?version={version}")).status_code for version in (1, 2, 3)
    ]
    assert statuses == [200, 200, 409]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/versions/1"),
        ("GET", "/versions/1/adapter"),
        ("DELETE", "/versions/1"),
        ("GET", "/aliases/production"),
        ("POST", "/aliases/production/rollback"),
        ("POST", "/prefetch"),
        ("PUT", "/pin"),
        ("DELETE", "/pin"),
    ],
)
async def test_an_unknown_task_is_not_found_anywhere(world: World, method: str, path: str) -> None:
    response = await world.client.request(method, f"/v1/tasks/boats{path}")
    assert (response.status_code, response.json()["error_type"]) == (404, "task_not_found")


async def test_while_the_registry_is_away_what_was_met_is_served(world: World, pets: list[Version]) -> None:
    await predict(world)
    world.registry.away = True
    assert await predict(world) == 1
    assert (await world.client.get("/v1/tasks")).status_code == 200
    for response in (
        await world.client.get("/v1/tasks/pets"),
        await world.client.post("/v1/tasks/boats/predict", content=JPEG),
    ):
        assert (response.status_code, response.json()["error_type"]) == (503, "registry_unavailable")
        assert response.headers["retry-after"] == "1"
        assert "secret" not in response.text


async def test_a_write_stands_although_the_registry_goes_away_right_after(
    world: World, pets: list[Version]
) -> None:
    world.registry.away = True  # reads fail, the write itself goes through
    response = await world.client.put("/v1/tasks/pets/aliases/production", json={"version": 2})
    assert response.status_code == 200
    world.registry.away = False
    await world.catalog.refresh()
    assert await predict(world) == 2


@pytest.mark.parametrize("version", [True, "1", 1.0])
async def test_an_alias_takes_whole_numbers_only(world: World, pets: list[Version], version: object) -> None:
    response = await world.client.put("/v1/tasks/pets/aliases/canary", json={"version": version})
    assert response.status_code == 422
