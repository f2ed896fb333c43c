"""The audit log over HTTP: who is named for each change, and who may read of it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.models import Actor
from server.routes import audit
from tests.fakes import make_adapter_file
from tests.unit.app_parts import World, running
from tests.unit.test_auth import bearer

SAVED = {"x-request-id": "r-7"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as world:
        yield world


@pytest.fixture
async def keyed(world: World) -> World:
    await world.add_key("manages", "manage")
    await world.add_key("predicts", "predict")
    await world.add_key("manages-pets", "manage", tasks=("pet*",))
    return world


async def entries(world: World, token: str = "", **query: str | int) -> list[dict[str, object]]:
    """Return all entries, over as many pages as it takes."""
    found: list[dict[str, object]] = []
    while True:
        answer = await world.client.get("/v1/audit", params=query, headers=bearer(token) if token else {})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["entries"]
        if page["next_after"] is None:
            return found
        query["after"] = page["next_after"]


async def test_each_change_names_key_and_request(keyed: World) -> None:
    """Every route that changes the registry, so that none forgets who asked."""
    headers = bearer("manages") | SAVED
    for payload in (b"a", b"b", b"c"):
        await keyed.client.post(
            "/v1/tasks/pets/versions", content=make_adapter_file(payload), headers=headers
        )
    await keyed.client.put("/v1/tasks/pets/aliases/production", json={"version": 2}, headers=headers)
    await keyed.client.post("/v1/tasks/pets/aliases/production/rollback", headers=headers)
    await keyed.client.delete("/v1/tasks/pets/versions/3", headers=headers)
    await keyed.client.delete("/v1/tasks/pets", headers=headers)
    found = await entries(keyed, "manages", task="pets")
    assert [entry["action"] for entry in found] == [
        "task_deleted",
        "version_deleted",
        "alias_rolled_back",
        "alias_set",
        "version_added",
        "version_added",
        "alias_set",
        "version_added",
    ]
    (key,) = [key for key in await keyed.registry.list_keys() if key.name == "manages"]
    expected = Actor(kind="key", name="manages", id=key.id, request_id="r-7")
    assert [Actor.model_validate(entry["actor"]) for entry in found] == [expected] * len(found)


async def test_without_keys_anybody_is_named(world: World) -> None:
    await world.client.post(
        "/v1/tasks/pets/versions", content=make_adapter_file(b"a"), headers={"x-request-id": "r-8"}
    )
    actors = {Actor.model_validate(entry["actor"]) for entry in await entries(world)}
    assert actors == {Actor(kind="anybody", request_id="r-8")}


async def test_a_key_reads_of_its_tasks_and_only_one_for_all_of_keys(
    keyed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "AT_ONCE", 3)
    for task in ("pets", "cars", "petunias", "boats"):
        await keyed.add(task)
    whole = await entries(keyed, "manages", limit=2)
    assert len(whole) == 3 + 8
    assert {entry["key"] for entry in whole} == {None, "manages", "predicts", "manages-pets"}
    for limit in (1, 2, 100):
        own = await entries(keyed, "manages-pets", limit=limit)
        assert own == [entry for entry in whole if re.match("pet", str(entry["task"]))]
    refused = await keyed.client.get("/v1/audit", params={"task": "cars"}, headers=bearer("manages-pets"))
    assert (refused.status_code, refused.json()["error_type"]) == (403, "forbidden")


async def test_what_one_answer_looks_through_is_bounded(
    keyed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "AT_ONCE", 1)
    await keyed.add("pets")
    for number in range(audit.MAX_READS):
        await keyed.add(f"cars-{number}")
    first = (await keyed.client.get("/v1/audit", headers=bearer("manages-pets"))).json()
    assert first["entries"] == []
    assert first["next_after"] is not None
    assert len(await entries(keyed, "manages-pets")) == 2


async def test_a_registry_that_is_away_is_told(keyed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await keyed.registry.close()
    answer = await keyed.client.get("/v1/audit", headers=bearer("manages"))
    assert (answer.status_code, answer.json()["error_type"]) == (503, "registry_unavailable")
